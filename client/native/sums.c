#include "sums.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t hash_bytes(const void *data, size_t size)
{
    return XXH3_64bits(data, size);
}

size_t sums_count(uint64_t offset, uint64_t length)
{
    return length ? (offset + length - 1) / BLOCK_BYTES - offset / BLOCK_BYTES + 1 : 0;
}

/* The sum of the next `size` bytes, which may lie in several buffers. */
static uint64_t hash_next(struct cursor *cursor, size_t size)
{
    struct iovec run = cursor_take(cursor, size);
    if (run.iov_len == size)
        return XXH3_64bits(run.iov_base, size);
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, run.iov_base, run.iov_len);
    for (size -= run.iov_len; size; size -= run.iov_len) {
        run = cursor_take(cursor, size);
        XXH3_64bits_update(&state, run.iov_base, run.iov_len);
    }
    return XXH3_64bits_digest(&state);
}

static size_t part_of_block(uint64_t offset, uint64_t length)
{
    uint64_t left = BLOCK_BYTES - offset % BLOCK_BYTES;
    return length < left ? length : left;
}

void sums_make(uint8_t *sums, struct cursor *cursor, uint64_t offset, uint64_t length)
{
    while (length) {
        size_t part = part_of_block(offset, length);
        XXH64_hash_t sum = hash_next(cursor, part);
        for (int index = 0; index < SUM_BYTES; index++)
            *sums++ = (uint8_t)(sum >> 8 * index);
        offset += part;
        length -= part;
    }
}

bool sums_match(const uint8_t *sums, struct cursor *cursor, uint64_t offset, uint64_t length)
{
    bool match = true;
    while (length) {
        size_t part = part_of_block(offset, length);
        XXH64_hash_t sum = hash_next(cursor, part);
        for (int index = 0; index < SUM_BYTES; index++)
            match &= *sums++ == (uint8_t)(sum >> 8 * index);
        offset += part;
        length -= part;
    }
    return match;
}
