/* The open files that we serve, by descriptor. */
#ifndef NACRE_FILE_H
#define NACRE_FILE_H

#include "grant.h"

#include <pthread.h>

/* MOUNT: its reads and writes go through the mount, for good. UNDECIDED: so far they do; we serve it ourselves once it
 * is used in earnest, for small files are better off in the MDT. OURS: we serve it. */
enum file_state { FILE_MOUNT, FILE_UNDECIDED, FILE_OURS };

/* One open file, which several descriptors may stand for. The kernel keeps its position. */
struct file {
    int refs;
    enum file_state state;
    int rights;
    unsigned uses;
    struct grant *grant;
    uint64_t *written; /* by stripe: the object's version after our last write that no fsync has followed, or 0 */
    pthread_mutex_t position;
    struct buffer *buffer; /* NULL unless the program has asked for one (buffer.h) */
};

/* A descriptor has been opened by the program. `eagerly`: we serve it at once, if we can. */
void file_opened(int fd, int flags, bool eagerly);

/* The file of a descriptor, whoever serves it; NULL if it is none of a mount's. To be put. */
struct file *file_of(int fd);

/* The first descriptor from this one on that has a file; -1 if there is none. */
int file_next(int fd);

/* The file of a descriptor, if we may serve a transfer of this size; NULL if it is the mount's business. To be put. */
struct file *file_serving(int fd, size_t bytes, int right);
void file_put(struct file *file);

/* A grant for an I/O, kept; NULL with errno. `renew`: the last one, `stale`, is of no use. */
struct grant *file_grant(struct file *file, int fd, const struct grant *stale);

/* From now on the mount serves it. */
void file_hand_back(int fd);

void file_closing(int fd);
void file_closing_range(unsigned first, unsigned last);
void file_duplicated(int from, int to);

/* Stripes that an fsync must care for: noted with the version that a write has made, and taken once. */
void file_wrote(struct file *file, uint32_t stripe, uint64_t version);
uint64_t file_take_written(struct file *file, uint32_t stripe);

#endif
