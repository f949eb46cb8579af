/* POSIX asynchronous I/O on files that we serve. glibc's own does not pass through pread and pwrite, so some threads of
 * ours carry it out; control blocks of other files go to glibc. */
#include "buffer.h"
#include "posix_io.h"
#include "real.h"

#include <aio.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WORKERS_MAX = 4, FOREIGN_POLL_MS = 1 };
enum operation { READ, WRITE, SYNC };

/* The blocks of one lio_listio with LIO_NOWAIT, and what is to happen when all have ended. */
struct list {
    int left;
    struct sigevent event;
};

struct task {
    struct task *next;    /* of all that have not been asked for their result */
    struct task *waiting; /* behind this one in the queue */
    struct aiocb *block;
    struct file *file;
    enum operation operation;
    bool ended;
    int error;
    ssize_t result;
    struct list *list;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queued = PTHREAD_COND_INITIALIZER, ended = PTHREAD_COND_INITIALIZER;
static struct task *tasks, *queue, **queue_end = &queue;
static int workers, idle_workers;
static pid_t owner;

/* --------------------------------------------------------------------------------------------------------- workers */

static void notify(const struct sigevent *event)
{
    if (event->sigev_notify == SIGEV_SIGNAL)
        sigqueue(getpid(), event->sigev_signo, event->sigev_value);
    else if (event->sigev_notify == SIGEV_THREAD)
        event->sigev_notify_function(event->sigev_value);
}

static void carry_out(struct task *task)
{
    struct aiocb *block = task->block;
    struct iovec buffer = {(void *)block->aio_buf, block->aio_nbytes};
    if (task->operation == READ)
        task->result = read_at(task->file, block->aio_fildes, &buffer, 1, block->aio_offset);
    else if (task->operation == WRITE)
        task->result = write_at(task->file, block->aio_fildes, &buffer, 1, block->aio_offset, false);
    else
        task->result = fsync(block->aio_fildes);
    task->error = task->result < 0 ? errno : 0;
}

static void *work(void *nothing)
{
    buffer_suspend(true); /* MPIs carry out collective calls so: mpi.c */
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (!queue) {
            idle_workers++;
            pthread_cond_wait(&queued, &mutex);
            idle_workers--;
        }
        struct task *task = queue;
        queue = task->waiting;
        if (!queue)
            queue_end = &queue;
        pthread_mutex_unlock(&mutex);
        carry_out(task);
        file_put(task->file);
        struct sigevent event = task->block->aio_sigevent, list_event = {.sigev_notify = SIGEV_NONE};
        struct list *list = task->list;
        pthread_mutex_lock(&mutex);
        task->ended = true; /* from now on the program may free the block, and ask for the result */
        if (list && --list->left == 0) {
            list_event = list->event;
            free(list);
        }
        pthread_cond_broadcast(&ended);
        pthread_mutex_unlock(&mutex);
        notify(&event);
        notify(&list_event);
        pthread_mutex_lock(&mutex);
    }
    return nothing;
}

