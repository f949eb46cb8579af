/* The buffer that a program may ask for (hint nacre_buffer_size, NACRE_IO_BUFFER; docs/mpi.md): small writes are
 * collected and sent together, small reads are served from what was fetched ahead. Without one, all of this is `transfer`.
 *
 * Whether others see what this process has written, and it what they have, is the business of its sync and its locks
 * then, as MPI has it. `buffer_before` is where that is decided. */
#ifndef NACRE_BUFFER_H
#define NACRE_BUFFER_H

#include "file.h"

#include <sys/uio.h>

/* What a program does with an open file besides reading and writing it. LOOK: at its size. MOUNT: what the mount
 * carries out with the file's bytes. CLOSE: a descriptor of it ends. */
enum use { USE_LOOK, USE_SYNC, USE_LOCK, USE_UNLOCK, USE_RESIZE, USE_MOUNT, USE_CLOSE };

/* The bytes that a text asks for ("16M"), as a buffer can have them; -1 if it is none. 0: no buffer. */
long buffer_parse(const char *text);

/* The bytes that NACRE_IO_BUFFER asks for. */
long buffer_of_environment(void);

/* Gives a file that has just been opened a buffer; `bytes` is -1 where only the environment can have asked for it. */
void buffer_attach(int fd, int flags, long bytes);

/* Transfers of one extent, as `transfer` does them: 0 or an errno. What was collected stays, if it cannot be sent, and is
 * sent again by the next call, which fails if that fails. */
int buffer_read(struct file *file, int fd, const struct extent *extent, const struct iovec *memory, uint64_t *size);
int buffer_write(struct file *file, int fd, const struct extent *extent, const struct iovec *memory, bool sync);

/* From now on this thread's own transfers do without, or not any more. */
void buffer_suspend(bool now);

/* All transfers do. */
void buffer_pause(bool now);

/* To be called before and after each use of any descriptor. Before: 0, or the errno with which it fails. */
int buffer_before(int fd, enum use use);
void buffer_after(int fd, enum use use);

/* Before the process forks or becomes another program: 0, or the errno of a file that could not be sent. */
int buffer_send_all(void);

/* Before it ends: from now on nothing is collected, and what cannot be sent is lost, which is said. */
void buffer_end(void);

/* What others have written since is to be seen. */
void buffer_forget_fetched(void);

/* In the child of a fork: what the parent has collected since is the parent's. */
void buffer_forget(struct buffer *buffer);

/* Nobody has the file open any more. Says so if bytes are lost. */
void buffer_free(struct buffer *buffer);

#endif
