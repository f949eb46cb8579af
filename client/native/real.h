/* The C library's own functions, behind the names that we have taken. */
#ifndef NACRE_REAL_H
#define NACRE_REAL_H

/* The next definition of a name after ours; the process ends if there is none. */
void *real_symbol(const char *name);

/* `REAL(close)(fd)` calls the C library's close. */
#define REAL(name)                                                            \
    ({                                                                        \
        static __typeof__(&name) found;                                       \
        if (__builtin_expect(!found, 0))                                      \
            found = (__typeof__(&name))real_symbol(#name);                    \
        found;                                                                \
    })

#define EXPORT __attribute__((visibility("default")))

#endif
