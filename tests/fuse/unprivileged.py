"""Mount, use and unmount a filesystem as an ordinary user: `python -m tests.fuse.unprivileged DIRECTORY DEVICE`, run by
root in a mount namespace of its own, where DEVICE takes the place of /dev/fuse (whose mode may keep users out)."""

import asyncio
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nacrefs.client.fuse import guardian, mounting
from nacrefs.client.fuse.session import Session
from tests.client.fuse.memory import MemoryFilesystem

NOBODY = 65534


def use(path: Path) -> None:
    (path / "f").write_bytes(b"x" * 3_000_000)
    assert (path / "f").read_bytes() == b"x" * 3_000_000
    assert (path / "f").stat().st_uid == NOBODY
    (entry,) = mounting.mounts_at(str(path))
    assert os.access(f"{guardian.CONTROL}/{entry.device.partition(':')[2]}/abort", os.W_OK), (
        "the guard could not end it"
    )
    assert (entry.fstype, entry.source) == ("fuse.nacre", "tcp://host:1/a,b")


async def main(directory: str, device: str) -> None:
    importlib.import_module("concurrent.futures.thread")  # the user may not be able to read it later
    subprocess.run(["mount", "--bind", device, "/dev/fuse"], check=True)
    subprocess.run(["mount", "-t", "fusectl", "none", guardian.CONTROL], check=True)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.chdir("/")
    async with Session(MemoryFilesystem(), "tcp://host:1/a,b", directory, options=["noatime"]):
        await asyncio.to_thread(use, Path(directory))
    assert mounting.mounts_at(directory) == []
    with pytest.raises(OSError, match="fusermount3 refused"):  # unless /etc/fuse.conf says user_allow_other
        mounting.mount("x", directory, ["allow_other"], 1 << 20)
    print("done")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
