/* The process becomes another program, or ends: what is collected in its memory is sent before. Forks: file.c. */
#include "buffer.h"
#include "real.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------------------------------------- exec */

#define BECOME(function, parameters, call)                                    \
    EXPORT int function parameters                                            \
    {                                                                         \
        int error = buffer_send_all();                                        \
        if (!error)                                                           \
            return REAL(function) call;                                       \
        errno = error;                                                        \
        return -1;                                                            \
    }

BECOME(execve, (const char *path, char *const words[], char *const environment[]), (path, words, environment))
BECOME(execvpe, (const char *name, char *const words[], char *const environment[]), (name, words, environment))
BECOME(execv, (const char *path, char *const words[]), (path, words))
BECOME(execvp, (const char *name, char *const words[]), (name, words))
BECOME(fexecve, (int fd, char *const words[], char *const environment[]), (fd, words, environment))
BECOME(execveat, (int folder, const char *path, char *const words[], char *const environment[], int flags),
       (folder, path, words, environment, flags))

/* Words that stand in the call itself. `then` is what is called with them, and with `environment` behind them. */
#define BECOME_LISTED(function, then, environment_of)                         \
    EXPORT int function(const char *path, const char *word, ...)              \
    {                                                                         \
        va_list list;                                                         \
        size_t count = 1;                                                     \
        va_start(list, word);                                                 \
        while (va_arg(list, char *))                                          \
            count++;                                                          \
        va_end(list);                                                         \
        char *words[count + 1], **environment;                                \
        words[0] = (char *)word;                                              \
        va_start(list, word);                                                 \
        for (size_t index = 1; index <= count; index++)                       \
            words[index] = va_arg(list, char *);                              \
        environment = environment_of;                                         \
        va_end(list);                                                         \
        return then(path, words, environment);                                \
    }

BECOME_LISTED(execl, execve, environ)
BECOME_LISTED(execlp, execvpe, environ)
BECOME_LISTED(execle, execve, va_arg(list, char **))

/* ---------------------------------------------------------------------------------------------------------------- exit */

__attribute__((destructor)) static void at_exit(void)
{
    buffer_end();
}

EXPORT void _exit(int status)
{
    buffer_end();
    REAL(_exit)(status);
    __builtin_unreachable();
}

EXPORT void _Exit(int status)
{
    _exit(status);
}

EXPORT void quick_exit(int status)
{
    buffer_end();
    REAL(quick_exit)(status);
    __builtin_unreachable();
}
