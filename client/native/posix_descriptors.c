/* Calls that end or multiply descriptors, or use them in ways that only the mount can serve. */
#include "connection.h"
#include "file.h"
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
    file_closing(fd);
    return REAL(close)(fd);
}

/* Closes a range, but not our own sockets. */
static int close_between(unsigned first, unsigned last, int flags)
{
    if (!(flags & (int)CLOSE_RANGE_CLOEXEC))
        file_closing_range(first, last);
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
    int done = REAL(dup2)(fd, copy);
    if (done >= 0)
        file_duplicated(fd, done);
    return done;
}

EXPORT int dup3(int fd, int copy, int flags)
{
    int done = REAL(dup3)(fd, copy, flags);
    if (done >= 0)
        file_duplicated(fd, done);
    return done;
}

EXPORT int fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (command == F_SETFL && (long)argument & O_APPEND)
        file_hand_back(fd); /* where an append goes only the mount knows */
    int done = REAL(fcntl)(fd, command, argument);
    if (done >= 0 && (command == F_DUPFD || command == F_DUPFD_CLOEXEC))
        file_duplicated(fd, done);
    return done;
}

EXPORT __typeof__(fcntl) fcntl64 __attribute__((alias("fcntl")));

/* ---------------------------------------------------------------------------------------------------- handing back */

EXPORT void *mmap(void *where, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (fd >= 0 && !(flags & MAP_ANONYMOUS))
        file_hand_back(fd);
    return REAL(mmap)(where, size, protection, flags, fd, offset);
}

EXPORT __typeof__(mmap) mmap64 __attribute__((alias("mmap")));

/* What stdio does with a descriptor we do not see, nor when it closes it. */
EXPORT FILE *fdopen(int fd, const char *mode)
{
    FILE *stream = REAL(fdopen)(fd, mode);
    if (stream) {
        file_hand_back(fd);
        file_closing(fd);
    }
    return stream;
}
