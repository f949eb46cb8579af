/* What pieces.c and blocks.c hold, against a plain array: random writes that overlap, reads with and without locality.
 * `buffer_check SEED`. */
#include "blocks.h"
#include "pieces.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES = 1 << 20, ROOM = 256 << 10 };

static uint8_t file[FILE_BYTES], model[FILE_BYTES];
static struct extent extents[PIECES_MAX];
static struct iovec memory[PIECES_MAX];

static void expect(bool right, const char *what)
{
    if (!right) {
        fprintf(stderr, "wrong: %s\n", what);
        exit(1);
    }
}

/* Writes to the "file" what is collected, as a transfer would. */
static void send(struct pieces *pieces)
{
    size_t count = pieces_list(pieces, extents, memory);
    struct cursor cursor = {memory, 0};
    uint64_t end = 0;
    for (size_t index = 0; index < count; index++) {
        expect(!index || extents[index].offset > end, "extents ascend and do not touch");
        end = extents[index].offset + extents[index].length;
        cursor_copy(&cursor, file + extents[index].offset, extents[index].length);
    }
    pieces_clear(pieces);
    expect(!memcmp(file, model, FILE_BYTES), "what was sent");
}

static void writes(void)
{
    struct pieces pieces = {0};
    uint8_t data[5000];
    expect(pieces_prepare(&pieces, ROOM), "memory");
    unsigned sent = 0;
    for (unsigned turn = 0; turn < 20000; turn++) {
        unsigned area = turn / 2000 % 2 ? FILE_BYTES : 20000; /* now dense, now scattered */
        size_t length = 1 + (size_t)rand() % (turn / 1000 % 3 ? 50 : 5000);
        struct extent extent = {(uint64_t)rand() % (area - length), length};
        struct iovec halves[2] = {{data, length / 3}, {data + length / 3, length - length / 3}};
        for (size_t index = 0; index < length; index++)
            data[index] = (uint8_t)(rand() >> 5);
        if (!pieces_fit(&pieces, &extent)) {
            sent++;
            send(&pieces);
        }
        pieces_add(&pieces, &extent, halves);
        memcpy(model + extent.offset, data, length);
        expect(pieces_touch(&pieces, &extent), "what was just written is here");
        expect(pieces.filled <= pieces.room && pieces.count <= PIECES_MAX, "bounds");
    }
    send(&pieces);
    expect(sent > 2, "it was full now and then");
    /* In order: one piece. Every second one: as many as there are. */
    for (unsigned index = 0; index < 10; index++)
        pieces_add(&pieces, &(struct extent){index * 100, 100}, &(struct iovec){data, 100});
    expect(pieces.count == 1 && pieces_list(&pieces, extents, memory) == 1, "what follows is one piece");
    pieces_clear(&pieces);
    for (unsigned index = 10; index--;)
        pieces_add(&pieces, &(struct extent){index * 100, 100}, &(struct iovec){data, 100});
    expect(pieces_list(&pieces, extents, memory) == 1, "what touches is one extent");
    expect(!pieces_touch(&pieces, &(struct extent){1000, 5}), "what is not here");
    pieces_free(&pieces);
}

/* Reads records of 4 KiB of a file of so many blocks in random order: how many blocks are fetched. */
static unsigned fetched(struct blocks *blocks, unsigned file_blocks, unsigned reads, bool in_order)
{
    static uint8_t into[4096];
    unsigned fetches = 0;
    for (unsigned turn = 0; turn < reads; turn++) {
        uint64_t per_block = blocks->block_bytes / sizeof into;
        uint64_t number = (in_order ? turn : (uint64_t)rand() * 8191 + (uint64_t)rand()) % (file_blocks * per_block);
        struct iovec one = {into, sizeof into};
        struct cursor cursor = {&one, 0};
        if (blocks_serve(blocks, number * sizeof into, sizeof into, &cursor)) {
            expect(into[17] == (uint8_t)(number / per_block), "bytes of the block");
            continue;
        }
        uint8_t *found = blocks_want(blocks, number / per_block);
        if (found) {
            memset(found, (int)(number / per_block), blocks->block_bytes);
            blocks_keep(blocks, number / per_block, found, blocks->block_bytes);
            fetches++;
        }
    }
    return fetches;
}

static void reads(void)
{
    struct blocks blocks;
    uint8_t into[10];
    struct iovec one = {into, sizeof into};
    blocks_init(&blocks, 8 << 20);
    expect(blocks.count == 8 && blocks.block_bytes == 1 << 20, "blocks of 1 MiB");
    expect(fetched(&blocks, 100, 100 * 256, true) == 100, "in order: each block once");
    expect(fetched(&blocks, 6, 5000, false) == 6, "a file that finds room: each block once");
    blocks_drop(&blocks, 3 << 20, 1);
    expect(!blocks_serve(&blocks, 3 << 20, 10, &(struct cursor){&one, 0}), "dropped");
    expect(blocks_serve(&blocks, 2 << 20, 10, &(struct cursor){&one, 0}), "its neighbour is not");
    blocks_clear(&blocks);
    expect(!blocks_serve(&blocks, 2 << 20, 10, &(struct cursor){&one, 0}), "all are");
    blocks_free(&blocks);
    blocks_init(&blocks, 8 << 20);
    expect(fetched(&blocks, 100000, 20000, false) < 20, "at random in a large file: hardly any");
    blocks_free(&blocks);
    blocks_init(&blocks, 4 << 20);
    expect(fetched(&blocks, 40, 20000, false) < 200, "at random in a file ten times as large: few");
    blocks_free(&blocks);
    blocks_init(&blocks, 300 << 10);
    expect(blocks.count == 4 && blocks.block_bytes == 64 << 10, "a small buffer has small blocks");
    blocks_keep(&blocks, 0, blocks_want(&blocks, 0) ? blocks.memory : blocks_want(&blocks, 0), 100);
    expect(blocks_serve(&blocks, 90, 10, &(struct cursor){&one, 0}), "up to the end of the file");
    expect(!blocks_serve(&blocks, 91, 10, &(struct cursor){&one, 0}), "not behind it");
    blocks_free(&blocks);
}

int main(int count, char **words)
{
    srand(count > 1 ? (unsigned)atoi(words[1]) : 1);
    writes();
    reads();
    puts("passed");
    return 0;
}
