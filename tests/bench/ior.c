/* An IOR-like benchmark: `ior DIRECTORY[:DIRECTORY…] easy|hard|random PROCESSES TRANSFER_BYTES COUNT`. With several
 * directories (mounts of the same one), the processes take turns in choosing theirs.
 *
 * easy: each process writes and reads a file of its own, in order. hard: all write one file, their transfers
 * interleaved, as io500's ior-hard does with 47,008 bytes. random: one file, each process in a random order of its own.
 * Prints one JSON object per phase: seconds of the slowest process, and CPU of one transfer in the calling process. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum phase { WRITE, READ, PHASES };

struct shared {
    int arrived[2 * PHASES];
    double seconds[PHASES], cpu_us[PHASES];
};

static struct shared *shared;
static int processes;

static double now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void barrier(int number)
{
    __atomic_add_fetch(&shared->arrived[number], 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&shared->arrived[number], __ATOMIC_SEQ_CST) < processes)
        usleep(500);
}

static void must(int right, const char *what)
{
    if (!right) {
        perror(what);
        kill(0, 9);
        exit(1);
    }
}

static const char *directory_of(int me, char *directories)
{
    int count = 1;
    char *found, *rest = directories;
    for (const char *at = directories; *at; at++)
        count += *at == ':';
    for (int skip = me % count; (found = strsep(&rest, ":")) && skip; skip--)
        ;
    return found;
}

static void process(int me, const char *directory, const char *mode, size_t size, int count)
{
    char name[4096], *data = malloc(size);
    int own = !strcmp(mode, "easy"), mixed = !strcmp(mode, "random");
    int *order = malloc((size_t)count * sizeof *order);
    srand((unsigned)me + 1);
    for (int i = 0; i < count; i++)
        order[i] = i;
    for (int i = count - 1; mixed && i > 0; i--) {
        int other = rand() % (i + 1), kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
    snprintf(name, sizeof name, own ? "%s/ior.%d" : "%s/ior", directory, me);
    for (int phase = 0; phase < PHASES; phase++) {
        int fd = open(name, O_RDWR | O_CREAT, 0644);
        must(fd >= 0, name);
        barrier(2 * phase);
        double begun = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
        for (int i = 0; i < count; i++) {
            off_t offset = (off_t)size * (own ? order[i] : (off_t)order[i] * processes + me);
            if (phase == WRITE) {
                memset(data, me + i, size < 64 ? size : 64);
                must(pwrite(fd, data, size, offset) == (ssize_t)size, "pwrite");
            } else {
                must(pread(fd, data, size, offset) == (ssize_t)size, "pread");
            }
        }
        double used = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        if (phase == WRITE)
            must(fsync(fd) == 0, "fsync");
        double took = now(CLOCK_MONOTONIC) - begun;
        barrier(2 * phase + 1);
        close(fd);
        if (took > shared->seconds[phase])
            shared->seconds[phase] = took;
        if (me == 0)
            shared->cpu_us[phase] = used / count * 1e6;
    }
}

int main(int words, char **word)
{
    if (words != 6)
        return 2;
    processes = atoi(word[3]);
    size_t size = (size_t)atol(word[4]);
    int count = atoi(word[5]);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int me = 0; me < processes; me++)
        if (fork() == 0) {
            process(me, directory_of(me, word[1]), word[2], size, count);
            _exit(0);
        }
    int status, failed = 0;
    while (wait(&status) > 0)
        failed |= status;
    double transfers = (double)processes * count;
    for (int phase = 0; phase < PHASES && !failed; phase++)
        printf("{\"phase\": \"%s\", \"mib_per_s\": %.1f, \"ops_per_s\": %.0f, \"cpu_us_per_op\": %.1f}\n",
               phase == WRITE ? "write" : "read", transfers * (double)size / 1048576 / shared->seconds[phase],
               transfers / shared->seconds[phase], shared->cpu_us[phase]);
    return failed != 0;
}
