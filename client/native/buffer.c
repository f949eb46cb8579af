#include "buffer.h"

#include "blocks.h"
#include "connection.h"
#include "pieces.h"
#include "real.h"
#include "transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SMALL_BYTES = 64 << 10, /* what is as large goes its own way */
    BYTES_UNIT = 64 << 10,
    BYTES_MIN = 256 << 10,
    BYTES_MAX = 256 << 20,
};

/* One open file's. The lock is held while something is sent or fetched: whoever wants to write meanwhile would have to
 * wait for the room, or for its turn, anyway. A signal handler that interrupts its holder does without the buffer. */
struct buffer {
    pthread_mutex_t mutex;
    size_t bytes;
    struct pieces written;
    struct blocks fetched;
    int failure;  /* of the last sending; what was to be sent is still here */
    bool excluded; /* the program holds a lock: others wait for what it does */
};

static bool any;    /* some file has one */
static bool ending; /* the process is; nobody would send what is collected now */
static bool paused;
static __thread bool suspended;

static void init_mutex(struct buffer *buffer)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&buffer->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

/* ------------------------------------------------------------------------------------------------- getting a buffer */

long buffer_parse(const char *text)
{
    static const char units[] = "KMG";
    char *end;
    errno = 0;
    long bytes = strtol(text, &end, 10);
    const char *unit = *end ? strchr(units, *end & ~0x20) : NULL;
    if (end == text || bytes < 0 || errno || (*end && (!unit || end[1])))
        return -1;
    for (long power = unit ? unit - units + 1 : 0; power && bytes <= BYTES_MAX; power--)
        bytes *= 1024;
    if (bytes > BYTES_MAX)
        return BYTES_MAX;
    return bytes && bytes < BYTES_MIN ? BYTES_MIN : (bytes + BYTES_UNIT - 1) / BYTES_UNIT * BYTES_UNIT;
}

long buffer_of_environment(void)
{
    static long known = -1;
    if (known < 0) {
        const char *word = getenv("NACRE_IO_BUFFER");
        long bytes = word ? buffer_parse(word) : 0;
        if (bytes < 0)
            fprintf(stderr, "libnacre_io: NACRE_IO_BUFFER=%s is no size: give bytes, or a number with K or M\n", word);
        known = bytes > 0 ? bytes : 0;
    }
    return known;
}

void buffer_attach(int fd, int flags, long bytes)
{
    struct file *file = file_of(fd);
    if (!file)
        return;
    if (bytes < 0)
        bytes = buffer_of_environment();
    struct buffer *buffer = bytes && !(flags & (O_DSYNC | O_DIRECT)) ? calloc(1, sizeof *buffer) : NULL;
    if (buffer) {
        buffer->bytes = (size_t)bytes;
        blocks_init(&buffer->fetched, buffer->bytes);
        init_mutex(buffer);
        file->buffer = buffer;
        __atomic_store_n(&any, true, __ATOMIC_RELAXED);
    }
    file_put(file);
}

/* Says what nobody can send any more. */
static void say_what_is_lost(struct buffer *buffer)
{
    if (buffer->written.count)
        fprintf(stderr, "libnacre_io: %zu bytes that were written to a file are lost: %s\n", buffer->written.filled,
                strerror(buffer->failure));
    pieces_clear(&buffer->written);
}

void buffer_free(struct buffer *buffer)
{
    if (!buffer)
        return;
    say_what_is_lost(buffer);
    pieces_free(&buffer->written);
    blocks_free(&buffer->fetched);
    pthread_mutex_destroy(&buffer->mutex);
    free(buffer);
}

void buffer_forget(struct buffer *buffer)
{
    if (!buffer)
        return;
    init_mutex(buffer);
    pieces_clear(&buffer->written);
    blocks_clear(&buffer->fetched);
    buffer->failure = 0;
    buffer->excluded = false; /* locks are not inherited */
}

/* --------------------------------------------------------------------------------------------------------- sending */

/* The mount does not serve programs any more: it writes this itself. */
static int write_through_mount(int fd, const struct pieces *pieces)
{
    for (size_t index = 0; index < pieces->count; index++) {
        const struct piece *piece = &pieces->list[index];
        for (size_t done = 0; done < piece->length;) {
            ssize_t part = REAL(pwrite)(fd, pieces->memory + piece->at + done, piece->length - done,
                                        (off_t)(piece->offset + done));
            if (part < 0 && errno != EINTR)
                return errno;
            done += part > 0 ? (size_t)part : 0;
        }
    }
    return 0;
}