static bool start_worker(void)
{
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = pthread_create(&thread, NULL, work, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (started)
        pthread_detach(thread);
    return started;
}

/* ----------------------------------------------------------------------------------------------------------- tasks */

static struct task **find(const struct aiocb *block)
{
    struct task **at = &tasks;
    while (*at && (*at)->block != block)
        at = &(*at)->next;
    return at;
}

static void forget(struct task **at)
{
    struct task *task = *at;
    *at = task->next;
    free(task);
}

/* A child of fork has none of its parent's requests, and no workers. */
static void look_who_we_are(void)
{
    if (owner == getpid())
        return;
    owner = getpid();
    tasks = queue = NULL;
    queue_end = &queue;
    workers = idle_workers = 0;
}

/* Queues a task: 0, or -1 with errno. The file is the task's from now on. */
static int submit(struct file *file, enum operation operation, struct aiocb *block, struct list *list)
{
    struct task *task = calloc(1, sizeof *task);
    if (!task) {
        file_put(file);
        errno = EAGAIN;
        return -1;
    }
    task->block = block;
    task->file = file;
    task->operation = operation;
    task->list = list;
    pthread_mutex_lock(&mutex);
    look_who_we_are();
    struct task **stale = find(block); /* one that nobody asked for its result */
    if (*stale && (*stale)->ended)
        forget(stale);
    if (!idle_workers && workers < WORKERS_MAX && start_worker())
        workers++;
    if (!workers) {
        pthread_mutex_unlock(&mutex);
        file_put(file);
        free(task);
        errno = EAGAIN;
        return -1;
    }
    task->next = tasks;
    tasks = task;
    *queue_end = task;
    queue_end = &task->waiting;
    pthread_cond_signal(&queued);
    pthread_mutex_unlock(&mutex);
    return 0;
}

/* ----------------------------------------------------------------------------------------------------------- calls */

EXPORT int aio_read(struct aiocb *block)
{
    struct file *file = file_serving(block->aio_fildes, block->aio_nbytes, RIGHT_READ);
    return file ? submit(file, READ, block, NULL) : REAL(aio_read)(block);
}

EXPORT int aio_write(struct aiocb *block)
{
    struct file *file = file_serving(block->aio_fildes, block->aio_nbytes, RIGHT_WRITE);
    return file ? submit(file, WRITE, block, NULL) : REAL(aio_write)(block);
}

EXPORT int aio_fsync(int operation, struct aiocb *block)
{
    struct file *file = file_serving(block->aio_fildes, 0, RIGHT_WRITE);
    return file ? submit(file, SYNC, block, NULL) : REAL(aio_fsync)(operation, block);
}

EXPORT int aio_error(const struct aiocb *block)
{
    pthread_mutex_lock(&mutex);
    struct task *task = *find(block);
    int error = !task ? -1 : task->ended ? task->error : EINPROGRESS;
    pthread_mutex_unlock(&mutex);
    return task ? error : REAL(aio_error)(block);
}

EXPORT ssize_t aio_return(struct aiocb *block)
{
    pthread_mutex_lock(&mutex);
    struct task **at = find(block), *task = *at;
    ssize_t result = -1;
    int error = EINPROGRESS;
    if (task && task->ended) {
        result = task->result;
        error = task->error;
        forget(at);
    }
    pthread_mutex_unlock(&mutex);
    if (!task)
        return REAL(aio_return)(block);
    if (result < 0)
        errno = error;
    return result;
}

EXPORT int aio_cancel(int fd, struct aiocb *block)
{
    bool found = false, running = false;
    pthread_mutex_lock(&mutex);
    for (struct task *task = tasks; task; task = task->next)
        if (task->block == block || (!block && task->block->aio_fildes == fd)) {
            found = true;
            running |= !task->ended;
        }
    pthread_mutex_unlock(&mutex);
    if (!found)
        return REAL(aio_cancel)(fd, block);
    return running ? AIO_NOTCANCELED : AIO_ALLDONE;
}

/* Under the lock: whether one of the blocks has ended, and whether some are glibc's. */
static bool any_ended(const struct aiocb *const *blocks, int count, bool *ours, bool *foreign)
{
    bool found = false;
    *ours = *foreign = false;
    for (int index = 0; index < count; index++) {
        if (!blocks[index])
            continue;
        struct task *task = *find(blocks[index]);
        *ours |= task != NULL;
        *foreign |= task == NULL;
        found |= task ? task->ended : REAL(aio_error)(blocks[index]) != EINPROGRESS;
    }
    return found;
}

static struct timespec later(const struct timespec *by)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += by->tv_sec;
    until.tv_nsec += by->tv_nsec;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    return until;
}

static bool is_over(const struct timespec *until)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec > until->tv_sec || (now.tv_sec == until->tv_sec && now.tv_nsec >= until->tv_nsec);
}

