/* A ROMIO driver: what it reads and writes goes from the process straight to the OSTs, a whole strided access as one
 * request to each object. Names, sizes, locks and all else are the mount's, through ROMIO's generic functions.
 *
 * Compiled inside ROMIO (build_mpich.sh, docs/mpi.md) and linked with libnacre_io.so. */
#include "adio.h"
#include "adio_extern.h"
#include "adioi.h"
#include "nacre_io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#define NACRE_LAYOUT "nacre.layout"

/* ----------------------------------------------------------------------------------------------------------- opening */

/* Each hint about the layout, and what `nacre.layout` calls it. */
static const char *const nacre_hints[][2] = {{"striping_factor", "stripe_count"},
                                             {"striping_unit", "stripe_size"},
                                             {"start_iodevice", "first_ost"},
                                             {"nacre_pool", "pool"}};
enum { NACRE_HINTS = 4, NACRE_UNIT_HINT = 1 };

/* Keeps the hints that ROMIO does not know, for the open that follows. */
static void ADIOI_NACRE_SetInfo(ADIO_File fd, MPI_Info users_info, int *error_code)
{
    char value[MPI_MAX_INFO_VAL + 1];
    int found;
    if (fd->info == MPI_INFO_NULL)
        MPI_Info_create(&fd->info);
    for (int index = 0; index < NACRE_HINTS && users_info != MPI_INFO_NULL; index++) {
        ADIOI_Info_get(users_info, nacre_hints[index][0], MPI_MAX_INFO_VAL, value, &found);
        if (found)
            ADIOI_Info_set(fd->info, nacre_hints[index][0], value);
    }
    ADIOI_GEN_SetInfo(fd, users_info, error_code);
}

static int nacre_hint(ADIO_File fd, const char *key, char *value)
{
    int found = 0;
    if (fd->info != MPI_INFO_NULL)
        ADIOI_Info_get(fd->info, key, MPI_MAX_INFO_VAL, value, &found);
    return found;
}

/* Gives a new file the layout that the hints ask for. Hints are advice: what is not possible is left. */
static void nacre_set_layout(ADIO_File fd)
{
    char text[NACRE_HINTS * 64] = "", value[MPI_MAX_INFO_VAL + 1];
    size_t used = 0;
    for (int index = 0; index < NACRE_HINTS; index++)
        if (nacre_hint(fd, nacre_hints[index][0], value) && strcmp(value, "0") && strlen(value) < 40) {
            if (index == NACRE_UNIT_HINT)
                snprintf(value, sizeof value, "%ld", (atol(value) + 65535) / 65536 * 65536);
            used += (size_t)snprintf(text + used, 64, "%s=%s ", nacre_hints[index][1], value);
        }
    if (used)
        fsetxattr(fd->fd_sys, NACRE_LAYOUT, text, used, 0);
}

/* Tells ROMIO how the file is striped, so that its aggregators write along stripes. */
static void nacre_report_layout(ADIO_File fd)
{
    char text[65536], value[32];
    long factor, unit;
    ssize_t size = fgetxattr(fd->fd_sys, NACRE_LAYOUT, text, sizeof text - 1);
    if (size < 0)
        return;
    text[size] = 0;
    if (sscanf(text, "stripe_count=%ld stripe_size=%ld", &factor, &unit) != 2)
        return;
    fd->hints->striping_unit = (int)unit;
    fd->hints->striping_factor = (int)factor;
    snprintf(value, sizeof value, "%ld", unit);
    ADIOI_Info_set(fd->info, "striping_unit", value);
    snprintf(value, sizeof value, "%ld", factor);
    ADIOI_Info_set(fd->info, "striping_factor", value);
}

