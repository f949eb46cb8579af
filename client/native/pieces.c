#include "pieces.h"

#include <string.h>

bool pieces_prepare(struct pieces *pieces, size_t room)
{
    if (!pieces->memory && (pieces->memory = memory_map(room + PIECES_MAX * sizeof *pieces->list))) {
        pieces->room = room;
        pieces->list = (struct piece *)(pieces->memory + room);
    }
    return pieces->memory != NULL;
}

void pieces_free(struct pieces *pieces)
{
    if (pieces->memory)
        memory_unmap(pieces->memory, pieces->room + PIECES_MAX * sizeof *pieces->list);
    memset(pieces, 0, sizeof *pieces);
}

/* The first piece that ends behind this offset. */
static size_t find(const struct pieces *pieces, uint64_t offset)
{
    size_t low = 0, high = pieces->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct piece *piece = &pieces->list[middle];
        if (piece->offset + piece->length > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

bool pieces_touch(const struct pieces *pieces, const struct extent *extent)
{
    size_t at = find(pieces, extent->offset);
    return at < pieces->count && pieces->list[at].offset < extent->offset + extent->length;
}

bool pieces_fit(const struct pieces *pieces, const struct extent *extent)
{
    size_t first = find(pieces, extent->offset), end = first;
    while (end < pieces->count && pieces->list[end].offset < extent->offset + extent->length)
        end++;
    /* At worst there is a new piece before, between and behind those that it meets. */
    return extent->length <= pieces->room - pieces->filled && pieces->count + (end - first) + 1 <= PIECES_MAX;
}

/* Bytes that nobody has written yet: behind the piece before, if they follow it in file and memory, or a new piece.
 * Where the next piece is. */
static size_t add_new(struct pieces *pieces, size_t at, uint64_t offset, size_t length)
{
    struct piece *piece = &pieces->list[at], *before = at ? piece - 1 : NULL;
    bool follows = before && before->offset + before->length == offset && before->at + before->length == pieces->filled;
    if (follows) {
        before->length += length;
    } else {
        memmove(piece + 1, piece, (pieces->count - at) * sizeof *piece);
        *piece = (struct piece){offset, length, pieces->filled};
        pieces->count++;
    }
    pieces->filled += length;
    return follows ? at : at + 1;
}

void pieces_add(struct pieces *pieces, const struct extent *extent, const struct iovec *from)
{
    struct cursor cursor = {from, 0};
    uint64_t offset = extent->offset, end = offset + extent->length;
    size_t at = find(pieces, offset);
    while (offset < end) {
        const struct piece *piece = at < pieces->count ? &pieces->list[at] : NULL;
        uint64_t stop = end;
        if (piece && piece->offset <= offset) {
            stop = piece->offset + piece->length < end ? piece->offset + piece->length : end;
            cursor_copy(&cursor, pieces->memory + piece->at + (offset - piece->offset), stop - offset);
            at++;
        } else {
            if (piece && piece->offset < end)
                stop = piece->offset;
            cursor_copy(&cursor, pieces->memory + pieces->filled, stop - offset);
            at = add_new(pieces, at, offset, stop - offset);
        }
        offset = stop;
    }
}

void pieces_clear(struct pieces *pieces)
{
    pieces->filled = pieces->count = 0;
}

size_t pieces_list(const struct pieces *pieces, struct extent *extents, struct iovec *memory)
{
    size_t count = 0;
    for (size_t index = 0; index < pieces->count; index++) {
        const struct piece *piece = &pieces->list[index];
        memory[index] = (struct iovec){pieces->memory + piece->at, piece->length};
        if (count && extents[count - 1].offset + extents[count - 1].length == piece->offset)
            extents[count - 1].length += piece->length;
        else
            extents[count++] = (struct extent){piece->offset, piece->length};
    }
    return count;
}
