/* A caller's buffers as one run of bytes: where the bytes of an I/O lie in memory. */
#ifndef NACRE_MEMORY_H
#define NACRE_MEMORY_H

#include <stddef.h>
#include <sys/uio.h>

/* A place in a list of buffers. */
struct cursor {
    const struct iovec *at;
    size_t done; /* bytes of *at that lie before this place */
};

/* How long the buffers are together. */
size_t memory_bytes(const struct iovec *buffers, int count);

/* The next run of at most `size` bytes (not 0) that lie together; the cursor moves behind it. */
struct iovec cursor_take(struct cursor *cursor, size_t size);

/* Moves the cursor on by `size` bytes. */
void cursor_skip(struct cursor *cursor, size_t size);

/* Makes `size` bytes zero, and moves on. */
void cursor_zero(struct cursor *cursor, size_t size);

#endif
