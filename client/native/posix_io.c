/* read, write, pread, pwrite, their vectors, fsync: of files that we serve; everything else goes to the C library.
 *
 * A file's position stays the kernel's, so lseek, dup and fork need no help: a read or write without an offset asks for
 * it, and sets it afterwards. */
#include "posix_io.h"

#include "buffer.h"
#include "real.h"
#include "transfer.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8, "offsets have 64 bits here");

#define TRANSFER_MAX 0x7ffff000 /* most bytes of one read or write, as in the kernel */
#define KNOWN_FLAGS (RWF_HIPRI | RWF_DSYNC | RWF_SYNC)

static ssize_t fail(int error)
{
    errno = error;
    return -1;
}

/* How many bytes a transfer may have: -1 with errno if it cannot be. */
static ssize_t check(const struct iovec *buffers, int count, off_t offset)
{
    if (count < 0 || count > IOV_MAX || offset < 0)
        return fail(EINVAL);
    size_t total = 0;
    for (int index = 0; index < count; index++) {
        if (buffers[index].iov_len > SSIZE_MAX - total)
            return fail(EINVAL);
        total += buffers[index].iov_len;
    }
    return total < TRANSFER_MAX ? (ssize_t)total : TRANSFER_MAX;
}

ssize_t read_at(struct file *file, int fd, const struct iovec *buffers, int count, off_t offset)
{
    ssize_t total = check(buffers, count, offset);
    if (total <= 0)
        return total;
    if (offset > INT64_MAX - total)
        return fail(EINVAL);
    struct extent extent = {(uint64_t)offset, (uint64_t)total};
    uint64_t size;
    int error = buffer_read(file, fd, &extent, buffers, &size);
    if (error)
        return fail(error);
    if (size <= extent.offset)
        return 0;
    return size - extent.offset < extent.length ? (ssize_t)(size - extent.offset) : total;
}

ssize_t write_at(struct file *file, int fd, const struct iovec *buffers, int count, off_t offset, bool sync)
{
    ssize_t total = check(buffers, count, offset);
    if (total <= 0)
        return total;
    if (offset > INT64_MAX - total)
        return fail(EINVAL);
    struct extent extent = {(uint64_t)offset, (uint64_t)total};
    int error = buffer_write(file, fd, &extent, buffers, sync);
    return error ? fail(error) : total;
}

/* A transfer at an offset, or at the file's position (offset -1). False if the mount is to do it: it is not ours, or
 * the mount does not want us to do it any more. */
static bool serve(int fd, int right, const struct iovec *buffers, int count, size_t bytes, off_t offset, bool sync,
                  ssize_t *result)
{
    struct file *file = file_serving(fd, bytes, right);
    if (!file)
        return false;
    bool positioned = offset == -1;
    if (positioned) {
        pthread_mutex_lock(&file->position);
        offset = REAL(lseek)(fd, 0, SEEK_CUR);
    }
    ssize_t done = -1;
    if (!positioned || offset >= 0)
        done = right == RIGHT_READ ? read_at(file, fd, buffers, count, offset)
                                   : write_at(file, fd, buffers, count, offset, sync);
    if (positioned) {
        int before = errno;
        if (done > 0)
            REAL(lseek)(fd, offset + done, SEEK_SET);
        pthread_mutex_unlock(&file->position);
        errno = before;
    }
    file_put(file);
    bool refused = done < 0 && (errno == EOPNOTSUPP || errno == ENOTTY);
    if (refused) {
        buffer_before(fd, USE_MOUNT);
        file_hand_back(fd);
    }
    *result = done;
    return !refused;
}

static size_t total_of(const struct iovec *buffers, int count)
{
    size_t total = 0;
    for (int index = 0; index < count && index < IOV_MAX; index++)
        total += buffers[index].iov_len;
    return total;
}

/* Serves a call by name, or lets the C library. An explicit offset of -1 is an error, not the position. */
#define SERVE(fd, right, buffers, count, bytes, offset, sync, otherwise)                                 \
    do {                                                                                                 \
        ssize_t done;                                                                                    \
        return serve(fd, right, buffers, count, bytes, offset, sync, &done) ? done : otherwise;          \
    } while (0)

#define EXPLICIT(offset) ((offset) == -1 ? -2 : (offset))

EXPORT ssize_t read(int fd, void *data, size_t size)
{
    struct iovec one = {data, size};
    SERVE(fd, RIGHT_READ, &one, 1, size, -1, false, REAL(read)(fd, data, size));
}