static void ADIOI_NACRE_Open(ADIO_File fd, int *error_code)
{
    static char myname[] = "ADIOI_NACRE_OPEN";
    mode_t mask = umask(022);
    umask(mask);
    int mode = fd->perm == ADIO_PERM_NULL ? (int)(mask ^ 0666) : fd->perm;
    int flags = fd->access_mode & ADIO_RDWR ? O_RDWR : fd->access_mode & ADIO_WRONLY ? O_WRONLY : O_RDONLY;
    fd->fd_direct = -1;
    fd->fd_sys = -1;
    if (fd->access_mode & ADIO_CREATE) {
        fd->fd_sys = open(fd->filename, flags | O_CREAT | O_EXCL, mode);
        if (fd->fd_sys >= 0)
            nacre_set_layout(fd);
        else if (errno == EEXIST && !(fd->access_mode & ADIO_EXCL))
            fd->fd_sys = open(fd->filename, flags | O_CREAT, mode);
    } else {
        fd->fd_sys = open(fd->filename, flags);
    }
    if (fd->fd_sys == -1) {
        *error_code = ADIOI_Err_create_code(myname, fd->filename, errno);
        return;
    }
    nacre_report_layout(fd);
    fd->fs_ptr = nacre_io_adopt(fd->fd_sys, flags) ? fd : NULL;
    if (fd->access_mode & ADIO_APPEND)
        fd->fp_ind = fd->fp_sys_posn = lseek(fd->fd_sys, 0, SEEK_END);
    *error_code = MPI_SUCCESS;
}

static void ADIOI_NACRE_Close(ADIO_File fd, int *error_code)
{
    nacre_io_drop(fd->fd_sys);
    ADIOI_GEN_Close(fd, error_code);
}

static void ADIOI_NACRE_Flush(ADIO_File fd, int *error_code)
{
    static char myname[] = "ADIOI_NACRE_FLUSH";
    *error_code = MPI_SUCCESS;
    if (fd->is_open > 0 && fd->fs_ptr && nacre_io_sync(fd->fd_sys) == -1)
        *error_code = ADIOI_Err_create_code(myname, fd->filename, errno);
    else
        ADIOI_GEN_Flush(fd, error_code);
}

/* -------------------------------------------------------------------------------------------------------- transfers */

/* The bytes of a buffer of `count` elements, as runs of memory; to be freed. */
static struct iovec *nacre_memory(const void *buffer, int count, MPI_Datatype type, MPI_Count bytes)
{
    int contiguous;
    ADIOI_Datatype_iscontig(type, &contiguous);
    if (contiguous) {
        struct iovec *one = ADIOI_Malloc(sizeof *one);
        *one = (struct iovec){(void *)buffer, (size_t)bytes};
        return one;
    }
    MPI_Aint lower, extent;
    MPI_Type_get_extent(type, &lower, &extent);
    ADIOI_Flatlist_node *flat = ADIOI_Flatten_and_find(type);
    struct iovec *runs = ADIOI_Malloc((size_t)count * (size_t)flat->count * sizeof *runs), *next = runs;
    for (int element = 0; element < count; element++)
        for (MPI_Count block = 0; block < flat->count; block++)
            if (flat->blocklens[block])
                *next++ = (struct iovec){(char *)buffer + (MPI_Aint)element * extent + flat->indices[block],
                                         (size_t)flat->blocklens[block]};
    return runs;
}

static void nacre_transfer(ADIO_File fd, int writes, const struct nacre_extent *extents, size_t count,
                           const struct iovec *memory, MPI_Datatype type, ADIO_Status *status, int *error_code)
{
    static char myname[] = "ADIOI_NACRE_TRANSFER";
    ssize_t done = writes ? nacre_io_write(fd->fd_sys, extents, count, memory)
                          : nacre_io_read(fd->fd_sys, extents, count, memory);
    if (done == -1) {
        *error_code = ADIOI_Err_create_code(myname, fd->filename, errno);
        return;
    }
#ifdef HAVE_STATUS_SET_BYTES
    if (status)
        MPIR_Status_set_bytes(status, type, done);
#endif
    *error_code = MPI_SUCCESS;
}

static void nacre_contiguous(ADIO_File fd, int writes, const void *buffer, int count, MPI_Datatype type,
                             int file_ptr_type, ADIO_Offset offset, ADIO_Status *status, int *error_code)
{
    MPI_Count size;
    MPI_Type_size_x(type, &size);
    if (file_ptr_type == ADIO_INDIVIDUAL)
        offset = fd->fp_ind;
    struct nacre_extent extent = {(uint64_t)offset, (uint64_t)(size * count)};
    struct iovec memory = {(void *)buffer, (size_t)extent.length};
    nacre_transfer(fd, writes, &extent, extent.length ? 1 : 0, &memory, type, status, error_code);
    if (file_ptr_type == ADIO_INDIVIDUAL)
        fd->fp_ind += (ADIO_Offset)extent.length;
    fd->fp_sys_posn = offset + (ADIO_Offset)extent.length;
}

