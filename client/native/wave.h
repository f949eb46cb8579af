/* Requests to several servers at once: all are on their way before the first answer is waited for. */
#ifndef NACRE_WAVE_H
#define NACRE_WAVE_H

#include "connection.h"
#include "memory.h"

/* One request, and its answer. Bulk goes out from `out`, or comes into `into`; at most so many bytes. */
struct request {
    uint8_t *body;
    size_t body_bytes;
    struct cursor out, into;
    size_t out_bytes, into_bytes;
    /* the answer */
    int error;
    uint8_t *reply;
    size_t reply_bytes, bulk_bytes;
    /* wave.c's own */
    uint64_t xid;
    bool sent, done;
    uint8_t small[512];
};

void request_init(struct request *request);
void request_free(struct request *request);

/* What goes to one server, over one connection, in this order. */
struct lane {
    const char *address;
    struct request **requests;
    int count;
    /* wave.c's own */
    struct connection *connection;
    int next, answered;
    bool alone; /* nothing else is to be attended to: it may wait in the system calls themselves */
    int64_t retry_ms, lost_ms;
    int delay_ms;
    size_t head_left, body_left, bulk_left;
    struct cursor sending;
    uint8_t header[36];
    struct request *receiving;
    struct cursor filling;
    size_t reply_left, bulk_missing;
};

/* Carries out all requests of all lanes. 0 if every request has an answer, which may be an error of its own;
 * otherwise EHOSTDOWN (a server is not where it was), EACCES (it does not take our ticket), ETIMEDOUT, ENOMEM, EPROTO.
 * A request that had no answer when its link broke is sent again under its number, so that it happens once. */
int wave_run(struct lane *lanes, int count, const struct grant *grant, int64_t deadline_ms);

#endif
