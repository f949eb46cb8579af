/* Where nacrefs is mounted, after /proc/self/mountinfo, and names with the prefix `nacre:`. */
#ifndef NACRE_MOUNTS_H
#define NACRE_MOUNTS_H

#include <stdbool.h>
#include <stddef.h>

/* Whether a descriptor is a regular file on one of our mounts. Asks the mount nothing. */
bool mounts_have(int fd);

/* The path that a name stands for: itself, or what is behind `nacre:`, which is a full path into a mount, or one from
 * the root of the only mount there is. Uses `space` (PATH_MAX bytes) where it must. */
const char *mounts_path(const char *name, char *space);

/* Whether a path, which need not exist, lies on one of our mounts. */
bool mounts_hold_path(const char *path);

#endif
