/* What MPI-IO programs do, all of it on one file after the other: views, collective and independent I/O, nonblocking,
 * ordered and shared pointers, atomic mode, sizes, deletion. `collective DIRECTORY PARTS [NAME=VALUE…]`: the letters of
 * PARTS say what is done, hints stand behind. */
#include <mpi.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int rank, size;

static void check(int code, const char *what)
{
    if (code == MPI_SUCCESS)
        return;
    char text[MPI_MAX_ERROR_STRING];
    int length;
    MPI_Error_string(code, text, &length);
    fprintf(stderr, "rank %d: %s: %s\n", rank, what, text);
    MPI_Abort(MPI_COMM_WORLD, 1);
}

static void expect(int right, const char *what)
{
    if (!right) {
        fprintf(stderr, "rank %d: wrong: %s\n", rank, what);
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
}

static MPI_Info hints;
static char name[4096];

static MPI_File open_file(const char *directory, const char *leaf, int mode)
{
    MPI_File file;
    snprintf(name, sizeof name, "%s/%s", directory, leaf);
    check(MPI_File_open(MPI_COMM_WORLD, name, mode, hints, &file), "open");
    return file;
}

static int value(int of_rank, int index)
{
    return of_rank * 1000003 + index * 7 + 1;
}

/* Interleaved blocks of all ranks, written and read together. */
static void interleaved(const char *directory)
{
    enum { BLOCKS = 200, INTS = 96 };
    MPI_File file = open_file(directory, "interleaved", MPI_MODE_CREATE | MPI_MODE_RDWR);
    MPI_Datatype type;
    int *data = malloc(BLOCKS * INTS * sizeof *data), *back = calloc(BLOCKS * INTS, sizeof *back);
    for (int i = 0; i < BLOCKS * INTS; i++)
        data[i] = value(rank, i);
    MPI_Type_vector(BLOCKS, INTS, INTS * size, MPI_INT, &type);
    MPI_Type_commit(&type);
    MPI_Offset start = (MPI_Offset)rank * INTS * (MPI_Offset)sizeof(int);
    check(MPI_File_set_view(file, start, MPI_INT, type, "native", MPI_INFO_NULL), "view");
    check(MPI_File_write_at_all(file, 0, data, BLOCKS * INTS, MPI_INT, MPI_STATUS_IGNORE), "write_at_all");
    check(MPI_File_sync(file), "sync");
    check(MPI_File_read_at_all(file, 0, back, BLOCKS * INTS, MPI_INT, MPI_STATUS_IGNORE), "read_at_all");
    expect(!memcmp(data, back, BLOCKS * INTS * sizeof *data), "what was written together");
    MPI_Offset bytes;
    check(MPI_File_get_size(file, &bytes), "get_size");
    expect(bytes == (MPI_Offset)size * BLOCKS * INTS * (MPI_Offset)sizeof(int), "size");
    check(MPI_File_close(&file), "close");
    MPI_Type_free(&type);
    free(data);
    free(back);
}

/* The same without each other: data sieving, which reads, changes and writes, under locks. */
static void independent(const char *directory)
{
    enum { BLOCKS = 200, INTS = 96 };
    MPI_File file = open_file(directory, "independent", MPI_MODE_CREATE | MPI_MODE_RDWR);
    MPI_Datatype type;
    int *data = malloc(BLOCKS * INTS * sizeof *data), *back = calloc(BLOCKS * INTS, sizeof *back);
    for (int i = 0; i < BLOCKS * INTS; i++)
        data[i] = value(rank, i) ^ 0x5555;
    MPI_Type_vector(BLOCKS, INTS, INTS * size, MPI_INT, &type);
    MPI_Type_commit(&type);
    MPI_Offset start = (MPI_Offset)rank * INTS * (MPI_Offset)sizeof(int);
    check(MPI_File_set_view(file, start, MPI_INT, type, "native", MPI_INFO_NULL), "view");
    check(MPI_File_set_atomicity(file, 1), "atomicity");
    check(MPI_File_write_at(file, 0, data, BLOCKS * INTS, MPI_INT, MPI_STATUS_IGNORE), "write_at");
    check(MPI_File_set_atomicity(file, 0), "atomicity off");
    check(MPI_File_sync(file), "sync");
    MPI_Barrier(MPI_COMM_WORLD);
    check(MPI_File_read_at(file, 0, back, BLOCKS * INTS, MPI_INT, MPI_STATUS_IGNORE), "read_at");
    expect(!memcmp(data, back, BLOCKS * INTS * sizeof *data), "what was written with strides");
    check(MPI_File_close(&file), "close");
    MPI_Type_free(&type);
    free(data);
    free(back);
}

/* Several threads of each rank in one file. */
enum { THREADS = 4, ROUNDS = 30, CHUNK = 20000 };
static MPI_File threaded;

static void *in_a_thread(void *argument)
{
    int me = rank * THREADS + (int)(intptr_t)argument;
    char data[CHUNK], back[CHUNK];
    for (int round = 0; round < ROUNDS; round++) {
        MPI_Offset offset = ((MPI_Offset)round * size * THREADS + me) * CHUNK;
        memset(data, me * ROUNDS + round, sizeof data);
        check(MPI_File_write_at(threaded, offset, data, CHUNK, MPI_BYTE, MPI_STATUS_IGNORE), "write in a thread");
        check(MPI_File_read_at(threaded, offset, back, CHUNK, MPI_BYTE, MPI_STATUS_IGNORE), "read in a thread");
        expect(!memcmp(data, back, CHUNK), "bytes of a thread");
    }
    return NULL;
}

static void threads(const char *directory)
{
    pthread_t all[THREADS];
    threaded = open_file(directory, "threads", MPI_MODE_CREATE | MPI_MODE_RDWR);
    for (intptr_t i = 0; i < THREADS; i++)
        pthread_create(&all[i], NULL, in_a_thread, (void *)i);
    for (int i = 0; i < THREADS; i++)
        pthread_join(all[i], NULL);
    check(MPI_File_close(&threaded), "close");
}

static void nonblocking(const char *directory)
{
    enum { INTS = 30000, PARTS = 4 };
    MPI_File file = open_file(directory, "nonblocking", MPI_MODE_CREATE | MPI_MODE_RDWR);
    MPI_Request requests[PARTS];
    int *data = malloc(PARTS * INTS * sizeof *data), *back = calloc(PARTS * INTS, sizeof *back);
    for (int i = 0; i < PARTS * INTS; i++)
        data[i] = value(rank, i);
    MPI_Offset mine = (MPI_Offset)rank * PARTS * INTS * (MPI_Offset)sizeof(int);
    for (int part = 0; part < PARTS; part++)
        check(MPI_File_iwrite_at(file, mine + part * INTS * (MPI_Offset)sizeof(int), data + part * INTS, INTS, MPI_INT,
                                 &requests[part]), "iwrite_at");
    check(MPI_Waitall(PARTS, requests, MPI_STATUSES_IGNORE), "wait");
    for (int part = 0; part < PARTS; part++)
        check(MPI_File_iread_at(file, mine + part * INTS * (MPI_Offset)sizeof(int), back + part * INTS, INTS, MPI_INT,
                                &requests[part]), "iread_at");
    check(MPI_Waitall(PARTS, requests, MPI_STATUSES_IGNORE), "wait");
    expect(!memcmp(data, back, PARTS * INTS * sizeof *data), "nonblocking");
    check(MPI_File_close(&file), "close");
    free(data);
    free(back);
}

static void pointers(const char *directory)
{
    MPI_File file = open_file(directory, "pointers", MPI_MODE_CREATE | MPI_MODE_RDWR);
    char line[32], all[32 * 64] = "";
    snprintf(line, sizeof line, "rank %02d wrote this line in turn", rank);
    line[31] = '\n';
    check(MPI_File_write_ordered(file, line, 32, MPI_CHAR, MPI_STATUS_IGNORE), "write_ordered");
    check(MPI_File_sync(file), "sync");
    MPI_Barrier(MPI_COMM_WORLD);
    check(MPI_File_read_at(file, 0, all, 32 * size, MPI_CHAR, MPI_STATUS_IGNORE), "read all");
    for (int other = 0; other < size; other++) {
        char wanted[32];
        snprintf(wanted, sizeof wanted, "rank %02d", other);
        expect(!memcmp(all + 32 * other, wanted, 7), "order");
    }
    check(MPI_File_seek_shared(file, 0, MPI_SEEK_SET), "seek_shared");
    MPI_Barrier(MPI_COMM_WORLD);
    check(MPI_File_write_shared(file, line, 32, MPI_CHAR, MPI_STATUS_IGNORE), "write_shared");
    check(MPI_File_sync(file), "sync");
    MPI_Barrier(MPI_COMM_WORLD);
    check(MPI_File_read_at(file, 0, all, 32 * size, MPI_CHAR, MPI_STATUS_IGNORE), "read all");
    int seen = 0;
    for (int other = 0; other < size; other++)
        seen += atoi(all + 32 * other + 5);
    expect(seen == size * (size - 1) / 2, "each rank's line once");
    check(MPI_File_close(&file), "close");
}

/* What all have read before, one writes anew: with sync, barrier, sync, and in atomic mode without. */
static void exchanged(const char *directory)
{
    enum { RECORDS = 60, INTS = 128, TURNS = 3 };
    MPI_File file = open_file(directory, "exchanged", MPI_MODE_CREATE | MPI_MODE_RDWR);
    int data[INTS];
    for (int turn = 0; turn < 2 * TURNS; turn++) {
        int atomic = turn >= TURNS;
        if (turn == TURNS)
            check(MPI_File_set_atomicity(file, 1), "atomicity");
        for (int record = 0; record < RECORDS * size && rank == turn % size; record++) { /* the others only read */
            for (int i = 0; i < INTS; i++)
                data[i] = value(turn, record + i);
            check(MPI_File_write_at(file, record * (MPI_Offset)sizeof data, data, INTS, MPI_INT, MPI_STATUS_IGNORE),
                  "write a record");
        }
        if (!atomic)
            check(MPI_File_sync(file), "sync");
        MPI_Barrier(MPI_COMM_WORLD);
        if (!atomic)
            check(MPI_File_sync(file), "sync");
        for (int record = 0; record < RECORDS * size; record++) {
            int other = (record + rank) % (RECORDS * size);
            check(MPI_File_read_at(file, other * (MPI_Offset)sizeof data, data, INTS, MPI_INT, MPI_STATUS_IGNORE),
                  "read a record");
            for (int i = 0; i < INTS; i++)
                expect(data[i] == value(turn, other + i), "a record that another rank wrote");
        }
        MPI_Barrier(MPI_COMM_WORLD);
    }
    check(MPI_File_close(&file), "close");
}

/* What a rank has written by itself it reads with all others, and the other way round: no sync is needed for that. */
static void mixed(const char *directory)
{
    enum { BLOCKS = 16, INTS = 64, TURNS = 5 };
    MPI_File file = open_file(directory, "mixed", MPI_MODE_CREATE | MPI_MODE_RDWR);
    MPI_Datatype type;
    int data[BLOCKS * INTS], back[BLOCKS * INTS];
    MPI_Type_vector(BLOCKS, INTS, INTS * size, MPI_INT, &type);
    MPI_Type_commit(&type);
    MPI_Offset start = (MPI_Offset)rank * INTS * (MPI_Offset)sizeof(int);
    check(MPI_File_set_view(file, start, MPI_INT, type, "native", MPI_INFO_NULL), "view");
    for (int turn = 0; turn < 2 * TURNS; turn++) {
        int alone = turn % 2;
        for (int i = 0; i < BLOCKS * INTS; i++)
            data[i] = value(rank + turn, i);
        check(alone ? MPI_File_write_at(file, 0, data, BLOCKS * INTS, MPI_INT, MPI_STATUS_IGNORE)
                    : MPI_File_write_at_all(file, 0, data, BLOCKS * INTS, MPI_INT, MPI_STATUS_IGNORE), "write");
        check(alone ? MPI_File_read_at_all(file, 0, back, BLOCKS * INTS, MPI_INT, MPI_STATUS_IGNORE)
                    : MPI_File_read_at(file, 0, back, BLOCKS * INTS, MPI_INT, MPI_STATUS_IGNORE), "read");
        expect(!memcmp(data, back, sizeof data), alone ? "alone, then together" : "together, then alone");
    }
    check(MPI_File_close(&file), "close");
    MPI_Type_free(&type);
}

static void sizes(const char *directory)
{
    MPI_File file = open_file(directory, "sizes", MPI_MODE_CREATE | MPI_MODE_RDWR);
    MPI_Offset bytes;
    check(MPI_File_set_size(file, 1000000), "set_size");
    check(MPI_File_get_size(file, &bytes), "get_size");
    expect(bytes == 1000000, "set_size");
    check(MPI_File_preallocate(file, 1500000), "preallocate");
    check(MPI_File_get_size(file, &bytes), "get_size");
    expect(bytes == 1500000, "preallocate");
    char byte = 'x';
    check(MPI_File_read_at(file, 700000, &byte, 1, MPI_CHAR, MPI_STATUS_IGNORE), "read a hole");
    expect(byte == 0, "a hole is zeros");
    MPI_Barrier(MPI_COMM_WORLD);
    check(MPI_File_set_size(file, 10), "shrink");
    check(MPI_File_get_size(file, &bytes), "get_size");
    expect(bytes == 10, "shrunk");
    MPI_Status status;
    char some[20];
    int count;
    check(MPI_File_read_at(file, 4, some, 20, MPI_CHAR, &status), "read over the end");
    MPI_Get_count(&status, MPI_CHAR, &count);
    expect(count == 6, "what is left of it");
    check(MPI_File_close(&file), "close");
    if (rank == 0)
        check(MPI_File_delete(name, MPI_INFO_NULL), "delete");
    MPI_Barrier(MPI_COMM_WORLD);
    int code = MPI_File_open(MPI_COMM_WORLD, name, MPI_MODE_RDONLY, MPI_INFO_NULL, &file), class;
    MPI_Error_class(code, &class);
    expect(class == MPI_ERR_NO_SUCH_FILE, "the class of a missing file");
}

static void striping(const char *directory)
{
    MPI_File file = open_file(directory, "striping", MPI_MODE_CREATE | MPI_MODE_RDWR);
    MPI_Info told;
    char factor[64] = "", unit[64] = "", buffer[64] = "";
    int flag;
    check(MPI_File_get_info(file, &told), "get_info");
    MPI_Info_get(told, "striping_factor", 63, factor, &flag);
    MPI_Info_get(told, "striping_unit", 63, unit, &flag);
    MPI_Info_get(told, "nacre_buffer_size", 63, buffer, &flag);
    MPI_Info_free(&told);
    check(MPI_File_close(&file), "close");
    if (rank == 0 && buffer[0])
        printf("nacre_buffer_size=%s\n", buffer);
    if (rank == 0)
        printf("striping_factor=%s striping_unit=%s\n", factor, unit);
}

int main(int argc, char **argv)
{
    int provided;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Info_create(&hints);
    for (int i = 3; i < argc; i++) {
        char *equals = strchr(argv[i], '=');
        *equals = 0;
        MPI_Info_set(hints, argv[i], equals + 1);
    }
    if (strchr(argv[2], 'c'))
        interleaved(argv[1]);
    if (strchr(argv[2], 'i'))
        independent(argv[1]);
    if (strchr(argv[2], 'n'))
        nonblocking(argv[1]);
    if (strchr(argv[2], 'p'))
        pointers(argv[1]);
    if (strchr(argv[2], 'x'))
        exchanged(argv[1]);
    if (strchr(argv[2], 'm'))
        mixed(argv[1]);
    if (strchr(argv[2], 's'))
        sizes(argv[1]);
    if (strchr(argv[2], 't'))
        threads(argv[1]);
    striping(argv[1]);
    MPI_Info_free(&hints);
    MPI_Finalize();
    if (rank == 0)
        puts("passed");
    return 0;
}
