"""A client that is frozen beyond its term cannot write over its successor (CONTRACT 9), and the tests would notice."""

import asyncio
import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nacrefs.client.mount import daemon as mounts
from nacrefs.common.answer import settle
from nacrefs.common.checksum import block_sums
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.wire import Role, Write
from tests.client.world import close, cluster, open_file, quiet, read_file, write_file
from tests.harness.process import process_cluster, succeed

OLD, NEW = b"o" * 100_000, b"n" * 100_000


@pytest.mark.parametrize("fencing", [True, False], ids=["fencing", "without fencing"])
async def test_write_of_an_evicted_session_is_refused_by_the_ost(tmp_path: Path, fencing: bool) -> None:
    """What was on its way when the client was given up arrives late. Without fencing it does its harm: so this test
    does look at what fencing prevents."""
    async with cluster(tmp_path, stripe_count=1) as world:
        frozen, successor = await world.vfs(), await world.vfs()
        fid = await write_file(frozen, frozen.root, b"f", OLD)
        await quiet(frozen)
        number = await open_file(frozen, fid, os.O_RDWR)
        inode = frozen.cache.inodes[fid]
        await frozen.objects.refresh(inode)
        layout, capability = inode.layout, inode.capability
        assert layout is not None
        assert capability is not None
        session = frozen.session.number
        late = Remote(
            frozen.session.osts[layout.osts[0]].address,
            world.keyring.credentials(Role.ADMIN),
            f"{session}.frozen",
            {},
            Meter(),
        )
        await late.open()
        mds = world.mds.mds
        if not fencing:

            async def no_fence(session: int) -> None:
                """Give leases away without telling any OST."""

            mds.targets.fence = no_fence  # type: ignore[method-assign]
        mds.evict(mds.sessions.by_id[session], "is frozen", knows=True)
        async with asyncio.timeout(20):
            while session in mds.sessions.by_id:
                await asyncio.sleep(0.01)
        heir = await open_file(successor, fid, os.O_RDWR)
        await settle(successor.write(heir, 0, memoryview(NEW)))
        await settle(successor.fsync(heir, False))
        await close(successor, heir)
        await quiet(successor)
        view = memoryview(OLD)
        request = Write(
            layout.osts[0], fid, 0, layout.generation, capability, ((0, len(OLD)),), block_sums(view, 0), sync=True
        )
        if fencing:
            with pytest.raises(OSError, match="fenced") as caught:
                await late.call(request, data=[view])
            assert caught.value.errno == errno.ESHUTDOWN
        else:
            await late.call(request, data=[view])
        await late.aclose()
        reader = await world.vfs()
        assert await read_file(reader, reader.root, b"f") == (NEW if fencing else OLD)
        await close(frozen, number)


@pytest.mark.timeout(180)
def test_mount_daemon_that_was_stopped_does_not_write_over_its_successor(tmp_path: Path) -> None:
    """SIGSTOP with dirty data, its term passes, another mount writes, SIGCONT: what the other wrote stays."""
    with process_cluster(tmp_path) as running:
        two = tmp_path / "two"
        two.mkdir()
        succeed("mount", running.url, two, "--keyring", running.keyring)
        try:
            path = running.mount / "f"
            path.write_bytes(b"first")
            daemon = int(mounts.ask_json(str(two), "mount")["pid"])
            session = int(mounts.ask_json(str(two), "mount")["session"])
            file = os.open(two / "f", os.O_RDWR)
            os.pwrite(file, OLD, 0)
            os.kill(daemon, signal.SIGSTOP)
            try:
                began_s = time.monotonic()
                descriptor = os.open(path, os.O_RDWR)
                os.pwrite(descriptor, NEW, 0)
                os.fsync(descriptor)
                os.close(descriptor)
                assert time.monotonic() - began_s > 2, "nobody had to be given up: this shows nothing"
            finally:
                os.kill(daemon, signal.SIGCONT)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.fsync(file)
            os.close(file)
            assert int(mounts.ask_json(str(two), "mount")["session"]) != session
            assert path.read_bytes() == NEW
            assert (two / "f").read_bytes() == NEW
        finally:
            subprocess.run(["umount", "-l", two], check=False)
