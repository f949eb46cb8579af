"""The mount: the kernel's FUSE protocol on one side, a `client.filesystem.Filesystem` on the other."""
