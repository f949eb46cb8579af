/* Calls that the mount carries out as it always does: a file's buffer is looked after before and after. */
#include "buffer.h"
#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

/* `use` of `fd` by a call of the C library; `unless` it is no such use. */
#define AROUND(type, function, parameters, fd, use, unless, call)             \
    EXPORT type function parameters                                           \
    {                                                                         \
        int error = (unless) ? 0 : buffer_before(fd, use);                    \
        if (error) {                                                          \
            errno = error;                                                    \
            return -1;                                                        \
        }                                                                     \
        type done = REAL(function) call;                                      \
        if (!(unless))                                                        \
            buffer_after(fd, use);                                            \
        return done;                                                          \
    }

/* -------------------------------------------------------------------------------------------------------------- sizes */

int __fxstat(int version, int fd, struct stat *found);
int __fxstat64(int version, int fd, struct stat64 *found);

AROUND(int, fstat, (int fd, struct stat *found), fd, USE_LOOK, false, (fd, found))
AROUND(int, fstat64, (int fd, struct stat64 *found), fd, USE_LOOK, false, (fd, found))
AROUND(int, __fxstat, (int version, int fd, struct stat *found), fd, USE_LOOK, false, (version, fd, found))
AROUND(int, __fxstat64, (int version, int fd, struct stat64 *found), fd, USE_LOOK, false, (version, fd, found))
AROUND(int, statx,
       (int fd, const char *restrict name, int flags, unsigned mask, struct statx *restrict found),
       fd, USE_LOOK, !(flags & AT_EMPTY_PATH), (fd, name, flags, mask, found))
AROUND(int, fstatat, (int fd, const char *restrict name, struct stat *restrict found, int flags),
       fd, USE_LOOK, !(flags & AT_EMPTY_PATH), (fd, name, found, flags))

AROUND(off_t, lseek, (int fd, off_t offset, int whence), fd, USE_LOOK, whence == SEEK_SET || whence == SEEK_CUR,
       (fd, offset, whence))
EXPORT __typeof__(lseek) lseek64 __attribute__((alias("lseek")));

AROUND(int, ftruncate, (int fd, off_t size), fd, USE_RESIZE, false, (fd, size))
EXPORT __typeof__(ftruncate) ftruncate64 __attribute__((alias("ftruncate")));

AROUND(int, fallocate, (int fd, int mode, off_t offset, off_t size), fd, USE_RESIZE, false, (fd, mode, offset, size))
EXPORT __typeof__(fallocate) fallocate64 __attribute__((alias("fallocate")));

EXPORT int posix_fallocate(int fd, off_t offset, off_t size) /* returns its errno */
{
    int error = buffer_before(fd, USE_RESIZE);
    if (error)
        return error;
    error = REAL(posix_fallocate)(fd, offset, size);
    buffer_after(fd, USE_RESIZE);
    return error;
}

EXPORT __typeof__(posix_fallocate) posix_fallocate64 __attribute__((alias("posix_fallocate")));

/* -------------------------------------------------------------------------------------------------------------- locks */

static int lock_with(int fd, enum use use, int failed)
{
    if (!failed)
        buffer_after(fd, use);
    return failed;
}

EXPORT int flock(int fd, int operation)
{
    enum use use = operation & LOCK_UN ? USE_UNLOCK : USE_LOCK;
    buffer_before(fd, use);
    return lock_with(fd, use, REAL(flock)(fd, operation));
}

EXPORT int lockf(int fd, int command, off_t size)
{
    enum use use = command == F_ULOCK ? USE_UNLOCK : USE_LOCK;
    if (command == F_TEST)
        return REAL(lockf)(fd, command, size);
    buffer_before(fd, use);
    return lock_with(fd, use, REAL(lockf)(fd, command, size));
}

EXPORT __typeof__(lockf) lockf64 __attribute__((alias("lockf")));

/* ------------------------------------------------------------------------------------- bytes that the kernel moves */

/* From one descriptor to another. */
#define BETWEEN(type, function, parameters, from, to, call)                   \
    EXPORT type function parameters                                           \
    {                                                                         \
        int error = buffer_before(from, USE_MOUNT);                           \
        if (!error)                                                           \
            error = buffer_before(to, USE_MOUNT);                             \
        if (error) {                                                          \
            errno = error;                                                    \
            return -1;                                                        \
        }                                                                     \
        type done = REAL(function) call;                                      \
        buffer_after(to, USE_MOUNT);                                          \
        return done;                                                          \
    }

BETWEEN(ssize_t, sendfile, (int to, int from, off_t *offset, size_t size), from, to, (to, from, offset, size))
EXPORT __typeof__(sendfile) sendfile64 __attribute__((alias("sendfile")));

BETWEEN(ssize_t, splice, (int from, off64_t *from_offset, int to, off64_t *to_offset, size_t size, unsigned flags),
        from, to, (from, from_offset, to, to_offset, size, flags))
BETWEEN(ssize_t, copy_file_range,
        (int from, off64_t *from_offset, int to, off64_t *to_offset, size_t size, unsigned flags), from, to,
        (from, from_offset, to, to_offset, size, flags))
