"""The mount daemon: a session with the MDS, the filesystem over it, and the kernel's requests; and unmounting.

The daemon lives until the file system is unmounted or SIGTERM comes. Either way everything that was written is stored
before it gives its session back and ends; a second SIGTERM ends it at once.
"""

import asyncio
import errno
import gc
import json
import logging
import os
import select
import signal
import time
from pathlib import Path
from typing import Any, Final

from nacrefs.client.control import PART_BYTES, Control
from nacrefs.client.fuse import mounting
from nacrefs.client.fuse.guard import Guard
from nacrefs.client.fuse.session import Session as FuseSession
from nacrefs.client.identity import ALL_ARE_SQUASHED, Caller, asking
from nacrefs.client.mount.background import Ready
from nacrefs.client.mount.spec import MountSpec
from nacrefs.client.programs import Programs
from nacrefs.client.vfs import Vfs
from nacrefs.common.auth import CredentialSource
from nacrefs.common.handshake import Refused
from nacrefs.common.keyfile import KeyFile
from nacrefs.common.observe import start_logging
from nacrefs.common.wire import Role

log = logging.getLogger("nacre.mount")

_AWAY: Final = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT)
_RETRY_S: Final = 0.03
_NOT_THERE: Final = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a mount point says whose daemon is dead."""
WAIT_S: Final = 60.0
"""How long `unmount` waits for the daemon to end once the mount point is free."""


def default_log(directory: str) -> str:
    """Where the daemon of the mount at `directory` logs if nobody says; its directory exists afterwards."""
    if os.geteuid() == 0:
        folder = "/var/log/nacre"
    else:
        folder = os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "nacre")
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, f"mount{directory.replace('/', '-')}.log")


def run(spec: MountSpec, ready: Ready) -> None:
    """Mount and serve until unmounted; `ready` is called when the mount can be used.

    OSError and ConfigError say in one line what is wrong; Refused (EACCES) if the key is.
    """
    import uvloop

    credentials = KeyFile(Path(spec.config.keyring)).credentials_of(Role.CLIENT)
    credentials()  # says at once if there are none
    start_logging(spec.log_level, spec.log_file or None)
    guard = Guard(spec.directory)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(spec, credentials, ready, guard))
    finally:
        guard.dismiss()


async def _serve(spec: MountSpec, credentials: CredentialSource, ready: Ready, guard: Guard) -> None:
    told_to_stop = _stop_signal()
    mounting.clear_stale(spec.directory)
    vfs = await _attach(spec, credentials)
    programs: Programs | None = None
    try:
        squash = vfs.session.squash
        fuse = FuseSession(
            vfs, spec.source, spec.directory, options=spec.kernel_options, root=vfs.root, locks=spec.locks,
            identified=_asks if squash >= 0 else None, permissions=squash < ALL_ARE_SQUASHED,
        )  # fmt: skip
        programs = Programs(vfs, credentials)
        control = vfs.xattrs.control = Control(vfs, fuse, spec, programs)
        async with fuse:
            for mount in mounting.mounts_at(spec.directory)[-1:]:
                guard.watch(mount)
            log.info("%s is mounted on %s (session %d)", spec.source, spec.directory, vfs.session.number)
            gc.collect()
            gc.freeze()  # what is there now stays: spare the collector from looking at it
            ready()
            gone = asyncio.ensure_future(fuse.unmounted())
            await asyncio.wait((gone, told_to_stop), return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if told_to_stop.done():
                log.info("told to stop: storing what was written, then unmounting")
                await control.sync()
    finally:
        if programs is not None:
            await programs.close()
        await vfs.close()
    log.info("%s is unmounted", spec.directory)


def _asks(uid: int, gid: int, pid: int) -> None:
    """What follows is done for this process."""
    asking.set(Caller(uid, gid, pid))


def _stop_signal() -> "asyncio.Future[None]":
    """Done when SIGTERM or SIGINT has come; the next one ends the process."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if told.done():
            log.error("told to stop again: what is not stored yet is lost")
            logging.shutdown()
            os._exit(1)
        told.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return told


