/* Does the same to a file on the mount and to one on a local disk, at random, through every call that the library
 * takes over, and compares whatever comes back. `posix_check FILE LOCAL SEED STEPS`. */
#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FILE_MAX = 3 << 20, TRANSFER_MAX = 400000, SEGMENTS = 7 };

static int ours, local;
static const char *ours_name, *local_name;
static unsigned step;
static char written[TRANSFER_MAX], one[TRANSFER_MAX], two[TRANSFER_MAX];

#define FAIL(...)                                                             \
    do {                                                                      \
        fprintf(stderr, "step %u, line %d: ", step, __LINE__);                \
        fprintf(stderr, __VA_ARGS__);                                         \
        fprintf(stderr, " (%s)\n", strerror(errno));                          \
        exit(1);                                                              \
    } while (0)

static long random_below(long limit)
{
    return ((long)rand() << 16 ^ rand()) % limit;
}

/* Often near the borders of blocks and stripes. */
static off_t some_offset(void)
{
    off_t offset = random_below(FILE_MAX);
    if (rand() % 2)
        offset = offset / 65536 * 65536 + rand() % 9 - (offset > 65536 ? 4 : 0);
    return offset;
}

static size_t some_size(void)
{
    return rand() % 3 ? (size_t)random_below(5000) : (size_t)random_below(TRANSFER_MAX);
}

static void same(ssize_t a, ssize_t b, const char *what)
{
    if (a != b)
        FAIL("%s: %zd on the mount, %zd on the disk", what, a, b);
}

static void same_bytes(ssize_t got, const char *what)
{
    if (got > 0 && memcmp(one, two, (size_t)got))
        FAIL("%s: other bytes", what);
}

static int cut(struct iovec *segments, char *buffer, size_t size)
{
    int count = 0;
    size_t at = 0;
    while (at < size && count < SEGMENTS - 1) {
        size_t part = (size_t)random_below((long)(size - at) + 1);
        segments[count++] = (struct iovec){buffer + at, part};
        at += part;
    }
    segments[count++] = (struct iovec){buffer + at, size - at};
    return count;
}

static void fill(size_t size)
{
    for (size_t index = 0; index < size; index++)
        written[index] = (char)(rand() >> 7);
}

/* --------------------------------------------------------------------------------------------------------- steps */

static void write_somewhere(void)
{
    struct iovec segments[SEGMENTS];
    size_t size = some_size();
    off_t offset = some_offset();
    fill(size);
    int count = cut(segments, written, size);
    switch (rand() % 4) {
    case 0:
        same(pwrite(ours, written, size, offset), pwrite(local, written, size, offset), "pwrite");
        break;
    case 1:
        same(pwritev(ours, segments, count, offset), pwritev(local, segments, count, offset), "pwritev");
        break;
    case 2:
        same(pwritev2(ours, segments, count, offset, RWF_DSYNC), pwritev2(local, segments, count, offset, 0),
             "pwritev2");
        break;
    default:
        same(pwrite64(ours, written, size, offset), pwrite64(local, written, size, offset), "pwrite64");
    }
}

static void read_somewhere(void)
{
    struct iovec first[SEGMENTS], second[SEGMENTS];
    size_t size = some_size();
    off_t offset = some_offset();
    int count = cut(first, one, size);
    for (int index = 0; index < count; index++)
        second[index] = (struct iovec){two + ((char *)first[index].iov_base - one), first[index].iov_len};
    ssize_t got, wanted;
    switch (rand() % 3) {
    case 0:
        got = pread(ours, one, size, offset);
        wanted = pread(local, two, size, offset);
        break;
    case 1:
        got = preadv(ours, first, count, offset);
        wanted = preadv(local, second, count, offset);
        break;
    default:
        got = preadv2(ours, first, count, offset, 0);
        wanted = preadv2(local, second, count, offset, 0);
    }
    same(got, wanted, "read");
    same_bytes(got, "read");
}

