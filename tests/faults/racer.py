"""A program that does anything to a small set of names, among others that do the same.

    python -m tests.faults.racer DIRECTORY SEED

Whatever it writes is a run of one capital letter, so whatever it reads must be capital letters and zeros. It ends with
SIGTERM. Errors that races make are none; what cannot be is a line `wrong …` on standard output.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import random
import shutil
import signal
import sys
from collections.abc import Generator
from typing import Final

NAMES: Final = 8
SIZE_MAX: Final = 300_000
RACES: Final = frozenset(
    (
        errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.ELOOP,
        errno.EBUSY, errno.ENODATA, errno.ESTALE, errno.EAGAIN, errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENXIO,
        errno.EDEADLK, errno.ENAMETOOLONG,
    )
)  # fmt: skip
"""What an operation may say that loses a race."""
GONE: Final = frozenset((errno.ENOTCONN, errno.ECONNABORTED))
"""What a mount says whose daemon was killed: the program ends."""
LOST: Final = frozenset((errno.EIO,))
"""Only `fsync`, `close` and `write` may say so, of data that was lost with a session."""
LETTERS: Final = frozenset(b"\0ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Racer:
    """Does things at random below a directory."""

    def __init__(self, directory: str, seed: int) -> None:
        self._directory = directory
        self._random = random.Random(seed)
        self.stopped = False
        self._verbs = [name for name in dir(self) if name.startswith("do_")]

    def run(self) -> None:
        """Until stopped, or the mount is gone."""
        while not self.stopped:
            verb = self._random.choice(self._verbs)
            try:
                getattr(self, verb)()
            except (shutil.Error, ValueError):  # (mmap says so of a file that was cut meanwhile)
                pass
            except OSError as error:
                if error.errno in GONE:
                    return
                if error.errno not in RACES and not (
                    error.errno in LOST and verb in ("do_write", "do_fsync", "do_map")
                ):
                    self._wrong(f"{verb}: {error}")

    def _wrong(self, text: str) -> None:
        sys.stdout.write(f"wrong {text}\n")
        sys.stdout.flush()

    def _path(self) -> str:
        depth = self._random.choice((1, 1, 2, 2, 3))
        return "/".join([self._directory, *(str(self._random.randrange(NAMES)) for _ in range(depth))])

    @contextlib.contextmanager
    def _open(self, flags: int) -> Generator[int]:
        descriptor = os.open(self._path(), flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            yield descriptor
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _check(self, data: bytes) -> None:
        if not LETTERS.issuperset(data):
            self._wrong(f"read bytes that nobody wrote: {sorted(set(data) - LETTERS)[:5]}")

    def _piece(self) -> tuple[int, bytes]:
        offset = self._random.choice((0, self._random.randrange(SIZE_MAX)))
        return offset, bytes([self._random.randrange(65, 91)]) * self._random.choice((1, 100, 5000, 70_000))

    def do_write(self) -> None:
        with self._open(os.O_RDWR | os.O_CREAT | self._random.choice((0, 0, os.O_APPEND, os.O_TRUNC, os.O_EXCL))) as fd:
            for _ in range(self._random.randrange(1, 4)):
                offset, data = self._piece()
                os.pwrite(fd, data, offset)

    def do_fsync(self) -> None:
        with self._open(os.O_RDWR) as fd:
            os.pwrite(fd, b"S" * 10, self._random.randrange(SIZE_MAX))
            os.fsync(fd)

    def do_read(self) -> None:
        with self._open(os.O_RDONLY) as fd:
            self._check(os.pread(fd, SIZE_MAX, 0))

    def do_map(self) -> None:
        with self._open(os.O_RDWR) as fd:
            size = os.fstat(fd).st_size
            if size:
                self._check(os.pread(fd, size, 0))
                with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as _:
                    pass  # (its pages may be cut away at any time: SIGBUS, as on a disk)

    def do_truncate(self) -> None:
        os.truncate(self._path(), self._random.choice((0, 10, 5000, 17_000, self._random.randrange(SIZE_MAX))))

    def do_allocate(self) -> None:
        with self._open(os.O_RDWR) as fd:
            os.posix_fallocate(fd, self._random.randrange(SIZE_MAX), 1 + self._random.randrange(10_000))

    def do_rename(self) -> None:
        os.rename(self._path(), self._path())

    def do_link(self) -> None:
        os.link(self._path(), self._path(), follow_symlinks=False)

    def do_symlink(self) -> None:
        os.symlink(str(self._random.randrange(NAMES)), self._path())

    def do_mkdir(self) -> None:
        os.mkdir(self._path())

    def do_rmdir(self) -> None:
        os.rmdir(self._path())

    def do_unlink(self) -> None:
        os.unlink(self._path())

    def do_remove_tree(self) -> None:
        if self._random.random() < 0.1:
            shutil.rmtree(self._path(), ignore_errors=True)

    def do_chmod(self) -> None:
        # (Not 1777: of a symbolic link in there that is somebody else's O_CREAT | O_NOFOLLOW says EACCES, everywhere.)
        os.chmod(self._path(), self._random.choice((0o600, 0o644, 0o755, 0o1775)))

    def do_chown(self) -> None:
        os.chown(self._path(), self._random.randrange(3), self._random.randrange(3), follow_symlinks=False)

    def do_xattr(self) -> None:
        path = self._path()
        os.setxattr(path, "user.a", b"x" * self._random.randrange(100))
        os.removexattr(path, "user.a")

    def do_stat(self) -> None:
        os.lstat(self._path())

    def do_list(self) -> None:
        with os.scandir(self._path()) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    entry.stat(follow_symlinks=False)

    def do_lock(self) -> None:
        with self._open(os.O_RDWR) as fd:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, self._random.randrange(100))
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def do_orphan(self) -> None:
        path = self._path()
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.unlink(path)
            self._check(os.pread(descriptor, SIZE_MAX, 0))
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def main() -> None:
    racer = Racer(sys.argv[1], int(sys.argv[2]))

    def stop(*_: object) -> None:
        racer.stopped = True

    signal.signal(signal.SIGTERM, stop)
    racer.run()


if __name__ == "__main__":
    main()
