#include "nacre_io.h"

#include "posix_io.h"
#include "real.h"
#include "transfer.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

_Static_assert(sizeof(struct nacre_extent) == sizeof(struct extent), "the same, by its public name");

EXPORT int nacre_io_adopt(int fd, int flags)
{
    file_opened(fd, flags, true);
    struct file *file = file_serving(fd, 0, RIGHT_READ | RIGHT_WRITE);
    if (file)
        file_put(file);
    return file != NULL;
}

EXPORT void nacre_io_drop(int fd)
{
    file_closing(fd);
}

static int serving(int fd, int right, struct file **file)
{
    *file = file_serving(fd, 0, right);
    if (!*file)
        errno = EBADF;
    return *file != NULL;
}

static uint64_t total_of(const struct nacre_extent *extents, size_t count, uint64_t end)
{
    uint64_t total = 0;
    for (size_t index = 0; index < count; index++) {
        uint64_t offset = extents[index].offset, length = extents[index].length;
        if (offset < end)
            total += end - offset < length ? end - offset : length;
    }
    return total;
}

EXPORT ssize_t nacre_io_read(int fd, const struct nacre_extent *extents, size_t count, const struct iovec *buffers)
{
    struct file *file;
    uint64_t end;
    if (!serving(fd, RIGHT_READ, &file))
        return -1;
    int error = transfer_read(file, fd, (const struct extent *)extents, count, buffers, &end);
    file_put(file);
    if (error) {
        errno = error;
        return -1;
    }
    return (ssize_t)total_of(extents, count, end);
}

EXPORT ssize_t nacre_io_write(int fd, const struct nacre_extent *extents, size_t count, const struct iovec *buffers)
{
    struct file *file;
    if (!serving(fd, RIGHT_WRITE, &file))
        return -1;
    int error = transfer_write(file, fd, (const struct extent *)extents, count, buffers, false);
    file_put(file);
    if (error) {
        errno = error;
        return -1;
    }
    return (ssize_t)total_of(extents, count, UINT64_MAX);
}

EXPORT int nacre_io_sync(int fd)
{
    return file_fsync(fd);
}