static void nacre_strided(ADIO_File fd, int writes, const void *buffer, int count, MPI_Datatype type,
                          int file_ptr_type, ADIO_Offset offset, ADIO_Status *status, int *error_code)
{
    ADIO_Offset *offsets, *lengths, start, end;
    MPI_Count size;
    int pieces;
    MPI_Type_size_x(type, &size);
    ADIOI_Calc_my_off_len(fd, count, type, file_ptr_type, offset, &offsets, &lengths, &start, &end, &pieces);
    struct nacre_extent *extents = ADIOI_Malloc((size_t)(pieces ? pieces : 1) * sizeof *extents);
    size_t used = 0;
    for (int piece = 0; piece < pieces; piece++)
        if (lengths[piece])
            extents[used++] = (struct nacre_extent){(uint64_t)offsets[piece], (uint64_t)lengths[piece]};
    struct iovec *memory = nacre_memory(buffer, count, type, size * count);
    int locks = fd->atomicity && used;
    if (locks && writes)
        ADIOI_WRITE_LOCK(fd, start, SEEK_SET, end - start + 1);
    else if (locks)
        ADIOI_READ_LOCK(fd, start, SEEK_SET, end - start + 1);
    nacre_transfer(fd, writes, extents, used, memory, type, status, error_code);
    if (locks)
        ADIOI_UNLOCK(fd, start, SEEK_SET, end - start + 1);
    fd->fp_sys_posn = -1; /* nobody knows */
    ADIOI_Free(memory);
    ADIOI_Free(extents);
    ADIOI_Free(offsets); /* and the lengths, which stand in the same memory */
}

/* A file that the library does not serve (mirrored, small and read only, not on a mount of ours) is read and written as
 * ROMIO's own drivers do. */
#define NACRE_CALL(name, writes, how, constness)                                                              \
    static void ADIOI_NACRE_##name(ADIO_File fd, constness void *buffer, int count, MPI_Datatype type,        \
                                   int file_ptr_type, ADIO_Offset offset, ADIO_Status *status, int *error_code) \
    {                                                                                                         \
        if (fd->fs_ptr)                                                                                       \
            how(fd, writes, buffer, count, type, file_ptr_type, offset, status, error_code);                  \
        else                                                                                                  \
            ADIOI_GEN_##name(fd, buffer, count, type, file_ptr_type, offset, status, error_code);             \
    }

NACRE_CALL(ReadContig, 0, nacre_contiguous, )
NACRE_CALL(WriteContig, 1, nacre_contiguous, const)
NACRE_CALL(ReadStrided, 0, nacre_strided, )
NACRE_CALL(WriteStrided, 1, nacre_strided, const)

struct ADIOI_Fns_struct ADIO_NACRE_operations = {
    ADIOI_NACRE_Open,
    ADIOI_GEN_OpenColl,
    ADIOI_NACRE_ReadContig,
    ADIOI_NACRE_WriteContig,
    ADIOI_GEN_ReadStridedColl,
    ADIOI_GEN_WriteStridedColl,
    ADIOI_GEN_SeekIndividual,
    ADIOI_GEN_Fcntl,
    ADIOI_NACRE_SetInfo,
    ADIOI_NACRE_ReadStrided,
    ADIOI_NACRE_WriteStrided,
    ADIOI_NACRE_Close,
    ADIOI_FAKE_IreadContig,
    ADIOI_FAKE_IwriteContig,
    ADIOI_FAKE_IODone,
    ADIOI_FAKE_IODone,
    ADIOI_FAKE_IOComplete,
    ADIOI_FAKE_IOComplete,
    ADIOI_FAKE_IreadStrided,
    ADIOI_FAKE_IwriteStrided,
    ADIOI_NACRE_Flush,
    ADIOI_GEN_Resize,
    ADIOI_GEN_Delete,
    ADIOI_GEN_Feature,
    "NACRE: straight to the OSTs of nacrefs",
    ADIOI_GEN_IreadStridedColl,
    ADIOI_GEN_IwriteStridedColl,
    ADIOI_GEN_SetLock,
};
