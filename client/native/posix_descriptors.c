/* Calls that end or multiply descriptors, or use them in ways that only the mount can serve. */
#include "buffer.h"
#include "connection.h"
#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------------------------------- closing */

EXPORT int close(int fd)
{
    if (connection_owns(fd)) { /* a program that closes whatever there might be does not mean ours */
        errno = EBADF;
        return -1;
    }
    int error = buffer_before(fd, USE_CLOSE);
    file_closing(fd);
    int done = REAL(close)(fd);
    if (!error)
        return done;
    errno = error; /* it is closed all the same */
    return -1;
}

/* Closes a range, but not our own sockets. */
static int close_between(unsigned first, unsigned last, int flags)
{
    if (!(flags & (int)CLOSE_RANGE_CLOEXEC)) {
        for (int fd = file_next((int)(first < INT_MAX ? first : INT_MAX)); fd >= 0 && (unsigned)fd <= last; fd = file_next(fd + 1))
            buffer_before(fd, USE_CLOSE);
        file_closing_range(first, last);
    }
    for (unsigned fd = first; fd <= last && fd < 1u << 20; fd++)
        if (connection_owns((int)fd)) {
            if (fd > first && REAL(close_range)(first, fd - 1, flags) < 0)
                return -1;
            first = fd + 1;
        }
    return first <= last ? REAL(close_range)(first, last, flags) : 0;
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
    if (first > last) {
        errno = EINVAL;
        return -1;
    }
    return close_between(first, last, flags);
}

EXPORT void closefrom(int first)
{
    close_between(first < 0 ? 0 : (unsigned)first, UINT_MAX, 0);
}

/* ------------------------------------------------------------------------------------------------------- multiplying */

EXPORT int dup(int fd)
{
    int copy = REAL(dup)(fd);
    if (copy >= 0)
        file_duplicated(fd, copy);
    return copy;
}

EXPORT int dup2(int fd, int copy)
{
    buffer_before(copy, USE_CLOSE);
    int done = REAL(dup2)(fd, copy);
    if (done >= 0)
        file_duplicated(fd, done);
    return done;
}

EXPORT int dup3(int fd, int copy, int flags)
{
    buffer_before(copy, USE_CLOSE);
    int done = REAL(dup3)(fd, copy, flags);
    if (done >= 0)
        file_duplicated(fd, done);
    return done;
}

/* Whether the mount can serve a descriptor from now on: false with errno if it would lack bytes. */
static bool hand_back(int fd)
{
    int error = buffer_before(fd, USE_MOUNT);
    if (error)
        errno = error;
    else
        file_hand_back(fd);
    return !error;
}

static bool locks(int command, const struct flock *lock)
{
    return lock && (command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW);
}

EXPORT int fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (command == F_SETFL && (long)argument & O_APPEND && !hand_back(fd)) /* where an append goes only the mount knows */
        return -1;
    if (locks(command, argument)) {
        enum use use = ((const struct flock *)argument)->l_type == F_UNLCK ? USE_UNLOCK : USE_LOCK;
        buffer_before(fd, use);
        int failed = REAL(fcntl)(fd, command, argument);
        if (!failed)
            buffer_after(fd, use);
        return failed;
    }
    int done = REAL(fcntl)(fd, command, argument);
    if (done >= 0 && (command == F_DUPFD || command == F_DUPFD_CLOEXEC))
        file_duplicated(fd, done);
    return done;
}

EXPORT __typeof__(fcntl) fcntl64 __attribute__((alias("fcntl")));

/* ---------------------------------------------------------------------------------------------------- handing back */

EXPORT void *mmap(void *where, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (fd >= 0 && !(flags & MAP_ANONYMOUS) && !hand_back(fd))
        return MAP_FAILED;
    return REAL(mmap)(where, size, protection, flags, fd, offset);
}

EXPORT __typeof__(mmap) mmap64 __attribute__((alias("mmap")));

/* What stdio does with a descriptor we do not see, nor when it closes it. */
EXPORT FILE *fdopen(int fd, const char *mode)
{
    if (!hand_back(fd))
        return NULL;
    FILE *stream = REAL(fdopen)(fd, mode);
    if (stream)
        file_closing(fd);
    return stream;
}
