#include "memory.h"

#include <string.h>
#include <sys/mman.h>

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

void cursor_copy(struct cursor *cursor, uint8_t *to, size_t size)
{
    while (size) {
        struct iovec run = cursor_take(cursor, size);
        memcpy(to, run.iov_base, run.iov_len);
        to += run.iov_len;
        size -= run.iov_len;
    }
}

void cursor_fill(struct cursor *cursor, const uint8_t *from, size_t size)
{
    while (size) {
        struct iovec run = cursor_take(cursor, size);
        memcpy(run.iov_base, from, run.iov_len);
        from += run.iov_len;
        size -= run.iov_len;
    }
}

static size_t mapped;

uint8_t *memory_map(size_t size)
{
    if (__atomic_add_fetch(&mapped, size, __ATOMIC_RELAXED) <= MEMORY_MAP_MAX) {
        void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory != MAP_FAILED)
            return memory;
    }
    __atomic_sub_fetch(&mapped, size, __ATOMIC_RELAXED);
    return NULL;
}

void memory_unmap(uint8_t *memory, size_t size)
{
    munmap(memory, size);
    __atomic_sub_fetch(&mapped, size, __ATOMIC_RELAXED);
}
