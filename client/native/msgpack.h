/* The part of msgpack that our messages use (https://github.com/msgpack/msgpack/blob/master/spec.md).
 *
 * Packers and unpackers never leave their buffer. They remember that something did not fit or was not what was
 * expected, so that a caller may go on and ask once, at the end. */
#ifndef NACRE_MSGPACK_H
#define NACRE_MSGPACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct packer {
    uint8_t *start, *at, *end;
    bool full;
};

struct unpacker {
    const uint8_t *at, *end;
    bool bad;
};

/* Bytes inside a message that is being unpacked. */
struct bytes {
    const uint8_t *data;
    size_t size;
};

void pack_array(struct packer *packer, size_t count);
void pack_uint(struct packer *packer, uint64_t value);
void pack_bool(struct packer *packer, bool value);
void pack_bin(struct packer *packer, const void *data, size_t size);
void pack_str(struct packer *packer, const char *text);
/* Announces bytes that the caller then writes at the returned place itself; NULL if there is no room. */
uint8_t *pack_bin_room(struct packer *packer, size_t size);

size_t unpack_array(struct unpacker *unpacker);
uint64_t unpack_uint(struct unpacker *unpacker);
bool unpack_bool(struct unpacker *unpacker);
struct bytes unpack_bytes(struct unpacker *unpacker); /* bin or str */
void unpack_skip(struct unpacker *unpacker, size_t count);
/* Copies a str or bin into `text`, with a NUL behind it; bad if it does not fit or has a NUL inside. */
void unpack_text(struct unpacker *unpacker, char *text, size_t room);

#endif
