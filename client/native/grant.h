/* Grants: the mount's word on a descriptor, got by ioctl (client/programs.py), renewed before they end. */
#ifndef NACRE_GRANT_H
#define NACRE_GRANT_H

#include "wire.h"

/* Asks the mount for a grant of an open file; NULL with errno. `afresh`: the servers were not where it said last. */
struct grant *grant_ask(int fd, bool afresh);

/* Tells the mount that the grant will not be used any more, so that it may cache the file again. */
void grant_give_back(int fd);

struct grant *grant_keep(struct grant *grant);
void grant_drop(struct grant *grant);

/* Whether it is time for a new one. */
bool grant_is_old(const struct grant *grant);

/* The address of an OST's server, `host:port`; NULL if it has none that we can reach. */
const char *grant_address(const struct grant *grant, uint32_t ost);

#endif