async def _attach(spec: MountSpec, credentials: CredentialSource) -> Vfs:
    """A filesystem that is attached, the MDS being waited for as long as the mount option `retry` says."""
    deadline_s = time.monotonic() + spec.retry_s
    while True:
        try:
            return await Vfs(spec.config, credentials).attach()
        except OSError as error:
            if isinstance(error, Refused) or error.errno not in _AWAY or time.monotonic() >= deadline_s:
                raise _explained(error, spec) from None
        await asyncio.sleep(_RETRY_S)


def _explained(error: OSError, spec: MountSpec) -> OSError:
    """The error with what it is about."""
    text = error.strerror or str(error)
    if isinstance(error, Refused):
        return OSError(errno.EACCES, f"the MDS at {spec.config.mds} refuses us ({spec.config.keyring}): {text}")
    if error.errno in _AWAY:
        return OSError(error.errno, f"cannot reach the MDS at {spec.config.mds}: {os.strerror(error.errno or 0)}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return OSError(error.errno, f"{spec.config.subtree} of {spec.config.mds}: {text}")
    return error


# --------------------------------------------------------------------------------------------------------- from outside


def mounted_at(path: str, follow: bool = True) -> str:
    """The mount point of nacrefs below which `path` lies; OSError (ENOENT) if there is none.

    With `follow`, what a symbolic link leads to counts. A dead mount counts too: nothing is asked of it.
    """
    folder, name = os.path.split(os.path.abspath(path))
    at: str = os.path.realpath(path) if follow else f"{os.path.realpath(folder)}/{name}"
    while True:
        here = mounting.mounts_at(at)
        if here:
            if here[-1].fstype == mounting.FSTYPE:
                return at
            break
        if at == "/":
            break
        at = os.path.dirname(at)
    raise OSError(errno.ENOENT, "is not on a nacrefs mount", path)


def ask(path: str, name: str) -> bytes:
    """What the mount at `path` says to the attribute `nacre.NAME`, long reports part by part.

    OSError: ENOENT if nothing of nacrefs is mounted there, ENOTCONN if its daemon is dead.
    """
    mount = mounted_at(path)
    try:
        return os.getxattr(path, f"nacre.{name}")
    except OSError as error:
        if error.errno == errno.E2BIG:
            return _ask_in_parts(path, name)
        if error.errno in _NOT_THERE:
            raise OSError(
                errno.ENOTCONN, "its daemon has died; `nacre mount` it again (or `nacre umount` it)", mount
            ) from None
        raise OSError(error.errno, error.strerror, path) from None


def _ask_in_parts(path: str, name: str) -> bytes:
    parts: list[bytes] = []
    while not parts or len(parts[-1]) == PART_BYTES:
        parts.append(os.getxattr(path, f"nacre.{name}:{len(parts)}"))
    return b"".join(parts)


def ask_json(path: str, name: str) -> Any:
    """The same, as plain data."""
    return json.loads(ask(path, name))


def unmount(directory: str, *, lazy: bool = False, wait_s: float = WAIT_S) -> None:
    """Store what was written, unmount, and wait until the daemon has ended.

    `lazy`: the mount point is taken away even if it is in use; the daemon lives until nobody uses it, and is not waited
    for. OSError: ENOENT if nothing of nacrefs is mounted there, EBUSY if it is in use, or what kept data from being
    stored. A dead mount is just taken away.
    """
    at = os.path.realpath(directory)
    here = mounting.mounts_at(at)
    if not here or here[-1].fstype != mounting.FSTYPE:
        raise OSError(errno.ENOENT, "nothing of nacrefs is mounted there", directory)
    try:
        daemon = int(ask_json(at, "mount")["pid"])
        if not lazy:
            ask(at, "sync")
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        mounting.unmount(at, lazy=True)
        return
    watch = _watch(daemon)
    try:
        try:
            mounting.unmount(at, lazy=lazy)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise OSError(
                errno.EBUSY, "it is in use (`fuser -vm` shows by whom); `nacre umount -l` detaches it anyway", directory
            ) from None
        if watch >= 0 and not lazy and not _ended(watch, wait_s):
            raise OSError(errno.ETIMEDOUT, f"unmounted, but its daemon ({daemon}) is still storing data", directory)
    finally:
        if watch >= 0:
            os.close(watch)


def _watch(pid: int) -> int:
    """A descriptor that is readable once the process has ended; -1 if it is not to be seen from here."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _ended(watch: int, wait_s: float) -> bool:
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))
