#include "blocks.h"

#include <string.h>

/* What a request costs besides its bytes, in bytes: 80 µs of a server, which moves a KiB in half of one (docs/adr/0025). */
#define REQUEST_COST_BYTES (160u << 10)

enum {
    BLOCK_MIN = 64 << 10, /* what a reader of less than 64 KiB meets two of at most */
    BLOCK_MAX = 1 << 20,
    BLOCKS_MIN = 4,
    MISSES_MIN = 2,
    MISSES_MAX = 256,
    WELL_SPENT = 4, /* so many times what it cost */
};

void blocks_init(struct blocks *blocks, size_t bytes)
{
    memset(blocks, 0, sizeof *blocks);
    blocks->block_bytes = BLOCK_MAX;
    while (blocks->block_bytes > BLOCK_MIN && bytes / blocks->block_bytes < BLOCKS_MIN)
        blocks->block_bytes /= 2;
    blocks->count = bytes / blocks->block_bytes > BLOCKS_MIN ? bytes / blocks->block_bytes : BLOCKS_MIN;
    blocks->eagerness_misses = MISSES_MIN;
}

static size_t mapped_bytes(const struct blocks *blocks)
{
    return blocks->count * (blocks->block_bytes + sizeof *blocks->list);
}

void blocks_free(struct blocks *blocks)
{
    if (blocks->memory)
        memory_unmap(blocks->memory, mapped_bytes(blocks));
    blocks->memory = NULL;
}

/* Forgets a block, and learns: one that has hardly spared what it cost makes us fetch the next one later, one that has
 * spared much, earlier. */
static void forget(struct blocks *blocks, struct block *block)
{
    uint64_t cost = blocks->block_bytes + REQUEST_COST_BYTES;
    if (block->held && 2 * block->served < 3 * cost && blocks->eagerness_misses < MISSES_MAX)
        blocks->eagerness_misses *= 2;
    if (block->held && block->served >= WELL_SPENT * cost && blocks->eagerness_misses > MISSES_MIN)
        blocks->eagerness_misses /= 2;
    block->held = false;
}

static struct block *find(struct blocks *blocks, uint64_t number)
{
    for (size_t index = 0; blocks->memory && index < blocks->count; index++)
        if (blocks->list[index].held && blocks->list[index].number == number)
            return &blocks->list[index];
    return NULL;
}

static uint8_t *memory_of(const struct blocks *blocks, const struct block *block)
{
    return blocks->memory + (size_t)(block - blocks->list) * blocks->block_bytes;
}

bool blocks_serve(struct blocks *blocks, uint64_t offset, size_t length, struct cursor *into)
{
    struct block *block = find(blocks, offset / blocks->block_bytes);
    if (!block)
        return false;
    size_t at = offset % blocks->block_bytes;
    if (at + length > block->filled) { /* where the file ended: it may be longer by now */
        forget(blocks, block);
        return false;
    }
    cursor_fill(into, memory_of(blocks, block) + at, length);
    block->used = ++blocks->clock;
    block->served += length + REQUEST_COST_BYTES;
    return true;
}

uint8_t *blocks_want(struct blocks *blocks, uint64_t number)
{
    size_t place = number % BLOCKS_COUNTED;
    if (blocks->counted[place].number != number) {
        blocks->counted[place].number = number;
        blocks->counted[place].misses = 0;
    }
    if (++blocks->counted[place].misses < blocks->eagerness_misses)
        return NULL;
    blocks->counted[place].misses = 0;
    if (!blocks->memory) {
        if (!(blocks->memory = memory_map(mapped_bytes(blocks))))
            return NULL;
        blocks->list = (struct block *)(blocks->memory + blocks->count * blocks->block_bytes);
    }
    struct block *oldest = blocks->list;
    for (size_t index = 0; index < blocks->count; index++) {
        struct block *block = &blocks->list[index];
        if (!block->held) {
            oldest = block;
            break;
        }
        if (block->used < oldest->used)
            oldest = block;
    }
    forget(blocks, oldest);
    return memory_of(blocks, oldest);
}

void blocks_keep(struct blocks *blocks, uint64_t number, const uint8_t *memory, size_t filled)
{
    struct block *block = &blocks->list[(size_t)(memory - blocks->memory) / blocks->block_bytes];
    *block = (struct block){.number = number, .used = ++blocks->clock, .filled = filled, .held = true};
}

void blocks_drop(struct blocks *blocks, uint64_t offset, uint64_t length)
{
    for (size_t index = 0; blocks->memory && index < blocks->count; index++) {
        struct block *block = &blocks->list[index];
        uint64_t start = block->number * blocks->block_bytes;
        /* What was behind the file's end belongs to the block, too: it says how far the file goes. */
        if (block->held && start < offset + length && offset < start + blocks->block_bytes)
            forget(blocks, block);
    }
}

void blocks_clear(struct blocks *blocks)
{
    blocks_drop(blocks, 0, UINT64_MAX);
}
