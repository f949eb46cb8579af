#include "mounts.h"

#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define FSTYPE "fuse.nacre"
#define PREFIX "nacre:"
enum { MOUNTS_MAX = 16, OTHERS_MAX = 32 };

struct mount {
    dev_t device;
    char path[PATH_MAX];
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct mount mounts[MOUNTS_MAX];
static int mount_count;
static dev_t others[OTHERS_MAX]; /* devices that are known not to be ours */
static int other_count;

/* Undoes the octal escapes of a path in mountinfo. */
static void unescape(char *text)
{
    char *out = text;
    for (; *text; text++) {
        unsigned code;
        if (*text == '\\' && sscanf(text + 1, "%3o", &code) == 1) {
            *out++ = (char)code;
            text += 3;
        } else {
            *out++ = *text;
        }
    }
    *out = 0;
}

/* All of a small file, with a NUL; to be freed. stdio would go through our own open. */
static char *read_whole(const char *path)
{
    int fd = REAL(open)(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    size_t room = 16384, filled = 0;
    char *text = malloc(room);
    for (;;) {
        ssize_t got = text ? REAL(read)(fd, text + filled, room - filled - 1) : -1;
        if (got <= 0)
            break;
        filled += (size_t)got;
        if (filled + 1 == room) {
            char *larger = realloc(text, room *= 2);
            if (!larger)
                break;
            text = larger;
        }
    }
    REAL(close)(fd);
    if (text)
        text[filled] = 0;
    return text;
}

static void look(void)
{
    char *text = read_whole("/proc/self/mountinfo"), *rest = text, *line;
    mount_count = 0;
    while (text && (line = strsep(&rest, "\n")) && mount_count < MOUNTS_MAX) {
        unsigned high, low;
        struct mount *mount = &mounts[mount_count];
        const char *type = strstr(line, " - " FSTYPE " ");
        if (!type || sscanf(line, "%*d %*d %u:%u %*s %4095s", &high, &low, mount->path) != 3)
            continue;
        unescape(mount->path);
        mount->device = makedev(high, low);
        mount_count++;
    }
    free(text);
}

static bool is_ours(dev_t device)
{
    for (int index = 0; index < mount_count; index++)
        if (mounts[index].device == device)
            return true;
    return false;
}

bool mounts_have(int fd)
{
    int before = errno;
    struct statx found;
    if (REAL(statx)(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &found) < 0 || !S_ISREG(found.stx_mode)) {
        errno = before;
        return false;
    }
    dev_t device = makedev(found.stx_dev_major, found.stx_dev_minor);
    pthread_mutex_lock(&mutex);
    bool ours = is_ours(device), known = ours;
    for (int index = 0; index < other_count && !known; index++)
        known = others[index] == device;
    if (!known) {
        look();
        ours = is_ours(device);
        if (!ours && other_count < OTHERS_MAX)
            others[other_count++] = device;
    }
    pthread_mutex_unlock(&mutex);
    errno = before;
    return ours;
}

static bool lies_below(const char *path, const char *mount)
{
    size_t length = strlen(mount);
    return !strncmp(path, mount, length) && (path[length] == '/' || !path[length]);
}

static bool on_a_mount(const char *path)
{
    for (int index = 0; index < mount_count; index++)
        if (lies_below(path, mounts[index].path))
            return true;
    return false;
}

const char *mounts_path(const char *name, char *space)
{
    size_t skip = sizeof PREFIX - 1;
    if (!name || strncmp(name, PREFIX, skip))
        return name;
    name += skip;
    if (*name != '/')
        return name; /* from the current directory */
    pthread_mutex_lock(&mutex);
    look();
    if (!on_a_mount(name) && mount_count == 1 &&
        snprintf(space, PATH_MAX, "%s%s", mounts[0].path, name) < PATH_MAX)
        name = space;
    pthread_mutex_unlock(&mutex);
    return name;
}

bool mounts_hold_path(const char *path)
{
    char folder[PATH_MAX], full[PATH_MAX];
    if (strlen(path) >= sizeof folder)
        return false;
    strcpy(folder, path);
    if (!realpath(folder, full)) { /* it is not there yet: what holds it counts */
        char *slash = strrchr(folder, '/');
        if (slash == folder)
            slash[1] = 0;
        else if (slash)
            *slash = 0;
        else
            strcpy(folder, ".");
        if (!realpath(folder, full))
            return false;
    }
    pthread_mutex_lock(&mutex);
    look();
    bool found = on_a_mount(full);
    pthread_mutex_unlock(&mutex);
    return found;
}
