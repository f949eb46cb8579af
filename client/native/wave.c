#include "wave.h"

#include "frame.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { LOST_MS = 2000, DELAY_MIN_MS = 20, DELAY_MAX_MS = 500, RUNS_MAX = 64, AGAIN = -1 };

void request_init(struct request *request)
{
    memset(request, 0, offsetof(struct request, small));
}

void request_free(struct request *request)
{
    if (request->reply != request->small)
        free(request->reply);
}

/* -------------------------------------------------------------------------------------------------------- sending */

/* Gets the next request without an answer ready to be sent; false if all are on their way. */
static bool next_request(struct lane *lane)
{
    while (lane->next < lane->count && lane->requests[lane->next]->done)
        lane->next++;
    if (lane->next == lane->count)
        return false;
    struct request *request = lane->requests[lane->next];
    uint64_t oldest = 0;
    for (int index = 0; index <= lane->next && !oldest; index++)
        if (!lane->requests[index]->done)
            oldest = lane->requests[index]->xid;
    if (!request->xid)
        request->xid = lane->connection->next_xid++;
    struct frame frame = {
        .kind = request->sent ? FRAME_RESENT : FRAME_REQUEST,
        .xid = request->xid,
        .oldest = oldest ? oldest : request->xid,
        .bulk_bytes = (uint32_t)request->out_bytes,
    };
    frame_encode(lane->header, &frame, request->body, request->body_bytes);
    request->sent = true;
    lane->head_left = FRAME_HEADER_BYTES;
    lane->body_left = request->body_bytes;
    lane->bulk_left = request->out_bytes;
    lane->sending = request->out;
    return true;
}

static size_t use_up(size_t *left, size_t sent)
{
    size_t part = sent < *left ? sent : *left;
    *left -= part;
    return sent - part;
}

/* Sends what the socket takes: 0 if all is sent, AGAIN, or an errno. With several requests it never waits: the server may
 * want its answers fetched first. */
static int lane_send(struct lane *lane)
{
    int flags = MSG_NOSIGNAL | (lane->alone && lane->count == 1 ? 0 : MSG_DONTWAIT);
    for (;;) {
        if (!lane->head_left && !lane->body_left && !lane->bulk_left && !next_request(lane))
            return 0;
        const struct request *request = lane->requests[lane->next];
        struct iovec runs[RUNS_MAX + 2];
        size_t count = 0, planned = 0;
        if (lane->head_left)
            runs[count++] = (struct iovec){lane->header + FRAME_HEADER_BYTES - lane->head_left, lane->head_left};
        if (lane->body_left)
            runs[count++] = (struct iovec){request->body + request->body_bytes - lane->body_left, lane->body_left};
        struct cursor cursor = lane->sending;
        while (planned < lane->bulk_left && count < RUNS_MAX + 2) {
            runs[count] = cursor_take(&cursor, lane->bulk_left - planned);
            planned += runs[count++].iov_len;
        }
        struct msghdr message = {.msg_iov = runs, .msg_iovlen = count};
        ssize_t sent = sendmsg(lane->connection->fd, &message, flags);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return errno == EAGAIN ? AGAIN : errno;
        size_t bulk = use_up(&lane->body_left, use_up(&lane->head_left, (size_t)sent));
        cursor_skip(&lane->sending, bulk);
        lane->bulk_left -= bulk;
        if (!lane->head_left && !lane->body_left && !lane->bulk_left)
            lane->next++;
    }
}

/* ------------------------------------------------------------------------------------------------------ receiving */

static bool lane_is_sending(const struct lane *lane)
{
    return lane->head_left || lane->body_left || lane->bulk_left;
}

/* How to receive: whether that waits. */
static int receiving_flags(const struct lane *lane)
{
    return lane->alone && !lane_is_sending(lane) ? 0 : MSG_DONTWAIT;
}

