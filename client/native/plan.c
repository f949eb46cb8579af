#include "plan.h"

#include "sums.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Most bytes of one request: small enough that a server works on one while the next is on its way. */
#define REQUEST_BYTES (2u << 20)

/* Makes room for one more item in an array that begins as a few items inside its owner. */
static void *grow(void *items, void *few, size_t count, size_t *room, size_t item_bytes)
{
    if (count < *room)
        return items;
    void *larger = realloc(items == few ? NULL : items, 2 * *room * item_bytes);
    if (larger && items == few)
        memcpy(larger, few, count * item_bytes);
    if (larger)
        *room *= 2;
    return larger;
}

struct part *plan_add(struct plan *plan, uint32_t stripe)
{
    if (plan->count == plan->room) {
        size_t room = plan->room ? 2 * plan->room : 8;
        struct part **larger = realloc(plan->parts, room * sizeof *larger);
        if (!larger)
            return NULL;
        plan->parts = larger;
        plan->room = room;
    }
    struct part *part = malloc(sizeof *part);
    if (!part)
        return NULL;
    request_init(&part->request);
    part->stripe = stripe;
    part->extents = part->few_extents;
    part->extent_room = sizeof part->few_extents / sizeof *part->few_extents;
    part->memory = part->few_memory;
    part->memory_room = sizeof part->few_memory / sizeof *part->few_memory;
    part->extent_count = part->memory_count = part->bytes = part->version = 0;
    return plan->parts[plan->count++] = part;
}

/* Adds bytes to a part: 0 or ENOMEM. */
static int part_add(struct part *part, uint64_t offset, uint64_t length, struct cursor *memory)
{
    struct extent *last = part->extent_count ? &part->extents[part->extent_count - 1] : NULL;
    if (last && last->offset + last->length == offset) {
        last->length += length;
    } else {
        struct extent *extents = grow(part->extents, part->few_extents, part->extent_count, &part->extent_room,
                                      sizeof *extents);
        if (!extents)
            return ENOMEM;
        part->extents = extents;
        extents[part->extent_count++] = (struct extent){offset, length};
    }
    part->bytes += length;
    while (length) {
        struct iovec run = cursor_take(memory, length);
        struct iovec *runs = grow(part->memory, part->few_memory, part->memory_count, &part->memory_room,
                                  sizeof *runs);
        if (!runs)
            return ENOMEM;
        part->memory = runs;
        runs[part->memory_count++] = run;
        length -= run.iov_len;
    }
    return 0;
}

static bool part_takes(const struct part *part, uint64_t offset)
{
    const struct extent *last = &part->extents[part->extent_count - 1];
    return part->bytes < REQUEST_BYTES && part->extent_count < EXTENTS_MAX && offset >= last->offset + last->length;
}

/* How much of `length` bytes from `offset` still goes into a part that has `bytes`: up to the border of a checksum
 * block, where there is one. */
static uint64_t share(uint64_t offset, uint64_t length, size_t bytes)
{
    uint64_t left = REQUEST_BYTES - bytes;
    if (length <= left)
        return length;
    uint64_t over = (offset + left) % BLOCK_BYTES;
    return over < left ? left - over : left;
}

int plan_cut(struct plan *plan, const struct layout *layout, const struct extent *extents, size_t count,
             const struct iovec *memory)
{
    struct cursor cursor = {memory, 0};
    struct part *few[16] = {NULL}, **open = few;
    int error = 0;
    if (layout->stripe_count > 16 && !(open = calloc(layout->stripe_count, sizeof *open)))
        return ENOMEM;
    for (size_t index = 0; index < count && !error; index++) {
        uint64_t offset = extents[index].offset, end = offset + extents[index].length;
        while (offset < end && !error) {
            uint64_t unit = offset / layout->stripe_bytes;
            uint32_t stripe = (uint32_t)(unit % layout->stripe_count);
            uint64_t border = layout->stripe_count == 1 ? end : (unit + 1) * layout->stripe_bytes;
            struct part *part = open[stripe];
            if (!part || !part_takes(part, offset))
                part = open[stripe] = plan_add(plan, stripe);
            if (!part) {
                error = ENOMEM;
                break;
            }
            uint64_t length = share(offset, (border < end ? border : end) - offset, part->bytes);
            error = part_add(part, offset, length, &cursor);
            offset += length;
        }
    }
    if (open != few)
        free(open);
    return error;
}

int plan_lanes(struct plan *plan, const struct grant *grant)
{
    plan->lanes = calloc(plan->count, sizeof *plan->lanes);
    plan->requests = calloc(plan->count, sizeof *plan->requests);
    const char **addresses = calloc(plan->count, sizeof *addresses);
    int error = plan->lanes && plan->requests && addresses ? 0 : ENOMEM;
    for (size_t index = 0; index < plan->count && !error; index++) {
        addresses[index] = grant_address(grant, grant->layout.osts[plan->parts[index]->stripe]);
        if (!addresses[index])
            error = ENXIO;
    }
    struct request **next = plan->requests;
    for (size_t index = 0; index < plan->count && !error; index++) {
        if (!addresses[index])
            continue;
        struct lane *lane = &plan->lanes[plan->lane_count++];
        lane->address = addresses[index];
        lane->requests = next;
        for (size_t other = index; other < plan->count; other++)
            if (addresses[other] && !strcmp(addresses[other], lane->address)) {
                *next++ = &plan->parts[other]->request;
                addresses[other] = NULL;
            }
        lane->count = (int)(next - lane->requests);
    }
    free(addresses);
    return error;
}

void plan_free(struct plan *plan)
{
    for (size_t index = 0; index < plan->count; index++) {
        struct part *part = plan->parts[index];
        if (part->extents != part->few_extents)
            free(part->extents);
        if (part->memory != part->few_memory)
            free(part->memory);
        free(part->request.body);
        request_free(&part->request);
        free(part);
    }
    free(plan->parts);
    free(plan->lanes);
    free(plan->requests);
}
