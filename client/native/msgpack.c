#include "msgpack.h"

#include <string.h>

/* ------------------------------------------------------------------------------------------------------- packing */

static uint8_t *room(struct packer *packer, size_t size)
{
    if (packer->full || (size_t)(packer->end - packer->at) < size) {
        packer->full = true;
        return NULL;
    }
    uint8_t *at = packer->at;
    packer->at += size;
    return at;
}

/* A type byte with `width` bytes of big-endian number behind it. */
static void put(struct packer *packer, uint8_t type, uint64_t value, int width)
{
    uint8_t *at = room(packer, 1 + (size_t)width);
    if (!at)
        return;
    *at = type;
    for (int index = width; index > 0; index--) {
        at[index] = (uint8_t)value;
        value >>= 8;
    }
}

void pack_array(struct packer *packer, size_t count)
{
    if (count < 16)
        put(packer, (uint8_t)(0x90 | count), 0, 0);
    else if (count <= 0xffff)
        put(packer, 0xdc, count, 2);
    else
        put(packer, 0xdd, count, 4);
}

void pack_uint(struct packer *packer, uint64_t value)
{
    if (value < 0x80)
        put(packer, (uint8_t)value, 0, 0);
    else if (value <= 0xff)
        put(packer, 0xcc, value, 1);
    else if (value <= 0xffff)
        put(packer, 0xcd, value, 2);
    else if (value <= 0xffffffff)
        put(packer, 0xce, value, 4);
    else
        put(packer, 0xcf, value, 8);
}

void pack_bool(struct packer *packer, bool value)
{
    put(packer, value ? 0xc3 : 0xc2, 0, 0);
}

uint8_t *pack_bin_room(struct packer *packer, size_t size)
{
    if (size <= 0xff)
        put(packer, 0xc4, size, 1);
    else if (size <= 0xffff)
        put(packer, 0xc5, size, 2);
    else
        put(packer, 0xc6, size, 4);
    return room(packer, size);
}

void pack_bin(struct packer *packer, const void *data, size_t size)
{
    uint8_t *at = pack_bin_room(packer, size);
    if (at && size)
        memcpy(at, data, size);
}

void pack_str(struct packer *packer, const char *text)
{
    size_t size = strlen(text);
    if (size < 32)
        put(packer, (uint8_t)(0xa0 | size), 0, 0);
    else if (size <= 0xff)
        put(packer, 0xd9, size, 1);
    else
        put(packer, 0xda, size, 2);
    uint8_t *at = room(packer, size);
    if (at)
        memcpy(at, text, size);
}

/* ----------------------------------------------------------------------------------------------------- unpacking */

static const uint8_t *take(struct unpacker *unpacker, size_t size)
{
    if (unpacker->bad || (size_t)(unpacker->end - unpacker->at) < size) {
        unpacker->bad = true;
        return NULL;
    }
    const uint8_t *at = unpacker->at;
    unpacker->at += size;
    return at;
}

static uint64_t number(struct unpacker *unpacker, size_t width)
{
    const uint8_t *at = take(unpacker, width);
    uint64_t value = 0;
    for (size_t index = 0; at && index < width; index++)
        value = value << 8 | at[index];
    return value;
}

static uint8_t type_of_next(struct unpacker *unpacker)
{
    const uint8_t *at = take(unpacker, 1);
    return at ? *at : 0xc1; /* 0xc1 is never used */
}

size_t unpack_array(struct unpacker *unpacker)
{
    uint8_t type = type_of_next(unpacker);
    if ((type & 0xf0) == 0x90)
        return type & 0x0f;
    if (type == 0xdc)
        return number(unpacker, 2);
    if (type == 0xdd)
        return number(unpacker, 4);
    unpacker->bad = true;
    return 0;
}

uint64_t unpack_uint(struct unpacker *unpacker)
{
    uint8_t type = type_of_next(unpacker);
    if (type < 0x80)
        return type;
    if (type >= 0xcc && type <= 0xcf)
        return number(unpacker, (size_t)1 << (type - 0xcc));
    unpacker->bad = true;
    return 0;
}

bool unpack_bool(struct unpacker *unpacker)
{
    uint8_t type = type_of_next(unpacker);
    if (type != 0xc2 && type != 0xc3)
        unpacker->bad = true;
    return type == 0xc3;
}

struct bytes unpack_bytes(struct unpacker *unpacker)
{
    uint8_t type = type_of_next(unpacker);
    size_t size = 0;
    if ((type & 0xe0) == 0xa0)
        size = type & 0x1f;
    else if (type == 0xc4 || type == 0xd9)
        size = number(unpacker, 1);
    else if (type == 0xc5 || type == 0xda)
        size = number(unpacker, 2);
    else if (type == 0xc6 || type == 0xdb)
        size = number(unpacker, 4);
    else
        unpacker->bad = true;
    const uint8_t *data = take(unpacker, size);
    return (struct bytes){data, data ? size : 0};
}

void unpack_text(struct unpacker *unpacker, char *text, size_t room_bytes)
{
    struct bytes found = unpack_bytes(unpacker);
    if (unpacker->bad || found.size >= room_bytes || memchr(found.data, 0, found.size)) {
        unpacker->bad = true;
        found.size = 0;
    } else {
        memcpy(text, found.data, found.size);
    }
    text[found.size] = 0;
}

void unpack_skip(struct unpacker *unpacker, size_t count)
{
    while (count && !unpacker->bad) {
        count--;
        uint8_t type = type_of_next(unpacker);
        if (type < 0x80 || type >= 0xe0 || (type >= 0xc0 && type <= 0xc3 && type != 0xc1))
            continue; /* small numbers, nil, booleans */
        if ((type & 0xf0) == 0x90)
            count += type & 0x0f;
        else if ((type & 0xe0) == 0xa0)
            take(unpacker, type & 0x1f);
        else if (type == 0xc4 || type == 0xd9)
            take(unpacker, number(unpacker, 1));
        else if (type == 0xc5 || type == 0xda)
            take(unpacker, number(unpacker, 2));
        else if (type == 0xc6 || type == 0xdb)
            take(unpacker, number(unpacker, 4));
        else if (type == 0xca || type == 0xcb)
            take(unpacker, type == 0xca ? 4 : 8);
        else if (type >= 0xcc && type <= 0xd3)
            take(unpacker, (size_t)1 << ((type - 0xcc) & 3));
        else if (type == 0xdc || type == 0xdd)
            count += number(unpacker, type == 0xdc ? 2 : 4);
        else
            unpacker->bad = true; /* maps and extensions: no message of ours has any */
    }
}
