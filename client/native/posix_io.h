/* Reads and writes at an offset, for those who know that we serve the file. */
#ifndef NACRE_POSIX_IO_H
#define NACRE_POSIX_IO_H

#include "file.h"

#include <sys/types.h>
#include <sys/uio.h>

/* As preadv and pwritev; -1 with errno. */
ssize_t read_at(struct file *file, int fd, const struct iovec *buffers, int count, off_t offset);
ssize_t write_at(struct file *file, int fd, const struct iovec *buffers, int count, off_t offset, bool sync);

/* fsync(2), whoever serves the file. */
int file_fsync(int fd);

#endif
