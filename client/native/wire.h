/* The messages that the library sends and understands, after common/wire.py. tests/mpi/test_wire.py holds both together.
 *
 * Requests are packed into a caller's buffer: the size of the body, or 0 if it does not fit. Replies are unpacked in
 * place: false if they are not what they should be. Fields that a newer server appends are skipped. */
#ifndef NACRE_WIRE_H
#define NACRE_WIRE_H

#include "msgpack.h"
#include "sha256.h"

#include <stdbool.h>
#include <stdint.h>

#define EXTENTS_MAX 1024 /* in one request of ours; servers take 4096 */
#define NONCE_BYTES 32
#define MAC_BYTES 32
#define TEXT_BYTES 256

struct extent {
    uint64_t offset, length;
};

struct capability {
    uint64_t rights, expires_s;
    uint8_t mac[MAC_BYTES];
    size_t mac_bytes;
};

struct layout {
    uint64_t stripe_bytes;
    uint32_t stripe_count;
    uint32_t *osts; /* by stripe */
    uint64_t generation;
};

struct server {
    uint32_t ost;
    char address[TEXT_BYTES]; /* host:port */
};

struct ticket {
    char key[TEXT_BYTES];
    uint8_t secret[64];
    size_t secret_bytes;
    uint64_t session, expires_s;
};

/* `wire.IoGrant`: all that is needed for I/O on one file. Nobody changes it once it is there. */
struct grant {
    char cluster[TEXT_BYTES];
    uint64_t fid;
    struct layout layout;
    struct capability capability;
    struct server *servers;
    uint32_t server_count;
    struct ticket ticket;
    bool sync;
    int refs; /* grant.c */
};

enum { RIGHT_READ = 1, RIGHT_WRITE = 2 };

/* One object of a file, as requests name it. */
struct object {
    uint32_t ost, number;
    const struct grant *grant;
};

size_t wire_hello(uint8_t *out, size_t room, const struct grant *grant, const char *client,
                  const uint8_t nonce[NONCE_BYTES]);
bool wire_challenge(const uint8_t *body, size_t size, struct bytes *nonce, struct bytes *proof);
size_t wire_proof(uint8_t *out, size_t room, const uint8_t proof[SHA256_BYTES]);
/* What one side of a handshake proves that it has the ticket with (common/auth.py, `proof`). */
void wire_prove(uint8_t proof[SHA256_BYTES], const char *side, const struct grant *grant, const char *client,
                const uint8_t nonces[2 * NONCE_BYTES]);

size_t wire_read(uint8_t *out, size_t room, const struct object *object, const struct extent *extents, size_t count);
/* `sums` is where the caller writes the sum string. */
size_t wire_write(uint8_t *out, size_t room, const struct object *object, const struct extent *extents, size_t count,
                  size_t sums_bytes, uint8_t **sums, bool sync);
/* `version`: what the object had after the write that is to be durable. */
size_t wire_sync(uint8_t *out, size_t room, const struct object *object, uint64_t version);

/* `lengths` has room for `count` numbers, which is how many there must be. */
bool wire_data(const uint8_t *body, size_t size, uint64_t *lengths, size_t count, struct bytes *sums);
bool wire_written(const uint8_t *body, size_t size, uint64_t *version);
int wire_failure(const uint8_t *body, size_t size, char *text, size_t room); /* an errno, never 0 */

/* Fills a grant; false, with nothing to free, if it is none. Only addresses of TCP are kept. */
bool wire_grant(const uint8_t *body, size_t size, struct grant *grant);
void wire_grant_free(struct grant *grant);

#endif
