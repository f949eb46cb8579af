"""The timed loops of benchmark workers: bare system calls on paths that were made before, equal on every filesystem."""

import errno
import os
from collections.abc import Sequence

from nacrefs.client.bench.workers import Run

RANDOM_BLOCK_BYTES = 4096


def create_files(paths: Sequence[str], content: bytes) -> Run:
    """Create each file, write `content` in one call, close."""

    def run() -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        for path in paths:
            descriptor = os.open(path, flags, 0o644)
            os.write(descriptor, content)
            os.close(descriptor)
        return len(paths) * len(content)

    return run


def touch_files(paths: Sequence[str]) -> Run:
    """Create each file empty."""

    def run() -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        for path in paths:
            os.close(os.open(path, flags, 0o644))
        return 0

    return run


def stat_files(paths: Sequence[str]) -> Run:
    """Ask for the attributes of each path."""

    def run() -> int:
        for path in paths:
            os.stat(path)
        return 0

    return run


def read_files(paths: Sequence[str], size: int) -> Run:
    """Open each file, read it in one call, close; EIO if not every one has `size` bytes."""

    def run() -> int:
        total = 0
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            total += len(os.read(descriptor, 65536))
            os.close(descriptor)
        if total != len(paths) * size:
            raise OSError(errno.EIO, f"read {total} bytes of the {len(paths) * size} that were written", paths[0])
        return total

    return run


def unlink_files(paths: Sequence[str]) -> Run:
    """Remove each file."""

    def run() -> int:
        for path in paths:
            os.unlink(path)
        return 0

    return run


def list_directory(directory: str, entries: int) -> Run:
    """List a directory and ask for every entry's attributes; EIO if there are not `entries` of them."""

    def run() -> int:
        count = 0
        with os.scandir(directory) as listing:
            for entry in listing:
                entry.stat(follow_symlinks=False)
                count += 1
        if count != entries:
            raise OSError(errno.EIO, f"listed {count} entries of the {entries} that were made", directory)
        return 0

    return run


def write_stream(path: str, size: int, block: memoryview, sync: bool) -> Run:
    """Write a new file of `size` bytes block by block; `sync`: with one fsync at the end."""

    def run() -> int:
        descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        remaining = size
        while remaining:
            remaining -= os.write(descriptor, block[:remaining])
        if sync:
            os.fsync(descriptor)
        os.close(descriptor)
        return size

    return run


def read_stream(path: str, size: int, block_bytes: int) -> Run:
    """Read a file to its end into one buffer; EIO if it has not `size` bytes."""
    buffers = [bytearray(block_bytes)]

    def run() -> int:
        descriptor = os.open(path, os.O_RDONLY)
        total = 0
        while got := os.readv(descriptor, buffers):
            total += got
        os.close(descriptor)
        if total != size:
            raise OSError(errno.EIO, f"read {total} bytes of the {size} that were written", path)
        return total

    return run


def random_blocks(path: str, offsets: Sequence[int], block: bytes | None) -> Run:
    """Read 4 KiB at each offset or, if `block` is given, write it there, then fsync once; EIO if a call falls short."""

    def run() -> int:
        descriptor = os.open(path, os.O_RDWR)
        total = 0
        if block is None:
            for offset in offsets:
                total += len(os.pread(descriptor, RANDOM_BLOCK_BYTES, offset))
        else:
            for offset in offsets:
                total += os.pwrite(descriptor, block, offset)
            os.fsync(descriptor)
        os.close(descriptor)
        if total != len(offsets) * RANDOM_BLOCK_BYTES:
            raise OSError(errno.EIO, f"moved {total} bytes of {len(offsets) * RANDOM_BLOCK_BYTES}", path)
        return total

    return run