/* Sends all that is collected, under the lock: 0 or an errno, and then it is still here. */
static int send_written(struct buffer *buffer, struct file *file, int fd)
{
    struct pieces *pieces = &buffer->written;
    if (!pieces->count)
        return buffer->failure = 0;
    struct extent *extents = malloc(pieces->count * sizeof *extents);
    struct iovec *memory = malloc(pieces->count * sizeof *memory);
    int error = ENOMEM;
    if (extents && memory) {
        size_t count = pieces_list(pieces, extents, memory);
        error = transfer_write(file, fd, extents, count, memory, false);
        trace("descriptor %d: %zu bytes in %zu extents sent: %s", fd, pieces->filled, count, strerror(error));
    }
    if (error == EOPNOTSUPP || error == ENOTTY) {
        error = write_through_mount(fd, pieces);
        file_hand_back(fd);
    }
    free(extents);
    free(memory);
    if (!error)
        pieces_clear(pieces);
    return buffer->failure = error;
}

/* ------------------------------------------------------------------------------------------------------- transfers */

/* Whether the buffer is for transfers of this size at present. */
static bool takes(const struct buffer *buffer, const struct extent *extent)
{
    return extent->length < SMALL_BYTES && !buffer->excluded && !suspended &&
           !__atomic_load_n(&paused, __ATOMIC_RELAXED) && !__atomic_load_n(&ending, __ATOMIC_RELAXED);
}

void buffer_suspend(bool now)
{
    suspended = now;
}

void buffer_pause(bool now)
{
    __atomic_store_n(&paused, now, __ATOMIC_RELAXED);
}

int buffer_write(struct file *file, int fd, const struct extent *extent, const struct iovec *memory, bool sync)
{
    struct buffer *buffer = file->buffer;
    if (!buffer || pthread_mutex_lock(&buffer->mutex))
        return transfer_write(file, fd, extent, 1, memory, sync);
    struct pieces *pieces = &buffer->written;
    bool collects = !sync && takes(buffer, extent) && pieces_prepare(pieces, buffer->bytes);
    int error = 0;
    if (buffer->failure || (collects ? !pieces_fit(pieces, extent) : pieces_touch(pieces, extent)))
        error = send_written(buffer, file, fd);
    if (!error && collects) {
        pieces_add(pieces, extent, memory);
        blocks_drop(&buffer->fetched, extent->offset, extent->length);
    }
    pthread_mutex_unlock(&buffer->mutex);
    if (error || collects)
        return error;
    error = transfer_write(file, fd, extent, 1, memory, sync);
    /* Afterwards: another thread may have fetched what was there before. */
    if (!pthread_mutex_lock(&buffer->mutex)) {
        blocks_drop(&buffer->fetched, extent->offset, extent->length);
        pthread_mutex_unlock(&buffer->mutex);
    }
    return error;
}

/* Fetches a block, if that is worth while, under the lock. What goes wrong goes wrong again for the bytes that are
 * really wanted, or does not matter. */
static bool fetch(struct buffer *buffer, struct file *file, int fd, uint64_t number)
{
    uint8_t *memory = blocks_want(&buffer->fetched, number);
    if (!memory)
        return false;
    size_t bytes = buffer->fetched.block_bytes;
    struct extent whole = {number * bytes, bytes};
    struct iovec into = {memory, bytes};
    uint64_t end;
    if (pieces_touch(&buffer->written, &whole) && send_written(buffer, file, fd))
        return false;
    if (transfer_read(file, fd, &whole, 1, &into, &end))
        return false;
    size_t filled = end <= whole.offset ? 0 : end - whole.offset < bytes ? end - whole.offset : bytes;
    blocks_keep(&buffer->fetched, number, memory, filled);
    return true;
}

