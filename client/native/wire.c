#include "wire.h"

#include "frame.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { TAG_READ = 96, TAG_WRITE = 97, TAG_SYNC = 101 };

#define STRIPES_MAX 2000

static struct packer packer_on(uint8_t *out, size_t room)
{
    return (struct packer){out, out, out + room, false};
}

static size_t packed(const struct packer *packer)
{
    return packer->full ? 0 : (size_t)(packer->at - packer->start);
}

static struct unpacker unpacker_on(const uint8_t *body, size_t size)
{
    return (struct unpacker){body, body + size, false};
}

/* An array with at least these fields; how many more there are. */
static size_t unpack_fields(struct unpacker *unpacker, size_t fields)
{
    size_t count = unpack_array(unpacker);
    if (count < fields)
        unpacker->bad = true;
    return count < fields ? 0 : count - fields;
}

/* ----------------------------------------------------------------------------------------------------- handshake */

size_t wire_hello(uint8_t *out, size_t room, const struct grant *grant, const char *client,
                  const uint8_t nonce[NONCE_BYTES])
{
    struct packer packer = packer_on(out, room);
    pack_array(&packer, 5);
    pack_uint(&packer, PROTOCOL_VERSION);
    pack_str(&packer, grant->cluster);
    pack_str(&packer, grant->ticket.key);
    pack_str(&packer, client);
    pack_bin(&packer, nonce, NONCE_BYTES);
    return packed(&packer);
}

bool wire_challenge(const uint8_t *body, size_t size, struct bytes *nonce, struct bytes *proof)
{
    struct unpacker unpacker = unpacker_on(body, size);
    unpack_fields(&unpacker, 4);
    unpack_skip(&unpacker, 2); /* version, server's name */
    *nonce = unpack_bytes(&unpacker);
    *proof = unpack_bytes(&unpacker);
    return !unpacker.bad && nonce->size == NONCE_BYTES && proof->size == SHA256_BYTES;
}

size_t wire_proof(uint8_t *out, size_t room, const uint8_t proof[SHA256_BYTES])
{
    struct packer packer = packer_on(out, room);
    pack_array(&packer, 1);
    pack_bin(&packer, proof, SHA256_BYTES);
    return packed(&packer);
}

void wire_prove(uint8_t proof[SHA256_BYTES], const char *side, const struct grant *grant, const char *client,
                const uint8_t nonces[2 * NONCE_BYTES])
{
    const char *claims[] = {"nacre hello", side, grant->cluster, grant->ticket.key, client};
    uint8_t text[5 * TEXT_BYTES + 2 * NONCE_BYTES];
    size_t size = 0;
    for (size_t index = 0; index < sizeof claims / sizeof *claims; index++) {
        size_t length = strlen(claims[index]) + 1;
        memcpy(text + size, claims[index], length);
        size += length;
    }
    memcpy(text + size, nonces, 2 * NONCE_BYTES);
    hmac_sha256(grant->ticket.secret, grant->ticket.secret_bytes, text, size + 2 * NONCE_BYTES, proof);
}

/* ------------------------------------------------------------------------------------------------------ requests */

static void pack_object(struct packer *packer, size_t fields, uint64_t tag, const struct object *object)
{
    const struct capability *capability = &object->grant->capability;
    pack_array(packer, fields);
    pack_uint(packer, tag);
    pack_uint(packer, object->ost);
    pack_uint(packer, object->grant->fid);
    pack_uint(packer, object->number);
    pack_uint(packer, object->grant->layout.generation);
    pack_array(packer, 3);
    pack_uint(packer, capability->rights);
    pack_uint(packer, capability->expires_s);
    pack_bin(packer, capability->mac, capability->mac_bytes);
}

static void pack_extents(struct packer *packer, const struct extent *extents, size_t count)
{
    pack_array(packer, count);
    for (size_t index = 0; index < count; index++) {
        pack_array(packer, 2);
        pack_uint(packer, extents[index].offset);
        pack_uint(packer, extents[index].length);
    }
}

size_t wire_read(uint8_t *out, size_t room, const struct object *object, const struct extent *extents, size_t count)
{
    struct packer packer = packer_on(out, room);
    pack_object(&packer, 7, TAG_READ, object);
    pack_extents(&packer, extents, count);
    return packed(&packer);
}

size_t wire_write(uint8_t *out, size_t room, const struct object *object, const struct extent *extents, size_t count,
                  size_t sums_bytes, uint8_t **sums, bool sync)
{
    struct packer packer = packer_on(out, room);
    pack_object(&packer, 9, TAG_WRITE, object);
    pack_extents(&packer, extents, count);
    *sums = pack_bin_room(&packer, sums_bytes);
    pack_bool(&packer, sync);
    return packed(&packer);
}

size_t wire_sync(uint8_t *out, size_t room, const struct object *object, uint64_t version)
{
    struct packer packer = packer_on(out, room);
    pack_object(&packer, 7, TAG_SYNC, object);
    pack_uint(&packer, version);
    return packed(&packer);
}

/* ------------------------------------------------------------------------------------------------------- replies */

bool wire_data(const uint8_t *body, size_t size, uint64_t *lengths, size_t count, struct bytes *sums)
{
    struct unpacker unpacker = unpacker_on(body, size);
    unpack_fields(&unpacker, 3);
    if (unpack_array(&unpacker) != count)
        return false;
    for (size_t index = 0; index < count; index++)
        lengths[index] = unpack_uint(&unpacker);
    *sums = unpack_bytes(&unpacker);
    unpack_skip(&unpacker, 1); /* version */
    return !unpacker.bad;
}

