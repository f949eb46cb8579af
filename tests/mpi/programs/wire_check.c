/* Holds client/native to the vectors in vectors.h, which test_wire.py makes from common.wire: prints what differs. */
#include "frame.h"
#include "memory.h"
#include "sums.h"
#include "vectors.h"
#include "wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

static void same(const char *what, const void *got, size_t got_bytes, const void *wanted, size_t wanted_bytes)
{
    if (got_bytes != wanted_bytes || memcmp(got, wanted, wanted_bytes)) {
        printf("%s differs\n", what);
        failures++;
    }
}

static void right(const char *what, int is)
{
    if (!is) {
        printf("%s is wrong\n", what);
        failures++;
    }
}

static void handshake(const struct grant *grant)
{
    uint8_t out[4096], proof[SHA256_BYTES];
    size_t size = wire_hello(out, sizeof out, grant, CLIENT, NONCES);
    same("Hello", out, size, HELLO, sizeof HELLO);
    struct bytes nonce, shown;
    right("Challenge", wire_challenge(CHALLENGE, sizeof CHALLENGE, &nonce, &shown));
    same("its nonce", nonce.data, nonce.size, NONCES + NONCE_BYTES, NONCE_BYTES);
    wire_prove(proof, "server", grant, CLIENT, NONCES);
    same("the server's proof", proof, sizeof proof, shown.data, shown.size);
    wire_prove(proof, "client", grant, CLIENT, NONCES);
    size = wire_proof(out, sizeof out, proof);
    same("Proof", out, size, PROOF, sizeof PROOF);
}

static void requests(const struct grant *grant)
{
    uint8_t *out = malloc(1 << 20), *sums;
    struct object object = {OST, NUMBER, grant};
    size_t size = wire_read(out, 1 << 20, &object, EXTENTS, EXTENT_COUNT);
    same("Read", out, size, READ, sizeof READ);
    size = wire_write(out, 1 << 20, &object, EXTENTS, EXTENT_COUNT, sizeof SUMS, &sums, true);
    right("room for sums", sums != NULL);
    struct cursor cursor = {SCATTERED, 0};
    for (size_t index = 0; index < EXTENT_COUNT; index++) {
        sums_make(sums, &cursor, EXTENTS[index].offset, EXTENTS[index].length);
        sums += sums_count(EXTENTS[index].offset, EXTENTS[index].length) * SUM_BYTES;
    }
    same("Write", out, size, WRITE, sizeof WRITE);
    size = wire_sync(out, 1 << 20, &object, VERSION);
    same("Sync", out, size, SYNC, sizeof SYNC);
    /* What does not fit is refused, at whatever byte the room ends. */
    for (size_t room = 0; room < sizeof WRITE; room++)
        right("a full buffer", !wire_write(out, room, &object, EXTENTS, EXTENT_COUNT, sizeof SUMS, &sums, true));
    struct frame frame = {.kind = FRAME_RESENT, .xid = 0x0102030405060708, .oldest = 77, .bulk_bytes = 1234}, back;
    frame_encode(out, &frame, SYNC, sizeof SYNC);
    same("a frame's header", out, FRAME_HEADER_BYTES, HEADER, sizeof HEADER);
    right("its decoding", frame_decode(&back, HEADER) && back.kind == FRAME_RESENT && back.xid == frame.xid &&
                              back.oldest == 77 && back.bulk_bytes == 1234 && frame_body_matches(&back, SYNC));
    for (size_t byte = 0; byte < sizeof HEADER; byte++) {
        memcpy(out, HEADER, sizeof HEADER);
        out[byte] ^= 0x10;
        right("a damaged header", !frame_decode(&back, out));
    }
    free(out);
}

static void replies(void)
{
    uint64_t lengths[EXTENT_COUNT], version;
    struct bytes sums;
    char text[100];
    right("Data", wire_data(DATA, sizeof DATA, lengths, EXTENT_COUNT, &sums));
    for (size_t index = 0; index < EXTENT_COUNT; index++)
        right("its lengths", lengths[index] == EXTENTS[index].length);
    same("its sums", sums.data, sums.size, SUMS, sizeof SUMS);
    struct cursor cursor = {SCATTERED, 0};
    const uint8_t *at = sums.data;
    for (size_t index = 0; index < EXTENT_COUNT; index++) {
        right("matching sums", sums_match(at, &cursor, EXTENTS[index].offset, EXTENTS[index].length));
        at += sums_count(EXTENTS[index].offset, EXTENTS[index].length) * SUM_BYTES;
    }
    right("Written", wire_written(WRITTEN, sizeof WRITTEN, &version) && version == VERSION);
    right("Failure", wire_failure(FAILURE, sizeof FAILURE, text, sizeof text) == 28 && !strcmp(text, "no room"));
    right("a failure cut short", wire_failure(FAILURE, sizeof FAILURE - 3, text, sizeof text) == 71);
    /* Cut anywhere, or of another kind: refused, and nothing is read beyond the end (the sanitizers look). */
    for (size_t size = 0; size < sizeof DATA; size++) {
        uint8_t *cut = malloc(size + 1);
        memcpy(cut, DATA, size);
        right("Data cut short", !wire_data(cut, size, lengths, EXTENT_COUNT, &sums));
        free(cut);
    }
}

static void grants(void)
{
    struct grant grant;
    for (size_t size = 0; size < sizeof GRANT; size++) {
        uint8_t *cut = malloc(size + 1);
        memcpy(cut, GRANT, size);
        right("a grant cut short", !wire_grant(cut, size, &grant));
        free(cut);
    }
    /* Whatever a byte is changed to, it is taken or refused, and nothing else happens. */
    uint8_t *changed = malloc(sizeof GRANT);
    for (size_t byte = 0; byte < sizeof GRANT; byte++)
        for (int value = 0; value < 256; value += 5) {
            memcpy(changed, GRANT, sizeof GRANT);
            changed[byte] = (uint8_t)value;
            if (wire_grant(changed, sizeof GRANT, &grant))
                wire_grant_free(&grant);
        }
    free(changed);
}

int main(void)
{
    struct grant grant;
    right("IoGrant", wire_grant(GRANT, sizeof GRANT, &grant));
    if (failures)
        return 1;
    right("its layout", grant.layout.stripe_count == 2 && grant.layout.stripe_bytes == 131072 &&
                            grant.layout.osts[0] == 3 && grant.layout.osts[1] == OST && grant.layout.generation == 5);
    right("its address", grant.server_count == 2 && !strcmp(grant.servers[1].address, "host.example:4712") &&
                             !grant.servers[0].address[0] && grant.sync);
    handshake(&grant);
    requests(&grant);
    replies();
    grants();
    wire_grant_free(&grant);
    return failures != 0;
}
