"""A disk whose power can be cut: a FUSE file system in memory that forgets, on command, whatever was not synced.

    python -m tests.faults.powercut DIRECTORY

It says `mounted`. A line `cut SEED KEPT` on its standard input unmounts it, loses what is not durable, mounts it again
and says `cut LOST`: how many blocks and names are not what they were. Of what is not durable, the share KEPT (0 to 1)
stays all the same, chosen at random block by block and name by name, as a real disk may have written it already.

Durable is: the contents of a file at its last fsync (or write with O_DSYNC), the names in a directory at its last
fsync. A new file that was synced, but not its directory, is gone: ext4 would keep it, POSIX does not promise it.
"""

import asyncio
import os
import random
import stat
import sys
from typing import Final

from nacrefs.client.filesystem import Cred
from nacrefs.client.fuse.session import Session
from nacrefs.common.answer import Answer
from tests.client.fuse.memory import BLOCK, ROOT, Inode, MemoryFilesystem

_PUNCH_HOLE: Final = 2
_DSYNC: Final = os.O_DSYNC


class Durable(Inode):
    """An inode that knows what of it is durable."""

    def begin(self) -> None:
        """Nothing of it is, so far."""
        self.unsynced: set[int] = set()
        self.kept_blocks: dict[int, bytes] = {}
        self.kept_size = 0
        self.kept_entries: dict[bytes, int] = {}

    def write(self, offset: int, data: memoryview) -> None:
        self.unsynced.update(range(offset // BLOCK, (offset + len(data) + BLOCK - 1) // BLOCK))
        super().write(offset, data)

    def truncate(self, size: int) -> None:
        self.unsynced.update(number for number in self.blocks if (number + 1) * BLOCK > size)
        super().truncate(size)

    def punch(self, start: int, end: int) -> None:
        """Make a hole."""
        for number in [number for number in self.blocks if start < (number + 1) * BLOCK and number * BLOCK < end]:
            self.unsynced.add(number)
            low, high = max(0, start - number * BLOCK), min(BLOCK, end - number * BLOCK)
            if high - low == BLOCK:
                del self.blocks[number]
            else:
                self.blocks[number][low:high] = bytes(high - low)

    def sync(self) -> None:
        """All of it is durable."""
        for number in self.unsynced:
            self._settle(number)
        self.unsynced.clear()
        self.kept_size = self.size
        self.kept_entries = dict(self.entries)

    def _settle(self, number: int) -> None:
        block = self.blocks.get(number)
        if block is None:
            self.kept_blocks.pop(number, None)
        else:
            self.kept_blocks[number] = bytes(block)

    def cut(self, chance: random.Random, kept: float) -> int:
        """The power is gone; how many blocks and names are lost."""
        lost = 0
        for number in self.unsynced:
            if chance.random() < kept:
                self._settle(number)
            else:
                lost += self.kept_blocks.get(number) != self.blocks.get(number)
        if self.size != self.kept_size and chance.random() < kept:
            self.kept_size = self.size
        for name in sorted(self.entries.keys() | self.kept_entries.keys()):
            now, before = self.entries.get(name), self.kept_entries.get(name)
            if now == before:
                continue
            if chance.random() >= kept:
                lost += 1
            elif now is None:
                del self.kept_entries[name]
            else:
                self.kept_entries[name] = now
        self.unsynced.clear()
        self.blocks = {number: bytearray(block) for number, block in self.kept_blocks.items()}
        super().truncate(self.kept_size)
        self.kept_blocks = {number: bytes(block) for number, block in self.blocks.items()}
        self.entries = dict(self.kept_entries)
        return lost


class PowerCutFilesystem(MemoryFilesystem):
    """The disk. The kernel may cache everything: nothing changes behind it while it is mounted."""

    def __init__(self) -> None:
        super().__init__(cacheable=True, direct=False)
        self.disk: dict[int, Durable] = {}
        """All inodes that are there, or may be there again after a cut."""
        root = Durable(ROOT, stat.S_IFDIR | 0o777, nlink=2)
        root.begin()
        self.inodes[ROOT] = self.disk[ROOT] = root

    def _add(self, parent: int, name: bytes, mode: int, cred: Cred, rdev: int = 0) -> Inode:
        plain = super()._add(parent, name, mode, cred, rdev)
        inode = Durable(plain.fid, plain.mode, plain.uid, plain.gid, plain.rdev, plain.nlink, parent=plain.parent)
        inode.begin()
        self.inodes[plain.fid] = self.disk[plain.fid] = inode
        return inode

    def write(self, handle: int, offset: int, data: memoryview, flags: int = -1) -> Answer[int]:
        written = super().write(handle, offset, data, flags)
        self.written.clear()  # no test looks at it
        if self.handles[handle][1] & _DSYNC:
            self.fsync(handle, True)
        return written

    def fsync(self, handle: int, datasync: bool) -> None:
        self.disk[self.handles[handle][0].fid].sync()

    def fsyncdir(self, fid: int) -> None:
        self.disk[fid].sync()

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        inode = self.disk[self.handles[handle][0].fid]
        if mode & _PUNCH_HOLE:
            inode.punch(offset, offset + length)
        elif not mode:
            inode.size = max(inode.size, offset + length)

    def cut(self, chance: random.Random, kept: float) -> int:
        """The power is gone, and back; how many blocks and names are lost."""
        lost = sum(inode.cut(chance, kept) for inode in self.disk.values())
        self.handles.clear()
        there: dict[int, Inode] = {}
        waiting = [ROOT]
        for inode in self.disk.values():
            inode.opens = 0
            inode.nlink = 2 if stat.S_ISDIR(inode.mode) else 0
        while waiting:
            fid = waiting.pop()
            inode = there[fid] = self.disk[fid]
            for below in inode.entries.values():
                child = self.disk[below]
                if stat.S_ISDIR(child.mode):
                    child.parent = fid
                    inode.nlink += 1
                else:
                    child.nlink += 1
                if below not in there:
                    waiting.append(below)
        self.inodes = there
        self.disk = {fid: inode for fid, inode in self.disk.items() if fid in there}
        return lost


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def main(directory: str) -> None:
    disk = PowerCutFilesystem()
    answer = "mounted"
    while True:
        async with Session(disk, "powercut", directory):
            say(answer)
            words = (await asyncio.to_thread(sys.stdin.readline)).split()
        if not words:
            return
        answer = f"cut {disk.cut(random.Random(int(words[1])), float(words[2]))}"


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
