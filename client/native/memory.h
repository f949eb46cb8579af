/* A caller's buffers as one run of bytes: where the bytes of an I/O lie in memory. And memory of our own in bulk. */
#ifndef NACRE_MEMORY_H
#define NACRE_MEMORY_H

#include <stddef.h>
#include <stdint.h>
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

/* Copies `size` bytes out of the buffers, or into them, and moves on. */
void cursor_copy(struct cursor *cursor, uint8_t *to, size_t size);
void cursor_fill(struct cursor *cursor, const uint8_t *from, size_t size);

/* Memory in bulk, which costs nothing until it is used; NULL once the process has MEMORY_MAP_MAX of it. */
#define MEMORY_MAP_MAX ((size_t)1 << 30)
uint8_t *memory_map(size_t size);
void memory_unmap(uint8_t *memory, size_t size);

#endif
