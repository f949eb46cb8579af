/* The MPI layer: names with the prefix, hints that become layouts, true striping reported. All else of MPI-IO is the
 * MPI library's own (ROMIO, OMPIO), which does its I/O through our POSIX layer. */
#include "mpi.h"

#include "buffer.h"
#include "connection.h"
#include "mounts.h"
#include "mpi_library.h"
#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { VALUE_BYTES = 256, HINTS_BYTES = 16384, STRIPE_UNIT = 65536 };

#define LAYOUT "nacre.layout"
#define BUFFER "nacre_buffer_size"

/* What the hints ask of a new file; 0, -1 and "" mean "the default". And of each open one: a buffer. */
struct hints {
    long factor, unit, first;
    char pool[64];
    long buffer;
};

/* What there is to report about an open file. */
struct striping {
    long factor, unit, buffer;
};

static __thread bool opening;
static __thread char wanted_layout[256];
static __thread long wanted_buffer = -1;

bool mpi_is_opening(void)
{
    return opening;
}

const char *mpi_opening_layout(void)
{
    return wanted_layout[0] ? wanted_layout : NULL;
}

long mpi_opening_buffer(void)
{
    return opening ? wanted_buffer : -1;
}

void mpi_set_layout(int fd)
{
    if (!fsetxattr(fd, LAYOUT, wanted_layout, strlen(wanted_layout), 0))
        return;
    trace("layout \"%s\" is not possible: %s", wanted_layout, strerror(errno));
    /* Hints are advice. More stripes than there are OSTs means: as many as there are. */
    char *count = strstr(wanted_layout, "stripe_count="), *rest = count ? strchr(count, ' ') : NULL;
    char all[300];
    snprintf(all, sizeof all, "stripe_count=-1%s", rest ? rest : "");
    if (count && fsetxattr(fd, LAYOUT, all, strlen(all), 0))
        trace("layout \"%s\" is not possible either: %s", all, strerror(errno));
}

/* ---------------------------------------------------------------------------------------------------------- hints */

static bool is_null(word info)
{
    const struct mpi_library *mpi = mpi_library();
    return mpi->handle_bits == 32 ? (int)info == (int)mpi->info_null : info == mpi->info_null;
}

/* One hint: of the info, or of the file that ROMIO_HINTS names, as ROMIO does it; an info goes first. */
static bool get_hint(word info, const char *file_hints, const char *key, char value[VALUE_BYTES])
{
    int found = 0;
    if (!is_null(info) && !mpi_library()->info_get(info, key, VALUE_BYTES - 1, value, &found) && found)
        return true;
    size_t length = strlen(key);
    for (const char *line = file_hints; line && *line; line = strchr(line, '\n')) {
        line += strspn(line, " \t\n");
        if (!strncmp(line, key, length) && (line[length] == ' ' || line[length] == '\t'))
            return sscanf(line + length, "%255s", value) == 1;
        if (*line == '\n' || !*line)
            continue;
    }
    return false;
}

static long get_number(word info, const char *file_hints, const char *key, long otherwise)
{
    char value[VALUE_BYTES], *end;
    if (!get_hint(info, file_hints, key, value))
        return otherwise;
    long number = strtol(value, &end, 10);
    return end == value || *end ? otherwise : number;
}

