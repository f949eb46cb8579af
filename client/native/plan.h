/* An I/O cut into requests: which bytes of which object go from, or to, which place in memory. */
#ifndef NACRE_PLAN_H
#define NACRE_PLAN_H

#include "wave.h"

/* One request to one object. `extents` ascend without touching each other; `memory` are their bytes, in order. */
struct part {
    struct request request;
    uint32_t stripe;
    struct extent *extents;
    size_t extent_count, extent_room;
    struct iovec *memory;
    size_t memory_count, memory_room;
    size_t bytes;
    uint64_t version; /* of a sync: the version that is to be durable */
    struct extent few_extents[4];
    struct iovec few_memory[8];
};

struct plan {
    struct part **parts;
    size_t count, room;
    struct lane *lanes;
    struct request **requests;
    int lane_count;
};

/* Cuts extents, whose bytes stand one after the other in `memory`, into parts: 0 or ENOMEM. */
int plan_cut(struct plan *plan, const struct layout *layout, const struct extent *extents, size_t count,
             const struct iovec *memory);

/* Adds a part without bytes, for a request about a whole object. */
struct part *plan_add(struct plan *plan, uint32_t stripe);

/* Groups the parts by server: 0, ENOMEM, or ENXIO if an OST has no address. */
int plan_lanes(struct plan *plan, const struct grant *grant);

void plan_free(struct plan *plan);

#endif
