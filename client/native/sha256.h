/* SHA-256 (FIPS 180-4) and HMAC (RFC 2104): what the handshake proves keys with. */
#ifndef NACRE_SHA256_H
#define NACRE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32

/* HMAC-SHA256 of some text under a key of at most 64 bytes. */
void hmac_sha256(const uint8_t *key, size_t key_bytes, const uint8_t *text, size_t text_bytes,
                 uint8_t digest[SHA256_BYTES]);

#endif
