#include "frame.h"

#include "sums.h"

#define MAGIC 0x464e
#define LEAD_BYTES 32

static void put(uint8_t *at, uint64_t value, int width)
{
    for (int index = 0; index < width; index++)
        at[index] = (uint8_t)(value >> 8 * index);
}

static uint64_t get(const uint8_t *at, int width)
{
    uint64_t value = 0;
    for (int index = 0; index < width; index++)
        value |= (uint64_t)at[index] << 8 * index;
    return value;
}

void frame_encode(uint8_t header[FRAME_HEADER_BYTES], const struct frame *frame, const uint8_t *body,
                  size_t body_bytes)
{
    put(header, MAGIC, 2);
    header[2] = PROTOCOL_VERSION;
    header[3] = (uint8_t)frame->kind;
    put(header + 4, body_bytes, 4);
    put(header + 8, frame->xid, 8);
    put(header + 16, frame->oldest, 8);
    put(header + 24, frame->bulk_bytes, 4);
    put(header + 28, hash_bytes(body, body_bytes), 4);
    put(header + LEAD_BYTES, hash_bytes(header, LEAD_BYTES), 4);
}

bool frame_decode(struct frame *frame, const uint8_t header[FRAME_HEADER_BYTES])
{
    if (get(header, 2) != MAGIC || header[2] != PROTOCOL_VERSION)
        return false;
    if (get(header + LEAD_BYTES, 4) != (hash_bytes(header, LEAD_BYTES) & 0xffffffff))
        return false;
    frame->kind = header[3];
    frame->body_bytes = (uint32_t)get(header + 4, 4);
    frame->xid = get(header + 8, 8);
    frame->oldest = get(header + 16, 8);
    frame->bulk_bytes = (uint32_t)get(header + 24, 4);
    frame->body_check = (uint32_t)get(header + 28, 4);
    return header[3] >= FRAME_HELLO && header[3] <= FRAME_FAILURE && frame->body_bytes <= FRAME_BODY_MAX &&
           frame->bulk_bytes <= FRAME_BULK_MAX;
}

bool frame_body_matches(const struct frame *frame, const uint8_t *body)
{
    return (hash_bytes(body, frame->body_bytes) & 0xffffffff) == frame->body_check;
}
