/* Connections to OSSes: made with a ticket, used by one thread at a time, kept for the next.
 *
 * A connection has a name of its own, under which the server remembers which requests it has carried out: what had no
 * answer when the link broke is sent again over the next one, under the same name and number, and happens once. */
#ifndef NACRE_CONNECTION_H
#define NACRE_CONNECTION_H

#include "grant.h"

struct connection {
    struct connection *next;
    int fd; /* -1 while there is no link */
    uint64_t next_xid, session;
    char address[TEXT_BYTES];
    char name[80];
    size_t filled, taken; /* what has been received into `buffer`, and what of that is used up */
    uint8_t buffer[16384];
};

/* A connection for a server at `address`, perhaps one that is open already; NULL with errno ENOMEM. */
struct connection *connection_take(const char *address, const struct grant *grant);

/* Opens the link unless it is open: 0, or an errno. Waits at most until `deadline_ms` (of `clock_ms`). */
int connection_open(struct connection *connection, const struct grant *grant, int64_t deadline_ms);

/* The link is of no use any more. */
void connection_break(struct connection *connection);

/* Done with it: it is kept if its link is open and nothing is outstanding on it (`clean`). */
void connection_give(struct connection *connection, bool clean);

/* Whether a descriptor is the library's own, which the program must not close. */
bool connection_owns(int fd);

/* After a fork, in the child: the parent's connections are not ours. */
void connection_forget_all(void);
void connection_lock(void);
void connection_unlock(void);

/* Milliseconds of a clock that only goes forward. */
int64_t clock_ms(void);

/* A line for whoever debugs, if the environment has NACRE_IO_LOG. */
void trace(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
