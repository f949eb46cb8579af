/* The MPI library of the process, found at run time and called without its headers: every argument of these functions
 * is an integer or a pointer, which travel alike, so one build serves every MPI. */
#ifndef NACRE_MPI_LIBRARY_H
#define NACRE_MPI_LIBRARY_H

#include <stdint.h>

typedef intptr_t word; /* a handle, an int or a pointer */

typedef int (*mpi_call)(word, word, word, word, word, word); /* with as many arguments as go into registers */

struct mpi_library {
    int (*file_open)(word comm, const char *name, word mode, word info, word *file);
    int (*file_delete)(const char *name, word info);
    int (*file_get_info)(word file, word *info);
    int (*file_sync)(word file);
    mpi_call file_set_atomicity;
    int (*info_create)(word *info);
    int (*info_dup)(word info, word *copy);
    int (*info_set)(word info, const char *key, const char *value);
    int (*info_get)(word info, const char *key, word room, char *value, int *found);
    int (*info_free)(word *info);
    int (*comm_rank)(word comm, int *rank);
    int (*comm_size)(word comm, int *size);
    int (*barrier)(word comm);
    word info_null;
    word mode_create, mode_excl, mode_rdonly;
    unsigned handle_bits; /* of an info: 32 or 64 */
};

/* A function of it, by name; NULL if it has none of that name. */
void *mpi_function(const char *name);

/* The library; the process ends with a word if there is none. */
const struct mpi_library *mpi_library(void);

#endif
