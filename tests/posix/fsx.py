"""Random reads, writes, mappings, cuts, holes and copies of one file, by one client or several in turn.

`python -m tests.posix.fsx FILE [FILE2…] --seed N --ops N`: the names stand for one file, seen through as many mounts.
After each call the bytes that it touched, and now and then the whole file, are compared with what they must be. Prints
the first difference and the calls before it. What it does is what the well-known `fsx` does, and more.
"""

import argparse
import ctypes
import errno
import mmap
import os
import random
import sys
from collections.abc import Callable
from typing import Final

libc = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE: Final = 1
PUNCH: Final = 3
COLLAPSE: Final = 8
ZERO: Final = 16
INSERT: Final = 32
SECTOR: Final = 4096


class Difference(Exception):
    """The file is not what it must be."""


class Fsx:
    """One file through several descriptors, and its model."""

    def __init__(self, paths: list[str], seed: int, most: int, direct: bool, mapped: bool, refuses: bool) -> None:
        self.paths = paths
        self.dice = random.Random(seed)
        self.most = most
        self.model = bytearray()
        self.history: list[str] = []
        self.files = [os.open(path, os.O_RDWR | os.O_CREAT, 0o644) for path in paths]
        self.direct = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in paths] if direct else []
        self.buffer = mmap.mmap(-1, 1 << 20)
        self.kinds: list[tuple[Callable[[], str], int]] = [
            (self.read, 10), (self.write, 10), (self.append, 3), (self.truncate, 4), (self.punch, 4), (self.zero, 3),
            (self.allocate, 2), (self.copy, 4), (self.reopen, 2), (self.sync, 2), (self.seek, 3),
        ]  # fmt: skip
        if refuses:
            self.kinds.append((self.refused, 1))
        if mapped:
            self.kinds += [(self.map_read, 6), (self.map_write, 6)]
        if direct:
            self.kinds += [(self.direct_read, 3), (self.direct_write, 3)]

    def close(self) -> None:
        for descriptor in (*self.files, *self.direct):
            os.close(descriptor)
        self.buffer.close()

    def run(self, ops: int) -> None:
        """So many calls; Difference if one goes wrong."""
        acts = [act for act, weight in self.kinds for _ in range(weight)]
        for number in range(ops):
            self.history.append(f"{number}: {self.dice.choice(acts)()}")
            size = os.fstat(self._file()).st_size
            if size != len(self.model):
                raise Difference(f"the file has {size} bytes instead of {len(self.model)}")
            if number % 20 == 19 or number == ops - 1:
                self.compare(self._file(), 0, len(self.model) + 1)

    # ------------------------------------------------------------------------------------------------ choosing

    def _client(self) -> int:
        return self.dice.randrange(len(self.files))

    def _file(self) -> int:
        return self.files[self._client()]

    def _range(self, within: bool = False) -> tuple[int, int]:
        end = len(self.model) if within else self.most
        start = self.dice.randrange(end)
        if self.dice.random() < 0.3:
            start &= -SECTOR
        size = self.dice.choice((1, 7, 100, 4096, 5000, 16384, 65536, 70_000, 200_000))
        return start, min(size, end - start)

    def _fill(self, size: int) -> bytes:
        return self.dice.randbytes(size)

    def _set(self, start: int, data: bytes) -> None:
        if start > len(self.model):
            self.model.extend(bytes(start - len(self.model)))
        self.model[start : start + len(data)] = data

    # ------------------------------------------------------------------------------------------------ comparing

    def compare(self, descriptor: int, start: int, size: int) -> None:
        found = os.pread(descriptor, size, start)
        self._same(start, found, bytes(self.model[start : start + size]))

    def _same(self, start: int, found: bytes, wanted: bytes) -> None:
        if found == wanted:
            return
        if len(found) != len(wanted):
            raise Difference(f"{len(found)} bytes at {start} instead of {len(wanted)}")
        bad = [at for at in range(len(found)) if found[at] != wanted[at]]
        raise Difference(
            f"{len(bad)} bytes differ in [{start}, {start + len(found)}), from {start + bad[0]} to {start + bad[-1]}: "
            f"{found[bad[0] : bad[0] + 8].hex()} instead of {wanted[bad[0] : bad[0] + 8].hex()}"
        )

    # ------------------------------------------------------------------------------------------------ calls

    def read(self) -> str:
        client, (start, size) = self._client(), self._range()
        self.compare(self.files[client], start, size)
        return f"{client} read {start} {size}"

    def write(self) -> str:
        client, (start, size) = self._client(), self._range()
        data = self._fill(size)
        self._count(os.pwrite(self.files[client], data, start), size)
        self._set(start, data)
        return f"{client} write {start} {size}"

    def _count(self, done: int, wanted: int) -> None:
        if done != wanted:
            raise Difference(f"{done} bytes were written instead of {wanted}")

    def append(self) -> str:
        client, (_, size) = self._client(), self._range()
        size = min(size, self.most - len(self.model))
        if size <= 0:
            return "no room"
        data = self._fill(size)
        descriptor = os.open(self.paths[client], os.O_WRONLY | os.O_APPEND)
        try:
            self._count(os.write(descriptor, data), size)
        finally:
            os.close(descriptor)
        self._set(len(self.model), data)
        return f"{client} append {size}"

    def truncate(self) -> str:
        client, size = self._client(), self.dice.choice((0, self.dice.randrange(self.most), len(self.model) // 2))
        if self.dice.random() < 0.5:
            os.ftruncate(self.files[client], size)
        else:
            os.truncate(self.paths[client], size)
        if size > len(self.model):
            self.model.extend(bytes(size - len(self.model)))
        del self.model[size:]
        return f"{client} truncate {size}"

    def _allocate(self, client: int, mode: int, start: int, size: int) -> None:
        if libc.fallocate(self.files[client], mode, ctypes.c_long(start), ctypes.c_long(size)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def punch(self) -> str:
        client, (start, size) = self._client(), self._range()
        self._allocate(client, PUNCH, start, size)
        end = min(start + size, len(self.model))
        if start < end:
            self.model[start:end] = bytes(end - start)
        return f"{client} punch {start} {size}"

    def zero(self) -> str:
        client, (start, size), keep = self._client(), self._range(), self.dice.randrange(2)
        self._allocate(client, ZERO | keep, start, size)
        end = min(start + size, len(self.model)) if keep else start + size
        if start < end:
            self._set(start, bytes(end - start))
        return f"{client} zero {start} {size} {keep}"

    def allocate(self) -> str:
        client, (start, size), keep = self._client(), self._range(), self.dice.randrange(2)
        self._allocate(client, keep, start, size)
        if not keep and start + size > len(self.model):
            self.model.extend(bytes(start + size - len(self.model)))
        return f"{client} allocate {start} {size} {keep}"

    def refused(self) -> str:
        """What is not possible changes nothing."""
        client, mode = self._client(), self.dice.choice((COLLAPSE, INSERT))
        try:
            self._allocate(client, mode, 0, SECTOR)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
        else:
            raise Difference(f"fallocate with mode {mode} is not refused")
        return f"{client} refused {mode}"

    def copy(self) -> str:
        one, two = self._client(), self._client()
        if not self.model:
            return "nothing to copy"
        (start, size), (target, _) = self._range(within=True), self._range()
        size = min(size, self.most - target)
        if size <= 0 or (start < target + size and target < start + size):
            return "copy would overlap"
        os.fstat(self.files[one])  # the kernel copies as far as the size that it knows
        done = 0
        while done < size:
            count = os.copy_file_range(self.files[one], self.files[two], size - done, start + done, target + done)
            if not count:
                raise Difference(f"copying {size} bytes from {start} to {target} ended after {done}")
            done += count
        self._set(target, bytes(self.model[start : start + size]))
        return f"{one} -> {two} copy {start} {target} {size}"

    def reopen(self) -> str:
        client = self._client()
        os.close(self.files[client])
        self.files[client] = os.open(self.paths[client], os.O_RDWR)
        return f"{client} reopen"

    def sync(self) -> str:
        client = self._client()
        self.dice.choice((os.fsync, os.fdatasync))(self.files[client])
        return f"{client} sync"

    def seek(self) -> str:
        """Where a hole is said to be there are only zeros."""
        client = self._client()
        descriptor, at, end = self.files[client], 0, len(self.model)
        while at < end:
            try:
                data = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = end
            if any(self.model[at:data]):
                raise Difference(f"SEEK_DATA says that there is a hole in [{at}, {data})")
            if data >= end:
                break
            at = os.lseek(descriptor, data, os.SEEK_HOLE)
            if not data < at <= end:
                raise Difference(f"SEEK_HOLE from {data} answers {at} in a file of {end} bytes")
        return f"{client} seek"

    # ---------------------------------------------------------------------------------- mappings and O_DIRECT

    def map_read(self) -> str:
        client = self._client()
        if not self.model:
            return "nothing to map"
        start, size = self._range(within=True)
        base = start & -mmap.PAGESIZE
        with mmap.mmap(self.files[client], start + size - base, mmap.MAP_SHARED, mmap.PROT_READ, offset=base) as pages:
            self._same(start, pages[start - base :], bytes(self.model[start : start + size]))
        return f"{client} mapread {start} {size}"

    def map_write(self) -> str:
        client = self._client()
        if not self.model:
            return "nothing to map"
        start, size = self._range(within=True)
        base, data = start & -mmap.PAGESIZE, self._fill(size)
        with mmap.mmap(self.files[client], start + size - base, offset=base) as pages:
            pages[start - base :] = data
            pages.flush()
        self._set(start, data)
        return f"{client} mapwrite {start} {size}"

    def direct_read(self) -> str:
        client, (start, size) = self._client(), self._range()
        start &= -SECTOR
        size = max(SECTOR, size & -SECTOR)
        done = os.preadv(self.direct[client], [memoryview(self.buffer)[:size]], start)
        self._same(start, bytes(self.buffer[:done]), bytes(self.model[start : start + size]))
        return f"{client} direct read {start} {size}"

    def direct_write(self) -> str:
        client, (start, size) = self._client(), self._range()
        start &= -SECTOR
        size = max(SECTOR, size & -SECTOR)
        self.buffer[:size] = data = self._fill(size)
        self._count(os.pwritev(self.direct[client], [memoryview(self.buffer)[:size]], start), size)
        self._set(start, data)
        return f"{client} direct write {start} {size}"


def run(
    paths: list[str],
    seed: int,
    ops: int,
    *,
    most: int = 400_000,
    direct: bool = True,
    mapped: bool = True,
    refuses: bool = True,
) -> str | None:
    """What went wrong and the calls before it; None if all was well. The file is new, and removed afterwards. With
    `refuses` collapsing and inserting ranges must fail."""
    fsx = Fsx(paths, seed, most, direct, mapped, refuses)
    try:
        fsx.run(ops)
    except (Difference, OSError) as error:
        return "\n".join([f"seed {seed}: {type(error).__name__}: {error}", *fsx.history[-20:]])
    finally:
        fsx.close()
        os.unlink(paths[0])
    return None


def main() -> None:
    """Run seeds until one fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ops", type=int, default=1000)
    parser.add_argument("--most", type=int, default=400_000)
    parser.add_argument("--no-map", action="store_true")
    parser.add_argument("--no-direct", action="store_true")
    parser.add_argument("--local", action="store_true", help="a local file system, which can collapse ranges")
    options = parser.parse_args()
    for seed in range(options.seed, options.seed + options.seeds):
        told = run(
            options.paths,
            seed,
            options.ops,
            most=options.most,
            direct=not options.no_direct,
            mapped=not options.no_map,
            refuses=not options.local,
        )
        if told is not None:
            print(told)  # noqa: T201
            sys.exit(1)


if __name__ == "__main__":
    main()
