/* Reads and writes of open files that we serve, straight from and to the OSTs. */
#ifndef NACRE_TRANSFER_H
#define NACRE_TRANSFER_H

#include "file.h"
#include "memory.h"

/* Each transfers the bytes of some extents of a file, which stand one after the other in `memory`: 0, or an errno. */

/* `*size` is the size of the file if some of the bytes were not there, and UINT64_MAX otherwise; bytes before it that
 * nobody wrote are zeros. */
int transfer_read(struct file *file, int fd, const struct extent *extents, size_t count, const struct iovec *memory,
                  uint64_t *size);
int transfer_write(struct file *file, int fd, const struct extent *extents, size_t count, const struct iovec *memory,
                   bool sync);

/* Makes durable what this process has written to the file. */
int transfer_sync(struct file *file, int fd);

#endif
