#include "memory.h"

#include <string.h>

size_t memory_bytes(const struct iovec *buffers, int count)
{
    size_t total = 0;
    for (int index = 0; index < count; index++)
        total += buffers[index].iov_len;
    return total;
}

struct iovec cursor_take(struct cursor *cursor, size_t size)
{
    while (cursor->done == cursor->at->iov_len) {
        cursor->at++;
        cursor->done = 0;
    }
    size_t left = cursor->at->iov_len - cursor->done;
    struct iovec run = {(char *)cursor->at->iov_base + cursor->done, size < left ? size : left};
    cursor->done += run.iov_len;
    return run;
}

void cursor_skip(struct cursor *cursor, size_t size)
{
    while (size)
        size -= cursor_take(cursor, size).iov_len;
}

void cursor_zero(struct cursor *cursor, size_t size)
{
    while (size) {
        struct iovec run = cursor_take(cursor, size);
        memset(run.iov_base, 0, run.iov_len);
        size -= run.iov_len;
    }
}