/* Receives into `data`, first what is there already: how many bytes (0: the link has ended), or -1 with errno. */
static ssize_t receive(struct lane *lane, const struct iovec *runs, size_t count)
{
    struct connection *connection = lane->connection;
    int flags = receiving_flags(lane);
    size_t held = connection->filled - connection->taken;
    if (held) {
        size_t part = held < runs->iov_len ? held : runs->iov_len;
        memcpy(runs->iov_base, connection->buffer + connection->taken, part);
        connection->taken += part;
        return (ssize_t)part;
    }
    struct msghdr message = {.msg_iov = (struct iovec *)runs, .msg_iovlen = count};
    ssize_t got;
    do
        got = recvmsg(connection->fd, &message, flags == MSG_DONTWAIT ? flags : MSG_WAITALL);
    while (got < 0 && errno == EINTR);
    return got;
}

/* Takes a frame's header out of the buffer and finds whose answer it is: 0, AGAIN or an errno. */
static int begin_answer(struct lane *lane)
{
    struct connection *connection = lane->connection;
    while (connection->filled - connection->taken < FRAME_HEADER_BYTES) {
        size_t held = connection->filled - connection->taken;
        memmove(connection->buffer, connection->buffer + connection->taken, held);
        connection->taken = 0;
        connection->filled = held;
        ssize_t got = recv(connection->fd, connection->buffer + held, sizeof connection->buffer - held,
                           receiving_flags(lane));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got == 0 ? ECONNRESET : errno == EAGAIN ? AGAIN : errno;
        connection->filled += (size_t)got;
    }
    struct frame frame;
    if (!frame_decode(&frame, connection->buffer + connection->taken))
        return EPROTO;
    connection->taken += FRAME_HEADER_BYTES;
    struct request *request = NULL;
    for (int index = 0; index < lane->count && !request; index++)
        if (lane->requests[index]->sent && !lane->requests[index]->done && lane->requests[index]->xid == frame.xid)
            request = lane->requests[index];
    if (!request || (frame.kind != FRAME_REPLY && frame.kind != FRAME_FAILURE) ||
        frame.bulk_bytes > request->into_bytes)
        return EPROTO;
    request_free(request);
    request->reply = frame.body_bytes <= sizeof request->small ? request->small : malloc(frame.body_bytes);
    if (!request->reply)
        return ENOMEM;
    request->error = frame.kind == FRAME_FAILURE ? -1 : 0;
    request->reply_bytes = lane->reply_left = frame.body_bytes;
    request->bulk_bytes = lane->bulk_missing = frame.bulk_bytes;
    lane->filling = request->into;
    lane->receiving = request;
    return 0;
}

static void end_answer(struct lane *lane)
{
    struct request *request = lane->receiving;
    if (request->error) {
        char text[400];
        request->error = wire_failure(request->reply, request->reply_bytes, text, sizeof text);
        trace("%s: %s (%s)", lane->address, text, strerror(request->error));
    }
    request->done = true;
    lane->answered++;
    lane->receiving = NULL;
    lane->lost_ms = 0;
}

