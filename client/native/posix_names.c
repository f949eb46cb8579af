/* Calls that take a path: names with the prefix `nacre:` are translated, and what is opened is looked at. */
#include "buffer.h"
#include "mpi.h"
#include "mounts.h"
#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static mode_t mode_behind(int flags, va_list arguments)
{
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(arguments, mode_t) : 0;
}

#define MODE_OF(mode, flags)                                                  \
    mode_t mode;                                                              \
    do {                                                                      \
        va_list arguments;                                                    \
        va_start(arguments, flags);                                           \
        mode = mode_behind(flags, arguments);                                 \
        va_end(arguments);                                                    \
    } while (0)

/* Opens a file as the program asks. One that MPI_File_open with hints makes anew gets its layout before anybody
 * writes. */
static int open_at(int folder, const char *name, int flags, mode_t mode)
{
    char space[PATH_MAX];
    const char *path = mounts_path(name, space);
    int fd = -1;
    bool made = false;
    if (flags & O_CREAT && mpi_opening_layout()) {
        fd = REAL(openat)(folder, path, flags | O_EXCL, mode);
        made = fd >= 0;
        if (fd < 0 && (errno != EEXIST || flags & O_EXCL))
            return -1;
    }
    if (fd < 0)
        fd = REAL(openat)(folder, path, flags, mode);
    if (made && mounts_have(fd))
        mpi_set_layout(fd);
    if (fd >= 0) {
        file_opened(fd, flags, mpi_is_opening());
        buffer_attach(fd, flags, mpi_opening_buffer());
    }
    return fd;
}

EXPORT int open(const char *name, int flags, ...)
{
    MODE_OF(mode, flags);
    return open_at(AT_FDCWD, name, flags, mode);
}

EXPORT int openat(int folder, const char *name, int flags, ...)
{
    MODE_OF(mode, flags);
    return open_at(folder, name, flags, mode);
}

EXPORT int creat(const char *name, mode_t mode)
{
    return open_at(AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

int __open_2(const char *name, int flags);
int __openat_2(int folder, const char *name, int flags);

EXPORT int __open_2(const char *name, int flags)
{
    return open_at(AT_FDCWD, name, flags, 0);
}

EXPORT int __openat_2(int folder, const char *name, int flags)
{
    return open_at(folder, name, flags, 0);
}

#define TWIN(name, of) EXPORT __typeof__(of) name __attribute__((alias(#of)))
TWIN(open64, open);
TWIN(openat64, openat);
TWIN(creat64, creat);
TWIN(__open64_2, __open_2);
TWIN(__openat64_2, __openat_2);

/* ------------------------------------------------------------------------------------------------ names with a prefix
 *
 * The rest of what programs do with the name that they gave to MPI_File_open. */

#define TRANSLATED(type, function, parameters, call)                          \
    EXPORT type function parameters                                           \
    {                                                                         \
        char space[PATH_MAX];                                                 \
        const char *path = mounts_path(name, space);                          \
        return REAL(function) call;                                           \
    }

int __xstat(int version, const char *name, struct stat *found);
int __lxstat(int version, const char *name, struct stat *found);
int __xstat64(int version, const char *name, struct stat64 *found);
int __lxstat64(int version, const char *name, struct stat64 *found);

TRANSLATED(int, unlink, (const char *name), (path))
TRANSLATED(int, remove, (const char *name), (path))
TRANSLATED(int, access, (const char *name, int mode), (path, mode))
TRANSLATED(int, stat, (const char *restrict name, struct stat *restrict found), (path, found))
TRANSLATED(int, lstat, (const char *restrict name, struct stat *restrict found), (path, found))
TRANSLATED(int, stat64, (const char *restrict name, struct stat64 *restrict found), (path, found))
TRANSLATED(int, lstat64, (const char *restrict name, struct stat64 *restrict found), (path, found))
TRANSLATED(int, truncate, (const char *name, off_t size), (path, size))
TRANSLATED(int, truncate64, (const char *name, off64_t size), (path, size))
TRANSLATED(int, __xstat, (int version, const char *name, struct stat *found), (version, path, found))
TRANSLATED(int, __lxstat, (int version, const char *name, struct stat *found), (version, path, found))
TRANSLATED(int, __xstat64, (int version, const char *name, struct stat64 *found), (version, path, found))
TRANSLATED(int, __lxstat64, (int version, const char *name, struct stat64 *found), (version, path, found))
