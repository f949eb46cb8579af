#include "grant.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

enum { PROTOCOL = 1, AFRESH = 1, ANSWER_BYTES = 8192, GRANT_BYTES_MAX = 4 << 20, MARGIN_S = 10 };

/* What goes in, and what comes back: the length of the whole grant, and one part of it. */
union answer {
    struct {
        uint32_t protocol, part, flags, reserved;
    } ask;
    struct {
        uint32_t whole_bytes, bytes;
        uint8_t data[ANSWER_BYTES - 8];
    } part;
    char space[ANSWER_BYTES];
};

#define IOCTL_GRANT _IOWR('N', 0x10, union answer)
#define IOCTL_GIVE_BACK _IOW('N', 0x11, char[16])

/* The encoded grant, to be freed; NULL with errno. */
static uint8_t *fetch(int fd, bool afresh, size_t *size)
{
    union answer answer;
    uint8_t *whole = NULL;
    size_t filled = 0;
    for (uint32_t part = 0; part == 0 || filled < *size; part++) {
        memset(&answer.ask, 0, sizeof answer.ask);
        answer.ask.protocol = PROTOCOL;
        answer.ask.part = part;
        answer.ask.flags = afresh ? AFRESH : 0;
        if (ioctl(fd, IOCTL_GRANT, &answer) < 0)
            goto failed;
        if (part == 0) {
            *size = answer.part.whole_bytes;
            if (*size > GRANT_BYTES_MAX || !(whole = malloc(*size)))
                goto failed;
        }
        if (!answer.part.bytes || answer.part.bytes > sizeof answer.part.data || answer.part.bytes > *size - filled) {
            errno = EPROTO;
            goto failed;
        }
        memcpy(whole + filled, answer.part.data, answer.part.bytes);
        filled += answer.part.bytes;
    }
    return whole;
failed:
    free(whole);
    return NULL;
}

struct grant *grant_ask(int fd, bool afresh)
{
    size_t size = 0;
    uint8_t *encoded = fetch(fd, afresh, &size);
    if (!encoded)
        return NULL;
    struct grant *grant = malloc(sizeof *grant);
    if (grant && !wire_grant(encoded, size, grant)) {
        free(grant);
        grant = NULL;
        errno = EPROTO;
    }
    free(encoded);
    if (!grant)
        return NULL;
    grant->refs = 1;
    for (uint32_t index = 0; index < grant->server_count; index++)
        if (!grant->servers[index].address[0]) { /* it is not to be reached by TCP */
            grant_drop(grant);
            errno = EOPNOTSUPP;
            return NULL;
        }
    return grant;
}

void grant_give_back(int fd)
{
    char nothing[16] = {0};
    int before = errno;
    ioctl(fd, IOCTL_GIVE_BACK, nothing);
    errno = before;
}

struct grant *grant_keep(struct grant *grant)
{
    __atomic_add_fetch(&grant->refs, 1, __ATOMIC_RELAXED);
    return grant;
}

void grant_drop(struct grant *grant)
{
    if (grant && __atomic_sub_fetch(&grant->refs, 1, __ATOMIC_ACQ_REL) == 0) {
        wire_grant_free(grant);
        free(grant);
    }
}

bool grant_is_old(const struct grant *grant)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec + MARGIN_S >= grant->capability.expires_s;
}

const char *grant_address(const struct grant *grant, uint32_t ost)
{
    for (uint32_t index = 0; index < grant->server_count; index++)
        if (grant->servers[index].ost == ost)
            return grant->servers[index].address;
    return NULL;
}