bool wire_written(const uint8_t *body, size_t size, uint64_t *version)
{
    struct unpacker unpacker = unpacker_on(body, size);
    unpack_fields(&unpacker, 3);
    unpack_skip(&unpacker, 2); /* size, allocated bytes */
    *version = unpack_uint(&unpacker);
    return !unpacker.bad;
}

int wire_failure(const uint8_t *body, size_t size, char *text, size_t room)
{
    struct unpacker unpacker = unpacker_on(body, size);
    unpack_fields(&unpacker, 2);
    uint64_t number = unpack_uint(&unpacker);
    struct bytes words = unpack_bytes(&unpacker);
    size_t length = words.size < room ? words.size : room - 1;
    memcpy(text, words.data ? (const char *)words.data : "", length);
    text[length] = 0;
    return unpacker.bad || !number || number > 4095 ? EPROTO : (int)number;
}

/* --------------------------------------------------------------------------------------------------------- grants */

/* The first `tcp://HOST:PORT` of some URLs with commas between them, without the scheme; empty if there is none. */
static void tcp_address(char address[TEXT_BYTES], const struct bytes *urls)
{
    static const char scheme[] = "tcp://";
    const char *at = (const char *)urls->data, *end = at + urls->size;
    address[0] = 0;
    while (at && at < end) {
        const char *comma = memchr(at, ',', (size_t)(end - at));
        const char *last = comma ? comma : end;
        size_t length = (size_t)(last - at), skip = sizeof scheme - 1;
        if (length > skip && !memcmp(at, scheme, skip) && length - skip < TEXT_BYTES) {
            memcpy(address, at + skip, length - skip);
            address[length - skip] = 0;
            return;
        }
        at = last + 1;
    }
}

static void unpack_layout(struct unpacker *unpacker, struct layout *layout)
{
    size_t more = unpack_fields(unpacker, 5);
    layout->stripe_bytes = unpack_uint(unpacker);
    uint64_t stripes = unpack_uint(unpacker);
    size_t osts = unpack_array(unpacker);
    if (!layout->stripe_bytes || !stripes || stripes > STRIPES_MAX || osts < stripes || osts > 16 * STRIPES_MAX ||
        !(layout->osts = calloc(stripes, sizeof *layout->osts))) {
        unpacker->bad = true;
        return;
    }
    layout->stripe_count = (uint32_t)stripes;
    for (size_t index = 0; index < osts; index++) {
        uint64_t ost = unpack_uint(unpacker);
        if (index < stripes)
            layout->osts[index] = (uint32_t)ost;
    }
    unpack_skip(unpacker, 1); /* mirrors: a mount gives no grant where there is more than one */
    layout->generation = unpack_uint(unpacker);
    unpack_skip(unpacker, more);
}

static void unpack_capability(struct unpacker *unpacker, struct capability *capability)
{
    size_t more = unpack_fields(unpacker, 3);
    capability->rights = unpack_uint(unpacker);
    capability->expires_s = unpack_uint(unpacker);
    struct bytes mac = unpack_bytes(unpacker);
    if (mac.size > MAC_BYTES) {
        unpacker->bad = true;
        return;
    }
    capability->mac_bytes = mac.size;
    memcpy(capability->mac, mac.data ? mac.data : (const uint8_t *)"", mac.size);
    unpack_skip(unpacker, more);
}

static void unpack_servers(struct unpacker *unpacker, struct grant *grant)
{
    size_t count = unpack_array(unpacker);
    if (!count || count > STRIPES_MAX || !(grant->servers = calloc(count, sizeof *grant->servers))) {
        unpacker->bad = true;
        return;
    }
    grant->server_count = (uint32_t)count;
    for (size_t index = 0; index < count; index++) {
        size_t more = unpack_fields(unpacker, 2);
        grant->servers[index].ost = (uint32_t)unpack_uint(unpacker);
        struct bytes urls = unpack_bytes(unpacker);
        tcp_address(grant->servers[index].address, &urls);
        unpack_skip(unpacker, more);
    }
}

static void unpack_ticket(struct unpacker *unpacker, struct ticket *ticket)
{
    size_t more = unpack_fields(unpacker, 4);
    unpack_text(unpacker, ticket->key, sizeof ticket->key);
    struct bytes secret = unpack_bytes(unpacker);
    if (secret.size > sizeof ticket->secret) {
        unpacker->bad = true;
        return;
    }
    ticket->secret_bytes = secret.size;
    memcpy(ticket->secret, secret.data ? secret.data : (const uint8_t *)"", secret.size);
    ticket->session = unpack_uint(unpacker);
    ticket->expires_s = unpack_uint(unpacker);
    unpack_skip(unpacker, more);
}

bool wire_grant(const uint8_t *body, size_t size, struct grant *grant)
{
    struct unpacker unpacker = unpacker_on(body, size);
    *grant = (struct grant){0};
    unpack_fields(&unpacker, 7);
    unpack_text(&unpacker, grant->cluster, sizeof grant->cluster);
    grant->fid = unpack_uint(&unpacker);
    unpack_layout(&unpacker, &grant->layout);
    unpack_capability(&unpacker, &grant->capability);
    unpack_servers(&unpacker, grant);
    unpack_ticket(&unpacker, &grant->ticket);
    grant->sync = unpack_bool(&unpacker);
    if (unpacker.bad)
        wire_grant_free(grant);
    return !unpacker.bad;
}

void wire_grant_free(struct grant *grant)
{
    free(grant->layout.osts);
    free(grant->servers);
    grant->layout.osts = NULL;
    grant->servers = NULL;
}
