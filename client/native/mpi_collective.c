/* MPI calls before or after which the buffers of a process are looked after: `buffer` knows nothing of ranks. */
#include "buffer.h"
#include "mpi.h"
#include "mpi_library.h"
#include "real.h"

/* Readers see what others have written before their own sync. ROMIO syncs only where something was written, so its fsync is
 * not enough. */
static int file_sync(word file)
{
    int result = mpi_library()->file_sync(file);
    buffer_forget_fetched();
    return result;
}

/* In a collective call a rank's bytes may be written, or read, by another one, and what lies between the pieces of all
 * may be read and written back. So the files are as everybody left them when it begins, and nobody collects anything in it. */
static int collective(mpi_call call, word a, word b, word c, word d, word e, word f)
{
    buffer_send_all(); /* what cannot be sent is an error of the first transfer */
    buffer_suspend(true);
    int result = call(a, b, c, d, e, f);
    buffer_suspend(false);
    return result;
}

BOTH(File_sync, (word file), file_sync(file))

#define COLLECTIVE_CALL(name, otherwise)                                      \
    static int collective_##name(word a, word b, word c, word d, word e, word f) \
    {                                                                         \
        static mpi_call call;                                                 \
        if (!call)                                                            \
            call = (mpi_call)mpi_function("PMPI_" #name);                     \
        return call ? collective(call, a, b, c, d, e, f) : (otherwise);       \
    }                                                                         \
    BOTH(name, (word a, word b, word c, word d, word e, word f), collective_##name(a, b, c, d, e, f))

enum { MPI_ERR_COUNT = 2, MPI_ERR_OTHER = 15 }; /* with every MPI */

/* With its twin for large counts. An MPI without one seems to have it, because of us (mpi4py looks for it), and so does as
 * far as an int goes. */
#define COLLECTIVE(name, count)                                               \
    COLLECTIVE_CALL(name, MPI_ERR_OTHER)                                      \
    COLLECTIVE_CALL(name##_c, count == (int)count ? collective_##name(a, b, c, d, e, f) : MPI_ERR_COUNT)

COLLECTIVE(File_read_all, c)
COLLECTIVE(File_read_at_all, d)
COLLECTIVE(File_read_ordered, c)
COLLECTIVE(File_write_all, c)
COLLECTIVE(File_write_at_all, d)
COLLECTIVE(File_write_ordered, c)
COLLECTIVE(File_read_all_begin, c)
COLLECTIVE(File_read_at_all_begin, d)
COLLECTIVE(File_read_ordered_begin, c)
COLLECTIVE(File_write_all_begin, c)
COLLECTIVE(File_write_at_all_begin, d)
COLLECTIVE(File_write_ordered_begin, c)
COLLECTIVE(File_iread_all, c)
COLLECTIVE(File_iread_at_all, d)
COLLECTIVE(File_iwrite_all, c)
COLLECTIVE(File_iwrite_at_all, d)
COLLECTIVE_CALL(File_set_size, MPI_ERR_OTHER)
COLLECTIVE_CALL(File_preallocate, MPI_ERR_OTHER)

static int file_set_atomicity(word file, word flag)
{
    int result = collective(mpi_library()->file_set_atomicity, file, flag, 0, 0, 0, 0);
    if (!result)
        mpi_set_atomic(file, (int)flag);
    return result;
}

BOTH(File_set_atomicity, (word file, word flag), file_set_atomicity(file, flag))
