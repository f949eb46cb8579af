"""`nacre fsck`: checking a filesystem while it is used, and mending it (docs/fsck.md)."""