EXPORT ssize_t write(int fd, const void *data, size_t size)
{
    struct iovec one = {(void *)data, size};
    SERVE(fd, RIGHT_WRITE, &one, 1, size, -1, false, REAL(write)(fd, data, size));
}

EXPORT ssize_t pread(int fd, void *data, size_t size, off_t offset)
{
    struct iovec one = {data, size};
    SERVE(fd, RIGHT_READ, &one, 1, size, EXPLICIT(offset), false, REAL(pread)(fd, data, size, offset));
}

EXPORT ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    struct iovec one = {(void *)data, size};
    SERVE(fd, RIGHT_WRITE, &one, 1, size, EXPLICIT(offset), false, REAL(pwrite)(fd, data, size, offset));
}

EXPORT ssize_t readv(int fd, const struct iovec *buffers, int count)
{
    SERVE(fd, RIGHT_READ, buffers, count, total_of(buffers, count), -1, false, REAL(readv)(fd, buffers, count));
}

EXPORT ssize_t writev(int fd, const struct iovec *buffers, int count)
{
    SERVE(fd, RIGHT_WRITE, buffers, count, total_of(buffers, count), -1, false, REAL(writev)(fd, buffers, count));
}

EXPORT ssize_t preadv(int fd, const struct iovec *buffers, int count, off_t offset)
{
    SERVE(fd, RIGHT_READ, buffers, count, total_of(buffers, count), EXPLICIT(offset), false,
          REAL(preadv)(fd, buffers, count, offset));
}

EXPORT ssize_t pwritev(int fd, const struct iovec *buffers, int count, off_t offset)
{
    SERVE(fd, RIGHT_WRITE, buffers, count, total_of(buffers, count), EXPLICIT(offset), false,
          REAL(pwritev)(fd, buffers, count, offset));
}

EXPORT ssize_t preadv2(int fd, const struct iovec *buffers, int count, off_t offset, int flags)
{
    if (flags & ~KNOWN_FLAGS)
        return REAL(preadv2)(fd, buffers, count, offset, flags);
    SERVE(fd, RIGHT_READ, buffers, count, total_of(buffers, count), offset, false,
          REAL(preadv2)(fd, buffers, count, offset, flags));
}

EXPORT ssize_t pwritev2(int fd, const struct iovec *buffers, int count, off_t offset, int flags)
{
    if (flags & ~KNOWN_FLAGS)
        return REAL(pwritev2)(fd, buffers, count, offset, flags);
    SERVE(fd, RIGHT_WRITE, buffers, count, total_of(buffers, count), offset, flags & (RWF_DSYNC | RWF_SYNC),
          REAL(pwritev2)(fd, buffers, count, offset, flags));
}

/* What programs call that were compiled with _FORTIFY_SOURCE. */

ssize_t __read_chk(int fd, void *data, size_t size, size_t room);
ssize_t __pread_chk(int fd, void *data, size_t size, off_t offset, size_t room);
void __chk_fail(void) __attribute__((noreturn));

EXPORT ssize_t __read_chk(int fd, void *data, size_t size, size_t room)
{
    if (size > room)
        __chk_fail();
    return read(fd, data, size);
}

EXPORT ssize_t __pread_chk(int fd, void *data, size_t size, off_t offset, size_t room)
{
    if (size > room)
        __chk_fail();
    return pread(fd, data, size, offset);
}

#define TWIN(name, of) EXPORT __typeof__(of) name __attribute__((alias(#of)))
TWIN(pread64, pread);
TWIN(pwrite64, pwrite);
TWIN(preadv64, preadv);
TWIN(pwritev64, pwritev);
TWIN(preadv64v2, preadv2);
TWIN(pwritev64v2, pwritev2);
TWIN(__pread64_chk, __pread_chk);

/* ------------------------------------------------------------------------------------------------------ durability */

/* Our bytes first, then the mount's, and the size at the MDS. */
static int sync_with(int fd, int (*through_mount)(int))
{
    int error = buffer_before(fd, USE_SYNC);
    struct file *file = file_serving(fd, 0, RIGHT_WRITE);
    if (file) {
        int failed = transfer_sync(file, fd);
        error = error ? error : failed;
        file_put(file);
    }
    int done = through_mount(fd);
    buffer_after(fd, USE_SYNC);
    return error ? (int)fail(error) : done;
}

int file_fsync(int fd)
{
    return sync_with(fd, REAL(fsync));
}

EXPORT int fsync(int fd)
{
    return file_fsync(fd);
}

EXPORT int fdatasync(int fd)
{
    return sync_with(fd, REAL(fdatasync));
}
