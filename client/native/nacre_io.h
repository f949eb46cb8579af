/* What libnacre_io.so offers to code that calls it by name instead of having it in front of libc, as ad_nacre.c does. */
#ifndef NACRE_IO_H
#define NACRE_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct nacre_extent {
    uint64_t offset, length;
};

/* A descriptor that open(2) has just returned: 1 if its transfers can go past the mount from now on, 0 if not (then use
 * read and write). It has no buffer (docs/mpi.md). */
int nacre_io_adopt(int fd, int flags);

/* It is about to be closed. */
void nacre_io_drop(int fd);

/* Reads or writes some extents of the file, whose bytes stand one after the other in the buffers, as one request to
 * each object. The bytes transferred (fewer than asked only at the end of the file), or -1 with errno. */
ssize_t nacre_io_read(int fd, const struct nacre_extent *extents, size_t count, const struct iovec *buffers);
ssize_t nacre_io_write(int fd, const struct nacre_extent *extents, size_t count, const struct iovec *buffers);

/* As fsync(2). */
int nacre_io_sync(int fd);

#endif