static void at_position(void)
{
    struct iovec segments[SEGMENTS];
    size_t size = some_size();
    int whence = rand() % 3;
    off_t offset = whence == SEEK_SET ? some_offset() : rand() % 1000;
    if (whence != SEEK_CUR || lseek(local, 0, SEEK_CUR) < FILE_MAX)
        same(lseek(ours, offset, whence), lseek(local, offset, whence), "lseek");
    ssize_t got;
    switch (rand() % 4) {
    case 0:
        same(got = read(ours, one, size), read(local, two, size), "read");
        same_bytes(got, "read");
        break;
    case 1:
        fill(size);
        same(write(ours, written, size), write(local, written, size), "write");
        break;
    case 2:
        fill(size);
        int count = cut(segments, written, size);
        same(writev(ours, segments, count), writev(local, segments, count), "writev");
        break;
    default:
        count = cut(segments, one, size);
        got = readv(ours, segments, count);
        same(got, read(local, two, size), "readv");
        same_bytes(got, "readv");
    }
    same(lseek(ours, 0, SEEK_CUR), lseek(local, 0, SEEK_CUR), "position");
}

static void resize(void)
{
    off_t size = random_below(FILE_MAX);
    same(ftruncate(ours, size), ftruncate(local, size), "ftruncate");
}

static void look(void)
{
    struct stat a, b;
    same(fstat(ours, &a), fstat(local, &b), "fstat");
    same(a.st_size, b.st_size, "size by descriptor");
    same(stat(ours_name, &a), stat(local_name, &b), "stat");
    same(a.st_size, b.st_size, "size by name");
    same(lseek(ours, 0, SEEK_END), lseek(local, 0, SEEK_END), "end");
}

static void make_durable(void)
{
    same(rand() % 2 ? fsync(ours) : fdatasync(ours), 0, "fsync");
}

static void multiply(void)
{
    int copy = rand() % 2 ? dup(ours) : fcntl(ours, F_DUPFD_CLOEXEC, 100);
    if (copy < 0)
        FAIL("dup");
    same(close(ours), 0, "close");
    ours = dup2(copy, ours);
    if (ours < 0 || close(copy))
        FAIL("dup2");
}

static void in_a_child(void)
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        write_somewhere();
        read_somewhere();
        _exit(0);
    }
    int status;
    if (waitpid(child, &status, 0) != child || status)
        FAIL("child ended with %x", (unsigned)status);
    /* It has written to both. */
    at_position();
}

static void asynchronously(void)
{
    struct aiocb blocks[2] = {0};
    struct aiocb *list[2] = {&blocks[0], &blocks[1]};
    size_t size = some_size();
    fill(size);
    for (int index = 0; index < 2; index++) {
        blocks[index].aio_fildes = ours;
        blocks[index].aio_buf = written;
        blocks[index].aio_nbytes = size;
        blocks[index].aio_offset = index * (FILE_MAX / 2) + 17;
        blocks[index].aio_lio_opcode = LIO_WRITE;
        same((ssize_t)size, pwrite(local, written, size, blocks[index].aio_offset), "disk");
    }
    if (rand() % 2) {
        same(lio_listio(LIO_WAIT, list, 2, NULL), 0, "lio_listio");
    } else {
        for (int index = 0; index < 2; index++)
            same(aio_write(list[index]), 0, "aio_write");
        for (int index = 0; index < 2; index++) {
            const struct aiocb *waiting = list[index];
            while (aio_error(waiting) == EINPROGRESS)
                if (aio_suspend(&waiting, 1, NULL))
                    FAIL("aio_suspend");
        }
    }
    for (int index = 0; index < 2; index++) {
        same(aio_error(list[index]), 0, "aio_error");
        same(aio_return(list[index]), (ssize_t)size, "aio_return");
    }
    struct aiocb reading = {.aio_fildes = ours, .aio_buf = one, .aio_nbytes = size, .aio_offset = some_offset()};
    const struct aiocb *waiting = &reading;
    same(aio_read(&reading), 0, "aio_read");
    while (aio_error(waiting) == EINPROGRESS)
        aio_suspend(&waiting, 1, NULL);
    ssize_t got = aio_return(&reading);
    same(got, pread(local, two, size, reading.aio_offset), "aio_read");
    same_bytes(got, "aio_read");
}