static char *romio_hints(void)
{
    const char *path = getenv("ROMIO_HINTS");
    int fd = path ? REAL(open)(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return NULL;
    char *text = calloc(1, HINTS_BYTES);
    if (text && REAL(read)(fd, text, HINTS_BYTES - 1) < 0)
        text[0] = 0;
    REAL(close)(fd);
    return text;
}

static struct hints get_hints(word info)
{
    struct hints hints = {0, 0, -1, "", -1};
    char pool[VALUE_BYTES], buffer[VALUE_BYTES], *file_hints = romio_hints();
    hints.factor = get_number(info, file_hints, "striping_factor", 0);
    hints.unit = get_number(info, file_hints, "striping_unit", 0);
    hints.first = get_number(info, file_hints, "start_iodevice", -1);
    if (hints.first < 0)
        hints.first = get_number(info, file_hints, "romio_lustre_start_iodevice", -1);
    if (get_hint(info, file_hints, "nacre_pool", pool) && strlen(pool) < sizeof hints.pool && !strpbrk(pool, " ="))
        strcpy(hints.pool, pool);
    if (get_hint(info, file_hints, BUFFER, buffer))
        hints.buffer = buffer_parse(buffer);
    if (hints.factor < -1)
        hints.factor = 0;
    if (hints.unit < 0 || hints.unit > 1L << 31)
        hints.unit = 0;
    hints.unit = (hints.unit + STRIPE_UNIT - 1) / STRIPE_UNIT * STRIPE_UNIT;
    free(file_hints);
    return hints;
}

/* The layout that hints ask for, as text; empty if they ask for nothing. */
static void format_layout(const struct hints *hints, char *text, size_t room)
{
    int used = 0;
    text[0] = 0;
    if (hints->factor)
        used += snprintf(text + used, room - (size_t)used, "stripe_count=%ld ", hints->factor);
    if (hints->unit)
        used += snprintf(text + used, room - (size_t)used, "stripe_size=%ld ", hints->unit);
    if (hints->first >= 0)
        used += snprintf(text + used, room - (size_t)used, "first_ost=%ld ", hints->first);
    if (hints->pool[0])
        snprintf(text + used, room - (size_t)used, "pool=%s", hints->pool);
}

/* -------------------------------------------------------------------------------------------------------- striping */

static bool get_striping(const char *path, struct striping *striping)
{
    char text[65536];
    ssize_t size = getxattr(path, LAYOUT, text, sizeof text - 1);
    if (size < 0)
        return false;
    text[size] = 0;
    return sscanf(text, "stripe_count=%ld stripe_size=%ld", &striping->factor, &striping->unit) == 2;
}

static void report(word info, const struct striping *striping)
{
    const struct mpi_library *mpi = mpi_library();
    char value[32];
    snprintf(value, sizeof value, "%ld", striping->factor);
    mpi->info_set(info, "striping_factor", value);
    snprintf(value, sizeof value, "%ld", striping->unit);
    mpi->info_set(info, "striping_unit", value);
    if (striping->buffer > 0) {
        snprintf(value, sizeof value, "%ld", striping->buffer);
        mpi->info_set(info, BUFFER, value);
    }
}

/* With a buffer, what is written with strides is collected piece by piece. Data sieving (read what is between, write all of
 * it) would only bring back what others have not sent yet. */
static void set_sieving(word info)
{
    char value[VALUE_BYTES], *file_hints = romio_hints();
    if (!get_hint(info, file_hints, "romio_ds_write", value))
        mpi_library()->info_set(info, "romio_ds_write", "disable");
    free(file_hints);
}

/* A multiple of the stripe count, or all processes if there are fewer: each aggregator then writes to OSTs that no
 * other one writes to. */
static void set_aggregators(word comm, word info, const struct striping *striping)
{
    const struct mpi_library *mpi = mpi_library();
    char value[VALUE_BYTES], *file_hints = romio_hints();
    int size = 1;
    if (!get_hint(info, file_hints, "cb_nodes", value) && !get_hint(info, file_hints, "cb_config_list", value)) {
        mpi->comm_size(comm, &size);
        snprintf(value, sizeof value, "%ld", striping->factor < size ? striping->factor : size);
        mpi->info_set(info, "cb_nodes", value);
    }
    free(file_hints);
}

/* ----------------------------------------------------------------------------------------------------- open files
 *
 * The striping of files that are open, by handle. A handle that was closed stays until it is used again. */

struct known {
    struct known *next;
    word file;
    struct striping striping;
    bool atomic;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct known *known;

static void remember(word file, const struct striping *striping)
{
    pthread_mutex_lock(&mutex);
    struct known *at = known;
    while (at && at->file != file)
        at = at->next;
    if (!at && striping->factor && (at = calloc(1, sizeof *at))) {
        at->file = file;
        at->next = known;
        known = at;
    }
    if (at) {
        at->striping = *striping;
        at->atomic = false;
    }
    pthread_mutex_unlock(&mutex);
}

void mpi_set_atomic(word file, bool atomic)
{
    bool some = false;
    pthread_mutex_lock(&mutex);
    for (struct known *at = known; at; at = at->next) {
        if (at->file == file)
            at->atomic = atomic;
        some |= at->atomic;
    }
    buffer_pause(some);
    pthread_mutex_unlock(&mutex);
}

static struct striping recall(word file)
{
    struct striping striping = {0, 0, 0};
    pthread_mutex_lock(&mutex);
    for (struct known *at = known; at; at = at->next)
        if (at->file == file)
            striping = at->striping;
    pthread_mutex_unlock(&mutex);
    return striping;
}

/* ----------------------------------------------------------------------------------------------------------- calls */

/* Makes a file before all processes open it, so that all can see its layout. What goes wrong here goes wrong again in
 * the open proper, which says so. */
static void make_file(word comm, const char *path)
{
    int rank = 1;
    mpi_library()->comm_rank(comm, &rank);
    if (rank)
        return;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0)
        close(fd);
}

static int open_ours(word comm, const char *path, word mode, word info, word *file)
{
    const struct mpi_library *mpi = mpi_library();
    struct hints hints = get_hints(info);
    struct striping striping = {0, 0, 0};
    word told = 0;
    format_layout(&hints, wanted_layout, sizeof wanted_layout);
    if (is_null(info) ? mpi->info_create(&told) : mpi->info_dup(info, &told))
        told = mpi->info_null;
    bool makes = mode & mpi->mode_create && !(mode & (mpi->mode_excl | mpi->mode_rdonly));
    if (makes)
        make_file(comm, path);
    /* All processes must tell ROMIO the same: nobody looks before the file is there. */
    mpi->barrier(comm);
    if (get_striping(path, &striping) && !is_null(told)) {
        report(told, &striping);
        set_aggregators(comm, told, &striping);
    }
    long buffer = hints.buffer < 0 ? buffer_of_environment() : hints.buffer;
    if (buffer && !is_null(told))
        set_sieving(told);
    wanted_buffer = buffer;
    opening = true;
    int result = mpi->file_open(comm, path, mode, told, file);
    opening = false;
    wanted_layout[0] = 0;
    if (!striping.factor && !get_striping(path, &striping))
        striping = (struct striping){0, 0, 0};
    striping.buffer = buffer;
    if (!result)
        remember(*file, &striping);
    if (!is_null(told))
        mpi->info_free(&told);
    return result;
}

static int file_open(word comm, const char *name, word mode, word info, word *file)
{
    char space[PATH_MAX];
    const char *path = mounts_path(name, space);
    /* A prefix that says how to open it is not part of the name: ROMIO's own, `ufs:`. */
    const char *bare = path && !strncmp(path, "ufs:", 4) ? path + 4 : path;
    if (opening || !bare || !mounts_hold_path(bare)) {
        const struct striping none = {0, 0, 0};
        int result = mpi_library()->file_open(comm, path, mode, info, file);
        if (!result)
            remember(*file, &none);
        return result;
    }
    return open_ours(comm, bare, (int)mode, info, file);
}

static int file_delete(const char *name, word info)
{
    char space[PATH_MAX];
    return mpi_library()->file_delete(mounts_path(name, space), info);
}

static int file_get_info(word file, word *info)
{
    int result = mpi_library()->file_get_info(file, info);
    struct striping striping = recall(file);
    if (!result && striping.factor)
        report(mpi_library()->handle_bits == 32 ? *(int *)info : *info, &striping);
    return result;
}

BOTH(File_open, (word comm, const char *name, word mode, word info, word *file),
     file_open(comm, name, mode, info, file))
BOTH(File_delete, (const char *name, word info), file_delete(name, info))
BOTH(File_get_info, (word file, word *info), file_get_info(file, info))