/* Receives what is there: 0 if all requests have been answered, AGAIN, or an errno. */
static int lane_receive(struct lane *lane)
{
    while (lane->answered < lane->count) {
        if (!lane->receiving) {
            int error = begin_answer(lane);
            if (error)
                return error;
        }
        struct request *request = lane->receiving;
        while (lane->reply_left || lane->bulk_missing) {
            struct iovec runs[RUNS_MAX];
            size_t count = 0, planned = 0;
            struct cursor cursor = lane->filling;
            if (lane->reply_left)
                runs[count++] = (struct iovec){request->reply + request->reply_bytes - lane->reply_left, lane->reply_left};
            while (planned < lane->bulk_missing && count < RUNS_MAX) {
                runs[count] = cursor_take(&cursor, lane->bulk_missing - planned);
                planned += runs[count++].iov_len;
            }
            ssize_t got = receive(lane, runs, count);
            if (got <= 0)
                return got == 0 ? ECONNRESET : errno == EAGAIN ? AGAIN : errno;
            size_t bulk = use_up(&lane->reply_left, (size_t)got);
            cursor_skip(&lane->filling, bulk);
            lane->bulk_missing -= bulk;
        }
        end_answer(lane);
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------------------- lanes */

/* The link is gone: what has no answer is sent again over the next one, a little later. EHOSTDOWN once it has been
 * gone for long. */
static int lane_lost(struct lane *lane, int error)
{
    int64_t now_ms = clock_ms();
    trace("%s: %s", lane->address, strerror(error));
    connection_break(lane->connection);
    lane->next = 0;
    lane->head_left = lane->body_left = lane->bulk_left = 0;
    lane->receiving = NULL;
    lane->reply_left = lane->bulk_missing = 0;
    if (!lane->lost_ms) {
        lane->lost_ms = now_ms;
        lane->delay_ms = 0;
    } else {
        lane->delay_ms = lane->delay_ms ? 2 * lane->delay_ms : DELAY_MIN_MS;
        if (lane->delay_ms > DELAY_MAX_MS)
            lane->delay_ms = DELAY_MAX_MS;
    }
    lane->retry_ms = now_ms + lane->delay_ms;
    return now_ms - lane->lost_ms > LOST_MS ? EHOSTDOWN : 0;
}

/* Does all that can be done now for a lane: 0, or what ends the whole wave. */
static int lane_go(struct lane *lane, const struct grant *grant, int64_t deadline_ms)
{
    int error = 0;
    if (lane->connection->fd < 0) {
        if (clock_ms() < lane->retry_ms)
            return 0;
        error = connection_open(lane->connection, grant, deadline_ms);
        if (error == EACCES || error == EPROTO)
            return error;
    }
    if (!error)
        error = lane_send(lane);
    if (!error || error == AGAIN)
        error = lane_receive(lane);
    if (!error || error == AGAIN)
        return 0;
    if (error == EPROTO || error == ENOMEM)
        return error;
    return lane_lost(lane, error);
}

/* Waits until one of the lanes can go on. */
static int wait_for_lanes(struct lane *lanes, int count, struct pollfd *entries, int64_t deadline_ms)
{
    int64_t now_ms = clock_ms(), until_ms = deadline_ms;
    int waiting = 0;
    for (int index = 0; index < count; index++) {
        struct lane *lane = &lanes[index];
        if (lane->answered == lane->count)
            continue;
        if (lane->connection->fd < 0) {
            if (lane->retry_ms < until_ms)
                until_ms = lane->retry_ms;
            continue;
        }
        entries[waiting].fd = lane->connection->fd;
        entries[waiting++].events = (short)(POLLIN | (lane_is_sending(lane) ? POLLOUT : 0));
    }
    if (now_ms >= deadline_ms)
        return ETIMEDOUT;
    int64_t left = until_ms - now_ms;
    if (poll(entries, (nfds_t)waiting, left > 0 ? (int)(left < 60000 ? left : 60000) : 0) < 0 && errno != EINTR)
        return errno;
    return 0;
}

int wave_run(struct lane *lanes, int count, const struct grant *grant, int64_t deadline_ms)
{
    struct pollfd few[16], *entries = count <= 16 ? few : calloc((size_t)count, sizeof *entries);
    int error = entries ? 0 : ENOMEM, taken = 0;
    for (; taken < count && !error; taken++) {
        lanes[taken].alone = count == 1;
        lanes[taken].connection = connection_take(lanes[taken].address, grant);
        if (!lanes[taken].connection)
            error = ENOMEM;
    }
    while (!error) {
        bool complete = true;
        for (int index = 0; index < count && !error; index++) {
            struct lane *lane = &lanes[index];
            if (lane->answered < lane->count)
                error = lane_go(lane, grant, deadline_ms);
            complete &= lane->answered == lane->count;
        }
        if (complete || error)
            break;
        error = wait_for_lanes(lanes, count, entries, deadline_ms);
    }
    for (int index = 0; index < taken; index++)
        if (lanes[index].connection)
            connection_give(lanes[index].connection, lanes[index].answered == lanes[index].count);
    if (entries != few)
        free(entries);
    return error;
}
