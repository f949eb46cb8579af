"""What programs, mounts and people use: the SDK, the FUSE session and the `nacre` command."""
