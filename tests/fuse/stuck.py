"""A mount whose daemon cannot end: `python -m tests.fuse.stuck DIRECTORY guarded|unguarded` says `mounted`, does not
answer once somebody looks for DIRECTORY/d/absent, and says `stuck` when a thread of it waits in the kernel for that."""

import asyncio
import os
import sys
from pathlib import Path

from nacrefs.client.filesystem import Cred
from nacrefs.client.fuse import mounting
from nacrefs.client.fuse.guard import Guard
from nacrefs.client.fuse.session import Session
from tests.client.fuse.memory import ROOT, MemoryFilesystem


def waits_in_the_kernel() -> bool:
    """Whether a thread of this process waits for something that no signal ends."""
    states = [Path(f"/proc/self/task/{thread}/stat").read_text() for thread in os.listdir("/proc/self/task")]
    return any(state.rpartition(") ")[2].startswith("D") for state in states)


async def main(directory: str, guard: Guard | None) -> None:
    fs = MemoryFilesystem()
    fs.mkdir(ROOT, b"d", 0o755, Cred(0, 0, 0))
    folder = fs.inode("d").fid
    fs.mkdir(folder, b"known", 0o755, Cred(0, 0, 0))
    async with Session(fs, "memory", directory) as session:
        if guard is not None:
            guard.watch(mounting.mounts_at(directory)[-1])
        await asyncio.to_thread(os.stat, f"{directory}/d/known")  # so that the kernel has something to forget
        fs.hold("lookup")
        print("mounted", flush=True)  # noqa: T201
        await fs.entered["lookup"].wait()
        assert fs.kernel is not None
        await fs.kernel.forget_entries(folder, [b"known"])
        while not waits_in_the_kernel():
            await asyncio.sleep(0.01)
        print("stuck", flush=True)  # noqa: T201
        await session.unmounted()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Guard(sys.argv[1]) if sys.argv[2] == "guarded" else None))