EXPORT int aio_suspend(const struct aiocb *const blocks[], int count, const struct timespec *timeout)
{
    const struct timespec step = {0, FOREIGN_POLL_MS * 1000000L};
    struct timespec until = timeout ? later(timeout) : (struct timespec){0, 0};
    bool ours, foreign, over = false, found;
    pthread_mutex_lock(&mutex);
    found = any_ended(blocks, count, &ours, &foreign);
    if (!ours) {
        pthread_mutex_unlock(&mutex);
        return REAL(aio_suspend)(blocks, count, timeout);
    }
    while (!found && !over) {
        struct timespec wake = foreign ? later(&step) : until;
        if (foreign || timeout)
            pthread_cond_timedwait(&ended, &mutex, &wake);
        else
            pthread_cond_wait(&ended, &mutex);
        found = any_ended(blocks, count, &ours, &foreign);
        over = timeout && is_over(&until);
    }
    pthread_mutex_unlock(&mutex);
    if (found)
        return 0;
    errno = EAGAIN;
    return -1;
}

static int submit_block(struct aiocb *block, struct list *list, bool *is_ours)
{
    bool writes = block->aio_lio_opcode == LIO_WRITE;
    struct file *file = file_serving(block->aio_fildes, block->aio_nbytes, writes ? RIGHT_WRITE : RIGHT_READ);
    *is_ours = file != NULL;
    if (file)
        return submit(file, writes ? WRITE : READ, block, list);
    return writes ? REAL(aio_write)(block) : REAL(aio_read)(block);
}

static int wait_for_all(struct aiocb *const blocks[], int count)
{
    int failed = 0;
    for (int index = 0; index < count; index++) {
        const struct aiocb *block = blocks[index];
        if (!block || block->aio_lio_opcode == LIO_NOP)
            continue;
        while (aio_error(block) == EINPROGRESS)
            aio_suspend(&block, 1, NULL);
        failed |= aio_error(block) != 0;
    }
    return failed;
}

EXPORT int lio_listio(int mode, struct aiocb *const blocks[], int count, struct sigevent *event)
{
    int ours = 0, failed = 0;
    for (int index = 0; index < count; index++)
        if (blocks[index] && blocks[index]->aio_lio_opcode != LIO_NOP) {
            struct file *file = file_serving(blocks[index]->aio_fildes, blocks[index]->aio_nbytes, 0);
            if (file) {
                ours++;
                file_put(file);
            }
        }
    if (!ours)
        return REAL(lio_listio)(mode, blocks, count, event);
    /* The blocks that are not ours do not count for the event: a list of both kinds is a rarity. */
    struct list *list = NULL;
    if (mode == LIO_NOWAIT && event && event->sigev_notify != SIGEV_NONE) {
        list = malloc(sizeof *list);
        if (!list) {
            errno = EAGAIN;
            return -1;
        }
        *list = (struct list){1, *event}; /* one for us, until all have been queued */
    }
    for (int index = 0; index < count; index++) {
        if (!blocks[index] || blocks[index]->aio_lio_opcode == LIO_NOP)
            continue;
        bool is_ours;
        pthread_mutex_lock(&mutex);
        if (list)
            list->left++;
        pthread_mutex_unlock(&mutex);
        int refused = submit_block(blocks[index], list, &is_ours);
        failed |= refused;
        if (list && (refused || !is_ours)) {
            pthread_mutex_lock(&mutex);
            list->left--;
            pthread_mutex_unlock(&mutex);
        }
    }
    if (list) {
        pthread_mutex_lock(&mutex);
        bool all = --list->left == 0;
        pthread_mutex_unlock(&mutex);
        if (all) {
            notify(&list->event);
            free(list);
        }
    }
    if (mode == LIO_WAIT)
        failed |= wait_for_all(blocks, count);
    if (failed) {
        errno = mode == LIO_WAIT ? EIO : EAGAIN;
        return -1;
    }
    return 0;
}

/* The 64-bit twins: their types have other names and the same members. */
_Static_assert(sizeof(struct aiocb) == sizeof(struct aiocb64), "both kinds of control block are one");
#define TWIN(function)                                                        \
    EXPORT __typeof__(function) nacre_##function##64 __asm__(#function "64")  \
        __attribute__((alias(#function), nothrow, leaf))
TWIN(aio_read);
TWIN(aio_write);
TWIN(aio_fsync);
TWIN(aio_error);
TWIN(aio_return);
TWIN(aio_cancel);
TWIN(aio_suspend);
TWIN(lio_listio);