/* Each thread has every third record for itself; all are in the same blocks. */
static void *one_of_three(void *seed_of)
{
    unsigned seed = *(unsigned *)seed_of, me = seed % 3;
    char data[1000], back[1000], wanted[1000];
    for (int turn = 0; turn < 30; turn++) {
        off_t offset = (off_t)(((unsigned)rand_r(&seed) % 200 * 3 + me) * sizeof data);
        memset(data, rand_r(&seed), sizeof data);
        if (turn % 3 && (pwrite(ours, data, sizeof data, offset) < 0 || pwrite(local, data, sizeof data, offset) < 0))
            FAIL("a thread's pwrite");
        if (turn % 7 == 0 && fdatasync(ours))
            FAIL("a thread's fdatasync");
        ssize_t got = pread(ours, back, sizeof back, offset);
        if (got > 0 && pread(local, wanted, sizeof wanted, offset) == sizeof wanted && got == sizeof back &&
            memcmp(back, wanted, sizeof back))
            FAIL("a thread's record");
    }
    return NULL;
}

static void in_threads(void)
{
    pthread_t threads[3];
    unsigned seeds[3];
    for (unsigned index = 0; index < 3; index++) {
        seeds[index] = (unsigned)rand() / 3 * 3 + index;
        if (pthread_create(&threads[index], NULL, one_of_three, &seeds[index]))
            FAIL("pthread_create");
    }
    for (int index = 0; index < 3; index++)
        pthread_join(threads[index], NULL);
}

static void refused(void)
{
    errno = 0;
    same(pread(ours, one, 10, -1), -1, "offset -1");
    same(errno, EINVAL, "its errno");
    same(pwrite(ours, one, 10, INT64_MAX - 3), -1, "beyond 2^63");
    int ours_errno = errno;
    same(pwrite(local, one, 10, INT64_MAX - 3), -1, "beyond 2^63");
    same(ours_errno, errno, "its errno");
    same(pread(ours, one, 10, INT64_MAX - 3), pread(local, one, 10, INT64_MAX - 3), "a read beyond 2^63");
    same(pwrite(ours, one, 0, 5), 0, "nothing");
    same(pread(ours, one, 100, (off_t)1 << 40), 0, "far behind the end");
    int reader = open(ours_name, O_RDONLY);
    same(pwrite(reader, "x", 1, 0), -1, "a write without the right");
    same(errno, EBADF, "its errno");
    close(reader);
    same(pread(reader, one, 1, 0), -1, "closed");
    same(errno, EBADF, "its errno");
}

/* At the end: what only the mount serves. */
static void hand_back(void)
{
    off_t size = lseek(ours, 0, SEEK_END);
    if (size > 0) {
        char *mapped = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, ours, 0);
        if (mapped == MAP_FAILED)
            FAIL("mmap");
        for (off_t at = 0; at < size; at += TRANSFER_MAX) {
            ssize_t got = pread(local, two, TRANSFER_MAX, at);
            if (memcmp(mapped + at, two, (size_t)got))
                FAIL("mapped bytes differ");
        }
        munmap(mapped, (size_t)size);
    }
    FILE *stream = fdopen(dup(ours), "r+");
    if (!stream || fseek(stream, 5, SEEK_SET) || fwrite("by stdio", 1, 8, stream) != 8 || fclose(stream))
        FAIL("stdio");
    same(pread(ours, one, 8, 5), 8, "after stdio");
    if (memcmp(one, "by stdio", 8))
        FAIL("what stdio wrote");
    same(pwrite(local, "by stdio", 8, 5), 8, "disk");
    int appending = open(ours_name, O_WRONLY | O_APPEND);
    same(write(appending, "tail", 4), 4, "append");
    close(appending);
    lseek(local, 0, SEEK_END);
    same(write(local, "tail", 4), 4, "disk");
}

int main(int count, char **words)
{
    if (count != 5)
        return 2;
    ours_name = words[1];
    local_name = words[2];
    srand((unsigned)atoi(words[3]));
    unsigned steps = (unsigned)atoi(words[4]);
    ours = open(ours_name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    local = open(local_name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (ours < 0 || local < 0)
        FAIL("open");
    void (*const kinds[])(void) = {
        write_somewhere, write_somewhere, write_somewhere, read_somewhere, read_somewhere, at_position, at_position,
        look, make_durable, multiply, in_a_child, asynchronously, resize, refused, in_threads,
    };
    for (step = 0; step < steps; step++)
        kinds[(unsigned)rand() % (sizeof kinds / sizeof *kinds)]();
    look();
    hand_back();
    close(ours);
    close(local);
    puts("same");
    return 0;
}
