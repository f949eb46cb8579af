#include "mpi_library.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct mpi_library library;
static void *handle;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Where the MPI library is loaded. It need not be visible to RTLD_NEXT: Python loads it for itself alone. */
struct search {
    void *handle;
    char name[4096];
};

static int look_into(struct dl_phdr_info *object, size_t size, void *argument)
{
    struct search *search = argument;
    (void)size;
    if (!object->dlpi_name || !object->dlpi_name[0])
        return 0; /* the program itself, which finds us first */
    void *handle = dlopen(object->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    if (!handle)
        return 0;
    /* The symbol must be this object's own: a look-up goes through everything that it needs, too. */
    void *symbol = dlsym(handle, "PMPI_File_get_info"), *ours = (void *)mpi_library;
    Dl_info found, self;
    if (symbol && dladdr(symbol, &found) && (uintptr_t)found.dli_fbase == object->dlpi_addr &&
        dladdr(ours, &self) && found.dli_fbase != self.dli_fbase) {
        search->handle = handle;
        snprintf(search->name, sizeof search->name, "%s", object->dlpi_name);
        return 1;
    }
    dlclose(handle);
    return 0;
}

static void *need(const char *name)
{
    void *symbol = dlsym(handle, name);
    if (!symbol) {
        fprintf(stderr, "libnacre_io: the MPI library has no %s\n", name);
        abort();
    }
    return symbol;
}

static void set_constants(const struct search *search)
{
    library.mode_create = 1;
    library.mode_rdonly = 2;
    library.mode_excl = 64;
    library.handle_bits = 32;
    library.info_null = 0x1c000000; /* MPICH and what comes from it */
    /* Open MPI's is an object, of which a program may hold a copy of its own. */
    void *null = dlsym(RTLD_DEFAULT, "ompi_mpi_info_null");
    if (!null)
        null = dlsym(search->handle, "ompi_mpi_info_null");
    if (null) {
        library.info_null = (word)null;
        library.handle_bits = 64;
    } else if (strstr(search->name, "libmpi_abi")) { /* MPI 5.0's standard ABI */
        library.mode_create = 2;
        library.mode_rdonly = 16;
        library.mode_excl = 8;
        library.info_null = 0x130;
        library.handle_bits = 64;
    }
}

static void find(void)
{
    struct search search = {0};
    dl_iterate_phdr(look_into, &search);
    if (!search.handle) {
        fprintf(stderr, "libnacre_io: an MPI function was called and no MPI library is loaded\n");
        abort();
    }
    handle = search.handle;
    /* The MPI's own function, whoever else is in front of it. */
    library.file_open = need("PMPI_File_open");
    library.file_delete = need("PMPI_File_delete");
    library.file_get_info = need("PMPI_File_get_info");
    library.file_sync = need("PMPI_File_sync");
    library.file_set_atomicity = need("PMPI_File_set_atomicity");
    library.info_create = need("PMPI_Info_create");
    library.info_dup = need("PMPI_Info_dup");
    library.info_set = need("PMPI_Info_set");
    library.info_get = need("PMPI_Info_get");
    library.info_free = need("PMPI_Info_free");
    library.comm_rank = need("PMPI_Comm_rank");
    library.comm_size = need("PMPI_Comm_size");
    library.barrier = need("PMPI_Barrier");
    set_constants(&search);
}

void *mpi_function(const char *name)
{
    mpi_library();
    return dlsym(handle, name);
}

const struct mpi_library *mpi_library(void)
{
    pthread_once(&once, find);
    return &library;
}
