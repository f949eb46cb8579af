/* What the POSIX layer knows of an MPI_File_open that this thread is in. */
#ifndef NACRE_MPI_H
#define NACRE_MPI_H

#include "mpi_library.h"

#include <stdbool.h>

/* A file of ours is in atomic mode, or not any more. While one is, nothing is collected: some OMPIOs take no locks then,
 * from which `buffer` would know. */
void mpi_set_atomic(word file, bool atomic);

/* This thread is in MPI_File_open for a file of ours. */
bool mpi_is_opening(void);

/* The layout that a file it makes should have, as `nacre.layout` takes it; NULL if there are no hints. */
const char *mpi_opening_layout(void);

/* How large a buffer its descriptors have in this process; -1 if it says nothing about that. */
long mpi_opening_buffer(void);

/* Gives a new, empty file that layout, if it can be. */
void mpi_set_layout(int fd);

/* Open MPI's Fortran layer calls the names with P. */
#define BOTH(name, parameters, call)                                          \
    EXPORT int MPI_##name parameters;                                         \
    EXPORT int PMPI_##name parameters;                                        \
    int MPI_##name parameters { return call; }                                \
    int PMPI_##name parameters { return call; }

#endif
