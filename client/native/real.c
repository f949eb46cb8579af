#include "real.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

void *real_symbol(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "libnacre_io: the C library has no %s\n", name);
        abort();
    }
    return found;
}
