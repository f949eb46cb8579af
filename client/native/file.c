#include "file.h"

#include "buffer.h"
#include "connection.h"
#include "mounts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    DESCRIPTORS = 65536, /* higher ones are the mount's business */
    EARNEST_BYTES = 16384,
    EARNEST_USES = 4,
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct file *files[DESCRIPTORS];
static int files_end; /* no file stands here or above */
static pid_t owner;   /* who may use all this: not the child of a vfork, which runs in its parent's memory */

/* ------------------------------------------------------------------------------------------------------------ forks */

static void before_fork(void)
{
    buffer_send_all();
    pthread_mutex_lock(&mutex);
    connection_lock();
}

static void after_fork(void)
{
    connection_unlock();
    pthread_mutex_unlock(&mutex);
}

/* The descriptors are the child's too, the connections are not. */
static void after_fork_in_child(void)
{
    owner = getpid();
    connection_forget_all();
    for (int fd = 0; fd < files_end; fd++)
        if (files[fd]) {
            pthread_mutex_init(&files[fd]->position, NULL);
            buffer_forget(files[fd]->buffer);
        }
    pthread_mutex_init(&mutex, NULL);
}

__attribute__((constructor)) static void prepare(void)
{
    owner = getpid();
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

/* -------------------------------------------------------------------------------------------------------- the table */

static struct file *at(int fd)
{
    struct file *file = fd >= 0 && fd < DESCRIPTORS ? __atomic_load_n(&files[fd], __ATOMIC_RELAXED) : NULL;
    return file && getpid() == owner ? file : NULL;
}

static void put_locked(struct file *file)
{
    if (--file->refs)
        return;
    buffer_free(file->buffer);
    grant_drop(file->grant);
    free(file->written);
    free(file);
}

static void set_locked(int fd, struct file *file)
{
    struct file *before = files[fd];
    __atomic_store_n(&files[fd], file, __ATOMIC_RELAXED);
    if (file && fd >= files_end)
        files_end = fd + 1;
    if (before)
        put_locked(before);
}

void file_put(struct file *file)
{
    pthread_mutex_lock(&mutex);
    put_locked(file);
    pthread_mutex_unlock(&mutex);
}

void file_closing(int fd)
{
    if (!at(fd))
        return;
    pthread_mutex_lock(&mutex);
    set_locked(fd, NULL);
    pthread_mutex_unlock(&mutex);
}

void file_closing_range(unsigned first, unsigned last)
{
    if (getpid() != owner)
        return;
    pthread_mutex_lock(&mutex);
    for (unsigned fd = first; fd <= last && fd < (unsigned)files_end; fd++)
        set_locked((int)fd, NULL);
    pthread_mutex_unlock(&mutex);
}

void file_duplicated(int from, int to)
{
    if (from == to || (!at(from) && !at(to)))
        return;
    pthread_mutex_lock(&mutex);
    struct file *file = at(from);
    if (to >= 0 && to < DESCRIPTORS) {
        if (file)
            file->refs++;
        set_locked(to, file);
    }
    pthread_mutex_unlock(&mutex);
}

/* -------------------------------------------------------------------------------------------------------- deciding */

static bool switched_off(void)
{
    static int off = -1;
    if (off < 0) {
        const char *word = getenv("NACRE_IO");
        off = word && !strcmp(word, "off");
    }
    return off;
}

static bool always_earnest(void)
{
    static int all = -1;
    if (all < 0) {
        const char *word = getenv("NACRE_IO");
        all = word && !strcmp(word, "all");
    }
    return all;
}

/* Asks the mount, without the lock; what it says decides. */
static void decide(struct file *file, int fd)
{
    struct grant *grant = grant_ask(fd, false);
    uint64_t *written = grant ? calloc(grant->layout.stripe_count, sizeof *written) : NULL;
    if (grant && !written) {
        grant_drop(grant);
        grant = NULL;
    }
    trace("descriptor %d: %s", fd, grant ? "ours" : strerror(errno));
    pthread_mutex_lock(&mutex);
    if (file->state == FILE_UNDECIDED) {
        file->state = grant ? FILE_OURS : FILE_MOUNT;
        file->grant = grant;
        file->written = written;
        grant = NULL;
        written = NULL;
    }
    pthread_mutex_unlock(&mutex);
    free(written);
    grant_drop(grant);
}

void file_opened(int fd, int flags, bool eagerly)
{
    if (fd < 0 || fd >= DESCRIPTORS || getpid() != owner)
        return;
    file_closing(fd); /* a close that we have not seen */
    if (flags & (O_DIRECTORY | O_PATH | O_APPEND) || switched_off() || !mounts_have(fd))
        return;
    struct file *file = calloc(1, sizeof *file);
    if (!file)
        return;
    int access = flags & O_ACCMODE;
    file->refs = 2; /* the table's, and ours here */
    file->state = FILE_UNDECIDED;
    file->rights = (access != O_WRONLY ? RIGHT_READ : 0) | (access != O_RDONLY ? RIGHT_WRITE : 0);
    pthread_mutex_init(&file->position, NULL);
    pthread_mutex_lock(&mutex);
    set_locked(fd, file);
    pthread_mutex_unlock(&mutex);
    if (eagerly || always_earnest())
        decide(file, fd);
    file_put(file);
}

struct file *file_of(int fd)
{
    if (!at(fd))
        return NULL;
    pthread_mutex_lock(&mutex);
    struct file *file = at(fd);
    if (file)
        file->refs++;
    pthread_mutex_unlock(&mutex);
    return file;
}

int file_next(int fd)
{
    while (fd < files_end && !at(fd))
        fd++;
    return fd < files_end ? fd : -1;
}

struct file *file_serving(int fd, size_t bytes, int right)
{
    struct file *file = file_of(fd);
    if (!file)
        return NULL;
    if (file->state == FILE_UNDECIDED && (bytes >= EARNEST_BYTES || ++file->uses >= EARNEST_USES))
        decide(file, fd);
    if (file->state == FILE_OURS && file->rights & right)
        return file;
    file_put(file);
    return NULL;
}

struct grant *file_grant(struct file *file, int fd, const struct grant *stale)
{
    pthread_mutex_lock(&mutex);
    struct grant *grant = file->grant ? grant_keep(file->grant) : NULL;
    pthread_mutex_unlock(&mutex);
    if (grant && grant != stale && !grant_is_old(grant))
        return grant;
    grant_drop(grant);
    struct grant *fresh = grant_ask(fd, stale != NULL);
    if (!fresh)
        return NULL;
    trace("descriptor %d: a new grant, session %llu", fd, (unsigned long long)fresh->ticket.session);
    pthread_mutex_lock(&mutex);
    if (file->grant && fresh->layout.stripe_count != file->grant->layout.stripe_count) {
        pthread_mutex_unlock(&mutex);
        grant_drop(fresh);
        errno = ESTALE;
        return NULL;
    }
    grant = file->grant;
    file->grant = grant_keep(fresh);
    pthread_mutex_unlock(&mutex);
    grant_drop(grant);
    return fresh;
}

void file_hand_back(int fd)
{
    if (!at(fd))
        return;
    pthread_mutex_lock(&mutex);
    struct file *file = at(fd);
    bool was_ours = file && file->state == FILE_OURS;
    if (file)
        file->state = FILE_MOUNT;
    pthread_mutex_unlock(&mutex);
    if (was_ours)
        grant_give_back(fd);
}

/* --------------------------------------------------------------------------------------------------------- written */

void file_wrote(struct file *file, uint32_t stripe, uint64_t version)
{
    uint64_t known = __atomic_load_n(&file->written[stripe], __ATOMIC_RELAXED);
    while (known < version && !__atomic_compare_exchange_n(&file->written[stripe], &known, version, true,
                                                           __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

uint64_t file_take_written(struct file *file, uint32_t stripe)
{
    return __atomic_exchange_n(&file->written[stripe], 0, __ATOMIC_RELAXED);
}
