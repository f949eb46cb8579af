/* xxh3-64 sums of the 64 KiB blocks that an extent touches, as they travel with data (common/checksum.py). */
#ifndef NACRE_SUMS_H
#define NACRE_SUMS_H

#include "memory.h"

#include <stdbool.h>
#include <stdint.h>

#define BLOCK_BYTES 65536u
#define SUM_BYTES 8

/* xxh3-64 of some bytes. */
uint64_t hash_bytes(const void *data, size_t size);

/* How many blocks `length` bytes of a file from `offset` touch. */
size_t sums_count(uint64_t offset, uint64_t length);

/* Writes the sums of `length` bytes that stand at `offset` of the file and at `cursor` in memory; moves the cursor. */
void sums_make(uint8_t *sums, struct cursor *cursor, uint64_t offset, uint64_t length);

/* Whether the bytes match their sums; moves the cursor. */
bool sums_match(const uint8_t *sums, struct cursor *cursor, uint64_t offset, uint64_t length);

#endif
