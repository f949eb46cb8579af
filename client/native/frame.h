/* Frames: a header of 36 bytes, a msgpack body, then bulk bytes (docs/protocol.md; common/framing.py). */
#ifndef NACRE_FRAME_H
#define NACRE_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_HEADER_BYTES 36
#define FRAME_BODY_MAX (4u << 20)
#define FRAME_BULK_MAX (8u << 20)
#define PROTOCOL_VERSION 1

enum frame_kind {
    FRAME_HELLO = 1,
    FRAME_CHALLENGE,
    FRAME_PROOF,
    FRAME_WELCOME,
    FRAME_REQUEST,
    FRAME_RESENT,
    FRAME_REPLY,
    FRAME_FAILURE,
};

struct frame {
    enum frame_kind kind;
    uint64_t xid, oldest;
    uint32_t body_bytes, bulk_bytes, body_check;
};

/* The header of a frame with this body; `body_bytes` and `body_check` of `frame` are not looked at. */
void frame_encode(uint8_t header[FRAME_HEADER_BYTES], const struct frame *frame, const uint8_t *body,
                  size_t body_bytes);

/* False if this is not the header of a frame that we take. */
bool frame_decode(struct frame *frame, const uint8_t header[FRAME_HEADER_BYTES]);

/* Whether a body is the one that its header speaks of. */
bool frame_body_matches(const struct frame *frame, const uint8_t *body);

#endif
