#include "transfer.h"

#include "plan.h"
#include "real.h"
#include "sums.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { TIMEOUT_S = 120, DAMAGED_TRIES = 3, DELAY_MAX_MS = 500 };

/* One transfer from its first try to its last. */
struct transfer {
    struct file *file;
    int fd;
    int right; /* 0: sync */
    const struct extent *extents;
    size_t count;
    const struct iovec *memory;
    bool sync;
    bool missing; /* some of what was to be read is not there */
};

static int64_t timeout_ms(void)
{
    static int64_t known;
    if (!known) {
        const char *word = getenv("NACRE_IO_TIMEOUT_S");
        long seconds = word ? strtol(word, NULL, 10) : 0;
        known = (seconds > 0 && seconds < 1000000 ? seconds : TIMEOUT_S) * INT64_C(1000);
    }
    return known;
}

/* ------------------------------------------------------------------------------------------------------- requests */

static size_t sums_bytes(const struct part *part)
{
    size_t count = 0;
    for (size_t index = 0; index < part->extent_count; index++)
        count += sums_count(part->extents[index].offset, part->extents[index].length);
    return count * SUM_BYTES;
}

static int pack_part(struct part *part, const struct transfer *transfer, const struct grant *grant)
{
    struct request *request = &part->request;
    struct object object = {grant->layout.osts[part->stripe], part->stripe, grant};
    size_t sums = transfer->right == RIGHT_WRITE ? sums_bytes(part) : 0;
    size_t room = 128 + 20 * part->extent_count + sums;
    if (!(request->body = malloc(room)))
        return ENOMEM;
    struct cursor cursor = {part->memory, 0};
    if (transfer->right == RIGHT_READ) {
        request->into = cursor;
        request->into_bytes = part->bytes;
        request->body_bytes = wire_read(request->body, room, &object, part->extents, part->extent_count);
    } else if (transfer->right == RIGHT_WRITE) {
        uint8_t *at;
        request->out = cursor;
        request->out_bytes = part->bytes;
        request->body_bytes = wire_write(request->body, room, &object, part->extents, part->extent_count, sums, &at,
                                         transfer->sync || grant->sync);
        for (size_t index = 0; request->body_bytes && index < part->extent_count; index++) {
            const struct extent *extent = &part->extents[index];
            sums_make(at, &cursor, extent->offset, extent->length);
            at += sums_count(extent->offset, extent->length) * SUM_BYTES;
        }
    } else {
        request->body_bytes = wire_sync(request->body, room, &object, part->version);
    }
    return request->body_bytes ? 0 : EMSGSIZE;
}

/* -------------------------------------------------------------------------------------------------------- answers */

/* Verifies what came, and makes what did not come zeros: 0, EPROTO, ENOMEM, or EBADMSG. */
static int take_data(struct part *part, struct transfer *transfer)
{
    struct request *request = &part->request;
    struct bytes sums;
    uint64_t few[8], *lengths = few;
    if (part->extent_count > 8 && !(lengths = malloc(part->extent_count * sizeof *lengths)))
        return ENOMEM;
    int error = 0;
    uint64_t total = 0;
    if (!wire_data(request->reply, request->reply_bytes, lengths, part->extent_count, &sums))
        error = EPROTO;
    /* The bulk fills the extents in order, so nothing may follow one that is not full. */
    for (size_t index = 0; !error && index < part->extent_count; index++) {
        uint64_t wanted = part->extents[index].length;
        if (lengths[index] > wanted || (index && lengths[index] && lengths[index - 1] < part->extents[index - 1].length))
            error = EPROTO;
        total += lengths[index];
    }
    if (total != request->bulk_bytes)
        error = EPROTO;
    struct cursor cursor = request->into;
    const uint8_t *at = sums.data, *end = error ? NULL : sums.data + sums.size;
    for (size_t index = 0; !error && index < part->extent_count; index++) {
        uint64_t offset = part->extents[index].offset, length = lengths[index];
        size_t size = sums_count(offset, length) * SUM_BYTES;
        if ((size_t)(end - at) < size)
            error = EPROTO;
        else if (length && !sums_match(at, &cursor, offset, length))
            error = EBADMSG;
        at += size;
        if (!error && length < part->extents[index].length) {
            transfer->missing = true;
            cursor_zero(&cursor, part->extents[index].length - length);
        }
    }
    if (lengths != few)
        free(lengths);
    return error;
}

/* Notes what an fsync will have to make durable. */
static int take_written(const struct part *part, const struct transfer *transfer)
{
    uint64_t version;
    if (!wire_written(part->request.reply, part->request.reply_bytes, &version))
        return EPROTO;
    file_wrote(transfer->file, part->stripe, version ? version : 1);
    return 0;
}

static int take_answers(struct plan *plan, struct transfer *transfer)
{
    int first = 0;
    transfer->missing = false;
    for (size_t index = 0; index < plan->count; index++) {
        struct part *part = plan->parts[index];
        int error = part->request.error;
        if (!error && transfer->right == RIGHT_READ)
            error = take_data(part, transfer);
        if (!error && transfer->right == RIGHT_WRITE)
            error = take_written(part, transfer);
        if (error && !first)
            first = error;
    }
    return first;
}

