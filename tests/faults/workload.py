"""A program that changes files at random in a directory of its own, and logs what it is promised.

    python -m tests.faults.workload DIRECTORY MANIFEST SEED

It ends with SIGTERM after the operation in hand (exit code 0), or when an operation fails (3), which the log says.
"""

import contextlib
import os
import random
import signal
import sys
from pathlib import Path
from typing import Final

from tests.faults.promises import File, Manifest, Operation, Tree, contents

OPEN_MAX: Final = 6
SIZE_MAX: Final = 400_000
FAILED: Final = 3
_VERBS: Final = {
    "create": 14, "write": 40, "fsync": 14, "truncate": 6, "unlink": 5, "rename": 8, "mkdir": 3, "rmdir": 1, "link": 3,
    "symlink": 2, "chmod": 3, "setxattr": 3, "utime": 3, "read": 8, "close": 8,
}  # fmt: skip


class Workload:
    """The program: chooses operations that are possible, does them, and keeps the tree that must come of it."""

    def __init__(self, directory: Path, manifest: Manifest, seed: int) -> None:
        self._directory = directory
        self._manifest = manifest
        self._random = random.Random(seed)
        self._numbers = iter(range(1, 1 << 40))
        self._open: dict[File, int] = {}
        self.tree = Tree()
        self.stopped = False

    def run(self) -> int:
        """Until stopped or failed; the exit code."""
        while not self.stopped:
            verb = self._random.choices(list(_VERBS), list(_VERBS.values()))[0]
            if verb == "read":
                self._compare()
            elif verb == "close":
                self._close_one()
            elif (operation := self._choose(verb)) is not None and not self._carry_out(operation):
                return FAILED
        while self._open:
            self._close_one()
        return 0

    def _carry_out(self, operation: Operation) -> bool:
        self._manifest.begin(operation)
        try:
            self._do(*operation)
        except OSError as error:
            self._manifest.end(error.errno or -1)
            return bool(operation[0] == "fsync")  # may fail once, and promises nothing then
        self.tree.apply(operation)
        self._manifest.end()
        return True

    # ---------------------------------------------------------------------------------------------------------- choice

    def _choose(self, verb: str) -> Operation | None:
        """What to do, of this kind; None if that is not possible now."""
        chance, tree = self._random, self.tree
        files = tree.files()
        if verb in ("create", "mkdir", "symlink") and len(tree.nodes) < 40:
            path = self._new_path()
            return {"create": ["create", path], "mkdir": ["mkdir", path], "symlink": ["symlink", "some/where", path]}[
                verb
            ]
        if verb == "rmdir":
            empty = [path for path in tree.directories()[1:] if tree.is_empty(path)]
            return ["rmdir", chance.choice(empty)] if empty else None
        if verb == "rename" and tree.nodes:
            return self._choose_rename()
        if not files or verb in ("create", "mkdir", "symlink", "rename"):
            return None
        path = chance.choice(files)
        file = tree.file(path)
        if verb == "write":
            if len(file.data) < SIZE_MAX / 2 and chance.random() < 0.5:
                offset = len(file.data)
            else:
                offset = chance.randrange(0, min(SIZE_MAX, len(file.data) + 20_000) + 1)
            length = chance.choice((chance.randint(1, 300), chance.randint(1, 9000), chance.randint(4096, 150_000)))
            return ["write", path, offset, length, chance.getrandbits(32)]
        if verb == "truncate":
            size = chance.choice((0, chance.randint(0, max(1, len(file.data))), chance.randint(0, SIZE_MAX)))
            return ["truncate", path, size]
        if verb == "link":
            return ["link", path, self._new_path()]
        if verb == "chmod":
            return ["chmod", path, chance.choice((0o600, 0o640, 0o644, 0o755, 0o777))]
        if verb == "setxattr":
            return ["setxattr", chance.choice([path, *tree.directories()[1:]]), "note", str(chance.getrandbits(30))]
        if verb == "utime":
            return ["utime", path, chance.randrange(10**18, 2 * 10**18)]
        return [verb, path]

    def _new_path(self) -> str:
        directory = self._random.choice(self.tree.directories())
        return os.path.normpath(f"{directory}/{next(self._numbers)}")

    def _choose_rename(self) -> Operation:
        path = self._random.choice(list(self.tree.nodes))
        files = self.tree.files()
        if isinstance(self.tree.nodes[path], File) and self._random.random() < 0.4:
            return ["rename", path, self._random.choice(files)]
        while (new := self._new_path()).startswith(f"{path}/"):
            pass
        return ["rename", path, new]

    # ------------------------------------------------------------------------------------------------------ operations

    def _do(self, verb: str, *arguments: str | int) -> None:
        getattr(self, f"_{verb}")(*arguments)

    def _descriptor(self, path: str) -> int:
        file = self.tree.file(path)
        if file not in self._open:
            if len(self._open) >= OPEN_MAX:
                self._close_one()
            self._open[file] = os.open(self._directory / path, os.O_RDWR | os.O_CLOEXEC)
        return self._open[file]

    def _close_one(self) -> None:
        if self._open:
            descriptor = self._open.pop(self._random.choice(list(self._open)))
            with contextlib.suppress(OSError):  # a mount that is dead: the next operation says so
                os.close(descriptor)

    def _create(self, path: str) -> None:
        os.close(os.open(self._directory / path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))

    def _write(self, path: str, offset: int, length: int, seed: int) -> None:
        written = os.pwrite(self._descriptor(path), contents(seed, length), offset)
        if written != length:
            self._manifest.wrong(f"a write of {length} bytes to {path} wrote {written}")

    def _truncate(self, path: str, size: int) -> None:
        if self._random.random() < 0.5:
            os.ftruncate(self._descriptor(path), size)
        else:
            os.truncate(self._directory / path, size)

    def _fsync(self, path: str) -> None:
        os.fsync(self._descriptor(path))

    def _unlink(self, path: str) -> None:
        os.unlink(self._directory / path)

    def _mkdir(self, path: str) -> None:
        os.mkdir(self._directory / path, 0o755)

    def _rmdir(self, path: str) -> None:
        os.rmdir(self._directory / path)

    def _link(self, path: str, new: str) -> None:
        os.link(self._directory / path, self._directory / new)

    def _symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._directory / path)

    def _rename(self, path: str, new: str) -> None:
        os.rename(self._directory / path, self._directory / new)

    def _chmod(self, path: str, mode: int) -> None:
        os.chmod(self._directory / path, mode)

    def _setxattr(self, path: str, name: str, value: str) -> None:
        os.setxattr(self._directory / path, f"user.{name}", value.encode())

    def _utime(self, path: str, mtime_ns: int) -> None:
        os.utime(self._directory / path, ns=(mtime_ns, mtime_ns))

    def _compare(self) -> None:
        """Read a file, and a directory, and log what is not as it was made."""
        files = self.tree.files()
        if not files:
            return
        path = self._random.choice(files)
        file = self.tree.file(path)
        with contextlib.suppress(OSError):  # the next operation will see it, too
            data = (self._directory / path).read_bytes()
            if text := file.broken(data, crashed=False):
                self._manifest.wrong(f"read {path}: {text}")
            directory = self._random.choice(self.tree.directories())
            names = set(os.listdir(self._directory / directory))
            prefix = "" if directory == "." else f"{directory}/"
            expected = {name[len(prefix) :] for name in self.tree.nodes if name.startswith(prefix)}
            expected = {name for name in expected if "/" not in name}
            if names != expected:
                self._manifest.wrong(f"listed {directory}: {sorted(names ^ expected)} are wrong")


def main() -> int:
    directory, manifest, seed = Path(sys.argv[1]), Manifest(Path(sys.argv[2])), int(sys.argv[3])
    workload = Workload(directory, manifest, seed)

    def stop(*_: object) -> None:
        workload.stopped = True

    signal.signal(signal.SIGTERM, stop)
    return workload.run()


if __name__ == "__main__":
    sys.exit(main())
