/* How MPI-IO programs meet trouble: each letter of PARTS in `errors DIRECTORY PARTS` does one thing and says what class of error it met.
 * a: open what another user may not; q: write until it is too much; d: write, and once more after a line on standard input;
 * l: rank 0 dies by SIGKILL while it holds the lock that ROMIO takes for an atomic write; t: take that lock. */
#include <fcntl.h>
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MIB = 1 << 20 };

static int rank;
static char name[4096], data[MIB];

static const char *class_of(int code)
{
    int class;
    MPI_Error_class(code, &class);
    return class == MPI_SUCCESS            ? "success"
           : class == MPI_ERR_ACCESS       ? "MPI_ERR_ACCESS"
           : class == MPI_ERR_QUOTA        ? "MPI_ERR_QUOTA"
           : class == MPI_ERR_NO_SPACE     ? "MPI_ERR_NO_SPACE"
           : class == MPI_ERR_NO_SUCH_FILE ? "MPI_ERR_NO_SUCH_FILE"
           : class == MPI_ERR_IO           ? "MPI_ERR_IO"
                                           : "another class";
}

static void say(const char *what, int code)
{
    if (rank == 0) {
        printf("%s: %s\n", what, class_of(code));
        fflush(stdout);
    }
}

static int open_file(const char *directory, const char *leaf, int mode, MPI_File *file)
{
    snprintf(name, sizeof name, "%s/%s", directory, leaf);
    return MPI_File_open(MPI_COMM_WORLD, name, mode, MPI_INFO_NULL, file);
}

static void another_user(const char *directory)
{
    MPI_File file;
    if (seteuid(65534))
        exit(3);
    int code = open_file(directory, "private", MPI_MODE_RDONLY, &file);
    if (seteuid(0))
        exit(3);
    say("open", code);
}

static void too_much(const char *directory)
{
    MPI_File file;
    say("open", open_file(directory, "large", MPI_MODE_CREATE | MPI_MODE_WRONLY, &file));
    int code = MPI_SUCCESS;
    for (int i = 0; i < 64 && code == MPI_SUCCESS; i++)
        code = MPI_File_write_at(file, (MPI_Offset)i * MIB, data, MIB, MPI_CHAR, MPI_STATUS_IGNORE);
    if (code == MPI_SUCCESS)
        code = MPI_File_sync(file);
    say("write", code);
    MPI_File_close(&file);
}

static void twice(const char *directory)
{
    MPI_File file;
    char line[16];
    say("open", open_file(directory, "twice", MPI_MODE_WRONLY, &file));
    say("write", MPI_File_write_at(file, 0, data, MIB, MPI_CHAR, MPI_STATUS_IGNORE));
    if (!fgets(line, sizeof line, stdin))
        exit(3);
    say("write", MPI_File_write_at(file, 0, data, MIB, MPI_CHAR, MPI_STATUS_IGNORE));
    say("close", MPI_File_close(&file));
}

static void locked(const char *directory, int die)
{
    MPI_File file;
    say("open", open_file(directory, "locked", MPI_MODE_CREATE | MPI_MODE_RDWR, &file));
    int descriptor = open(name, O_RDWR);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = MIB};
    if (rank == 0) {
        if (fcntl(descriptor, F_SETLKW, &lock))
            exit(3);
        say("lock", MPI_SUCCESS);
        if (die) {
            sleep(1); /* mpirun passes on what was printed */
            kill(getpid(), SIGKILL);
        }
        lock.l_type = F_UNLCK;
        fcntl(descriptor, F_SETLKW, &lock);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_File_set_atomicity(file, 1);
    say("atomic write", MPI_File_write_at(file, (MPI_Offset)rank * 1000, data, 1000, MPI_CHAR, MPI_STATUS_IGNORE));
    say("close", MPI_File_close(&file));
    close(descriptor);
}

int main(int argc, char **argv)
{
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    memset(data, 'm', sizeof data);
    for (const char *part = argc > 2 ? argv[2] : ""; *part; part++) {
        if (*part == 'a')
            another_user(argv[1]);
        if (*part == 'q')
            too_much(argv[1]);
        if (*part == 'd')
            twice(argv[1]);
        if (*part == 'l' || *part == 't')
            locked(argv[1], *part == 'l');
    }
    MPI_Finalize();
    return 0;
}
