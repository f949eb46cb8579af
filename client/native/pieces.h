/* What a program has written and nobody has sent: pieces of a file, in memory, by offset. No I/O, no lock. */
#ifndef NACRE_PIECES_H
#define NACRE_PIECES_H

#include "memory.h"
#include "wire.h"

enum { PIECES_MAX = 4096 };

/* Bytes [offset, offset + length) of the file, which stand in memory from `at` on. */
struct piece {
    uint64_t offset;
    size_t length, at;
};

/* Pieces ascend and do not overlap. Those that touch in the file need not in memory, where they stand as they came. */
struct pieces {
    uint8_t *memory; /* `room` bytes; NULL until there is something */
    size_t room, filled;
    struct piece *list; /* room for PIECES_MAX, behind the memory */
    size_t count;
};

/* Gets memory; false if there is none. */
bool pieces_prepare(struct pieces *pieces, size_t room);
void pieces_free(struct pieces *pieces);

/* Whether some of these bytes are here. */
bool pieces_touch(const struct pieces *pieces, const struct extent *extent);

/* Whether these bytes find room. */
bool pieces_fit(const struct pieces *pieces, const struct extent *extent);

/* Takes bytes, which fit, out of a program's buffers. What was here of them is overwritten in its place. */
void pieces_add(struct pieces *pieces, const struct extent *extent, const struct iovec *from);

/* Forgets all. */
void pieces_clear(struct pieces *pieces);

/* All of it, as a write takes it: `extents` and `memory` have room for `count` each. How many extents there are, for
 * those that touch are one. */
size_t pieces_list(const struct pieces *pieces, struct extent *extents, struct iovec *memory);

#endif