/* Serves a small read from what was fetched, under the lock. */
static bool serve_fetched(struct buffer *buffer, struct file *file, int fd, const struct extent *extent,
                          const struct iovec *memory)
{
    struct cursor cursor = {memory, 0};
    size_t bytes = buffer->fetched.block_bytes;
    uint64_t offset = extent->offset, end = offset + extent->length;
    while (offset < end) {
        uint64_t border = (offset / bytes + 1) * bytes, stop = border < end ? border : end;
        if (!blocks_serve(&buffer->fetched, offset, stop - offset, &cursor) &&
            (!fetch(buffer, file, fd, offset / bytes) ||
             !blocks_serve(&buffer->fetched, offset, stop - offset, &cursor)))
            return false;
        offset = stop;
    }
    return true;
}

int buffer_read(struct file *file, int fd, const struct extent *extent, const struct iovec *memory, uint64_t *size)
{
    struct buffer *buffer = file->buffer;
    if (!buffer || pthread_mutex_lock(&buffer->mutex))
        return transfer_read(file, fd, extent, 1, memory, size);
    int error = 0;
    if (buffer->failure || pieces_touch(&buffer->written, extent))
        error = send_written(buffer, file, fd);
    bool served = !error && takes(buffer, extent) && serve_fetched(buffer, file, fd, extent, memory);
    pthread_mutex_unlock(&buffer->mutex);
    *size = UINT64_MAX;
    if (error || served)
        return error;
    error = transfer_read(file, fd, extent, 1, memory, size);
    if (error || *size == UINT64_MAX || pthread_mutex_lock(&buffer->mutex))
        return error;
    bool longer = buffer->written.count > 0; /* the file may be, than anybody knows but us */
    if (longer)
        error = send_written(buffer, file, fd);
    pthread_mutex_unlock(&buffer->mutex);
    return error || !longer ? error : transfer_read(file, fd, extent, 1, memory, size);
}

/* ------------------------------------------------------------------------------------------------------------ uses
 *
 * What was collected is sent before each of them: others are to see it, or the kernel is to count with it. */

static const struct {
    bool forgets; /* what was fetched: others may have written since */
    bool anyway;  /* it is carried out even if nothing can be sent; the next read, write, fsync or close says so */
} uses[] = {
    [USE_LOOK] = {false, false}, [USE_SYNC] = {true, false},  [USE_LOCK] = {true, true},   [USE_UNLOCK] = {true, true},
    [USE_RESIZE] = {true, false}, [USE_MOUNT] = {true, false}, [USE_CLOSE] = {false, false},
};

/* The file of a descriptor, if it has a buffer, with the lock held. */
static struct file *lock_file(int fd)
{
    struct file *file = __atomic_load_n(&any, __ATOMIC_RELAXED) ? file_of(fd) : NULL;
    if (file && file->buffer && !pthread_mutex_lock(&file->buffer->mutex))
        return file;
    if (file)
        file_put(file);
    return NULL;
}

static void unlock_file(struct file *file)
{
    pthread_mutex_unlock(&file->buffer->mutex);
    file_put(file);
}

int buffer_before(int fd, enum use use)
{
    int before = errno, error = 0;
    struct file *file = lock_file(fd);
    if (file) {
        error = send_written(file->buffer, file, fd);
        unlock_file(file);
    }
    errno = before;
    return uses[use].anyway ? 0 : error;
}

void buffer_after(int fd, enum use use)
{
    struct file *file = uses[use].forgets ? lock_file(fd) : NULL;
    if (!file)
        return;
    blocks_clear(&file->buffer->fetched);
    if (use == USE_LOCK || use == USE_UNLOCK)
        file->buffer->excluded = use == USE_LOCK;
    unlock_file(file);
}

static int send_all(bool last)
{
    int first = 0;
    for (int fd = file_next(0); fd >= 0 && __atomic_load_n(&any, __ATOMIC_RELAXED); fd = file_next(fd + 1)) {
        struct file *file = lock_file(fd);
        if (!file)
            continue;
        int error = send_written(file->buffer, file, fd);
        first = first ? first : error;
        if (last)
            say_what_is_lost(file->buffer);
        blocks_clear(&file->buffer->fetched);
        unlock_file(file);
    }
    return first;
}

int buffer_send_all(void)
{
    return send_all(false);
}

void buffer_forget_fetched(void)
{
    for (int fd = file_next(0); fd >= 0 && __atomic_load_n(&any, __ATOMIC_RELAXED); fd = file_next(fd + 1))
        buffer_after(fd, USE_SYNC);
}

void buffer_end(void)
{
    __atomic_store_n(&ending, true, __ATOMIC_RELAXED);
    send_all(true);
}
