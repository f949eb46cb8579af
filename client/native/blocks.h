/* What has been fetched of a file ahead of its reader: whole blocks, and whether it is worth while to fetch one. No I/O, no lock. */
#ifndef NACRE_BLOCKS_H
#define NACRE_BLOCKS_H

#include "memory.h"

#include <stdbool.h>
#include <stdint.h>

enum { BLOCKS_COUNTED = 64 };

/* Bytes from number * block_bytes on; `filled` of them, less than a block where the file ended. */
struct block {
    uint64_t number, used, served;
    size_t filled;
    bool held;
};

struct blocks {
    uint8_t *memory; /* of `count` blocks, and the blocks behind it; NULL until something is fetched */
    struct block *list;
    size_t count, block_bytes;
    uint64_t clock;
    unsigned eagerness_misses; /* so many reads in one block that is not here, and it is fetched */
    struct {
        uint64_t number;
        unsigned misses;
    } counted[BLOCKS_COUNTED];
};

/* For about so many bytes; gets no memory yet. */
void blocks_init(struct blocks *blocks, size_t bytes);
void blocks_free(struct blocks *blocks);

/* Bytes of one block, `[offset, offset + length)`, into a program's buffers; false if they are not here. */
bool blocks_serve(struct blocks *blocks, uint64_t offset, size_t length, struct cursor *into);

/* Whether a block that was not here is to be fetched. Then: the memory for it, which `blocks_keep` is told that it has
 * been filled; NULL if not. */
uint8_t *blocks_want(struct blocks *blocks, uint64_t number);
void blocks_keep(struct blocks *blocks, uint64_t number, const uint8_t *memory, size_t filled);

/* Forgets the blocks that have some of these bytes; all. */
void blocks_drop(struct blocks *blocks, uint64_t offset, uint64_t length);
void blocks_clear(struct blocks *blocks);

#endif