/* ---------------------------------------------------------------------------------------------------------- tries */

static int plan_transfer(struct plan *plan, const struct transfer *transfer, const struct grant *grant)
{
    if (transfer->right)
        return plan_cut(plan, &grant->layout, transfer->extents, transfer->count, transfer->memory);
    for (uint32_t stripe = 0; stripe < grant->layout.stripe_count; stripe++) {
        uint64_t version = file_take_written(transfer->file, stripe);
        struct part *part = version ? plan_add(plan, stripe) : NULL;
        if (version && !part) {
            file_wrote(transfer->file, stripe, version);
            return ENOMEM;
        }
        if (part)
            part->version = version;
    }
    return 0;
}

static int try_once(struct transfer *transfer, const struct grant *grant, int64_t deadline_ms)
{
    struct plan plan = {0};
    int error = plan_transfer(&plan, transfer, grant);
    if (!error && plan.count)
        error = plan_lanes(&plan, grant);
    for (size_t index = 0; !error && index < plan.count; index++)
        error = pack_part(plan.parts[index], transfer, grant);
    if (!error && plan.count)
        error = wave_run(plan.lanes, plan.lane_count, grant, deadline_ms);
    if (!error)
        error = take_answers(&plan, transfer);
    /* What is lost for good is said once: the next fsync speaks of what is written after this. */
    if (error && !transfer->right && error != ENOTRECOVERABLE)
        for (size_t index = 0; index < plan.count; index++)
            file_wrote(transfer->file, plan.parts[index]->stripe, plan.parts[index]->version);
    plan_free(&plan);
    return error;
}

/* Whether a new grant may help: the old one is over, its session is, or servers are not where they were. */
static bool wants_new_grant(int error)
{
    return error == EKEYEXPIRED || error == ESTALE || error == ESHUTDOWN || error == ENXIO || error == EHOSTDOWN ||
           error == EACCES;
}

static int transfer_run(struct transfer *transfer)
{
    int64_t deadline_ms = clock_ms() + timeout_ms();
    const struct grant *stale = NULL;
    struct grant *grant = NULL;
    int damaged = 0, delay_ms = 0, refused = 0, error;
    for (size_t index = 0; index < transfer->count; index++)
        trace("%s %llu+%llu", transfer->right == RIGHT_WRITE ? "write" : "read",
              (unsigned long long)transfer->extents[index].offset, (unsigned long long)transfer->extents[index].length);
    for (;;) {
        struct grant *next = file_grant(transfer->file, transfer->fd, stale);
        error = next ? 0 : errno;
        grant_drop(grant);
        grant = next;
        stale = NULL;
        if (!error)
            error = try_once(transfer, grant, deadline_ms);
        else if (error == ENOTTY || error == EOPNOTSUPP || error == EBADF)
            break; /* the mount does not serve programs any more */
        if (!error)
            break;
        trace("descriptor %d: %s", transfer->fd, strerror(error));
        if (error == EBADMSG && ++damaged < DAMAGED_TRIES)
            continue;
        if (error == EACCES && ++refused > 3)
            break;
        if (wants_new_grant(error))
            stale = grant;
        else if (error != EAGAIN && error != ENOTCONN)
            break;
        if (clock_ms() + delay_ms >= deadline_ms) {
            error = ETIMEDOUT;
            break;
        }
        if (delay_ms)
            poll(NULL, 0, delay_ms);
        delay_ms = delay_ms ? 2 * delay_ms : 20;
        if (delay_ms > DELAY_MAX_MS)
            delay_ms = DELAY_MAX_MS;
    }
    grant_drop(grant);
    return error == EBADMSG || error == EPROTO || error == ETIMEDOUT || error == ENOTRECOVERABLE ? EIO : error;
}

int transfer_write(struct file *file, int fd, const struct extent *extents, size_t count, const struct iovec *memory,
                   bool sync)
{
    struct transfer transfer = {file, fd, RIGHT_WRITE, extents, count, memory, sync, false};
    return transfer_run(&transfer);
}

int transfer_sync(struct file *file, int fd)
{
    struct transfer transfer = {.file = file, .fd = fd};
    return transfer_run(&transfer);
}

int transfer_read(struct file *file, int fd, const struct extent *extents, size_t count, const struct iovec *memory,
                  uint64_t *size)
{
    struct transfer transfer = {file, fd, RIGHT_READ, extents, count, memory, false, false};
    *size = UINT64_MAX;
    for (int attempt = 0; attempt < 2; attempt++) {
        int error = transfer_run(&transfer);
        if (error || !transfer.missing)
            return error;
        uint64_t known = *size;
        struct statx found;
        if (REAL(statx)(fd, "", AT_EMPTY_PATH, STATX_SIZE, &found) < 0)
            return errno;
        *size = found.stx_size;
        bool inside = false; /* something that is missing may lie before the end of the file */
        for (size_t index = 0; index < count; index++)
            inside |= extents[index].offset < *size;
        if (!inside || known != UINT64_MAX)
            return 0;
        /* It may have been written after we had read: what is missing now, that we know the size, is a hole. */
    }
    return 0;
}
