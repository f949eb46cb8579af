"""What a mount tells about itself and its servers: attributes `nacre.NAME` of all in it; no key is needed.

| name | value |
|---|---|
| `nacre.mount` | JSON: source, subtree, mount point, pid, session, version, options |
| `nacre.stats` | JSON: the daemon's requests by kind with latencies, FUSE requests by opcode, caches, memory, CPU,
its connections |
| `nacre.df` | JSON: space in total and of each OST |
| `nacre.status`, `nacre.mds` | JSON: what the MDS says about its state; what it has been asked |
| `nacre.locks` | JSON: who has fcntl and flock locks, on all mounts, and who waits |
| `nacre.hsmqueue` | JSON: what waits and runs in the lifecycle tier |
| `nacre.sync` | nothing, once everything that was written is stored |
| `nacre.io` | JSON: how programs with the native library have this file open (client/programs.py), their session |
| `nacre.path-of.FID` | path of a fid (decimal), from the root of the filesystem |

The kernel carries 64 KiB at most. A longer report is E2BIG; it is to be had in parts, `nacre.NAME:0`, `nacre.NAME:1` …,
of which the last is shorter than the others.
"""

import errno
import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from typing import Any, Final

from nacrefs.client.fuse.abi import Op
from nacrefs.client.fuse.session import Session as FuseSession
from nacrefs.client.mount.spec import MountSpec
from nacrefs.client.programs import Programs
from nacrefs.client.vfs import Vfs
from nacrefs.common.answer import Answer, settle
from nacrefs.common.wire import GetOsts, GetXattr, Inspect, OstInfo, Statfs

PART_BYTES: Final = 60_000
_PATH_OF: Final = b"nacre.path-of."
_NAMES: Final = {int(op): op.name.lower() for op in Op}


def ost_report(ost: OstInfo) -> dict[str, Any]:
    """An OST as it stands in every JSON document."""
    return {
        "index": ost.index,
        "up": ost.up,
        "address": ost.address,
        "total_bytes": ost.total_bytes,
        "free_bytes": ost.free_bytes,
        "used_bytes": ost.total_bytes - ost.free_bytes,
        "objects": ost.objects,
        "pools": list(ost.pools),
        "uuid": ost.uuid,
    }


class Control:
    """Answers for one mount: call it with a fid and an attribute's name."""

    def __init__(self, vfs: Vfs, fuse: FuseSession, spec: MountSpec, programs: Programs) -> None:
        self._vfs = vfs
        self._programs = programs
        self._fuse = fuse
        self._spec = spec
        self._started_s = time.time()
        self._parted: dict[bytes, bytes] = {}
        self._reports: dict[bytes, Callable[[], Answer[bytes]]] = {
            b"nacre.mount": self._mount,
            b"nacre.stats": self._stats,
            b"nacre.df": self._df,
            b"nacre.status": lambda: self._inspect("status"),
            b"nacre.locks": lambda: self._inspect("locks"),
            b"nacre.mds": lambda: self._inspect("stats"),
            b"nacre.hsmqueue": lambda: self._inspect("hsm"),
            b"nacre.sync": self._sync,
        }

    def __call__(self, fid: int, name: bytes) -> Answer[bytes]:
        """The value; OSError (ENODATA) for a name that means nothing."""
        if name.startswith(_PATH_OF):
            return self._path(name)
        if name == b"nacre.io":
            return _json(self._programs.report(fid))
        report, colon, number = name.partition(b":")
        make = self._reports.get(report)
        if make is None or (colon and not number.isdigit()):
            raise OSError(errno.ENODATA, "there is no such attribute")
        if colon:
            return self._part(report, int(number), make)
        answer = make()
        return _whole(answer) if isinstance(answer, bytes) else _whole_later(answer)

    async def _part(self, report: bytes, number: int, make: Callable[[], Answer[bytes]]) -> bytes:
        """One part of a report, which is made when its first part is asked for."""
        if number == 0:
            self._parted[report] = await settle(make())
        value = self._parted.get(report, b"")
        return value[number * PART_BYTES : (number + 1) * PART_BYTES]

    # --------------------------------------------------------------------------------------------------------- reports

    def _mount(self) -> bytes:
        session, spec = self._vfs.session, self._spec
        return _json(
            {
                "url": spec.config.mds,
                "subtree": spec.config.subtree,
                "keyring": spec.config.keyring,
                "directory": spec.directory,
                "session": session.number,
                "live": session.live,
                "client": session.client,
                "pid": os.getpid(),
                "version": importlib.metadata.version("nacrefs"),
                "transports": sorted({each["transport"] for each in session.connections() if each["transport"]}),
                "options": list(spec.words),
                "mounted_s": round(self._started_s, 3),
            }
        )

    def _stats(self) -> bytes:
        vfs = self._vfs
        report = vfs.meter.report()
        report["pid"] = os.getpid()
        report["fuse"] = {
            _NAMES.get(opcode, str(opcode)): count for opcode, count in enumerate(self._fuse.requests) if count
        }
        report["cache"] = {
            "inodes": len(vfs.cache.inodes),
            "inodes_max": vfs.cache.limit,
            "open_files": len(vfs.handles.table),
            "dirty_files": len(vfs.store.dirty),
        }
        report["connections"] = vfs.session.connections()
        report["memory"] = {
            "used_bytes": vfs.memory.used_bytes,
            "peak_bytes": vfs.memory.peak_bytes,
            "limit_bytes": vfs.memory.limit_bytes,
        }
        return _json(report)

    async def _df(self) -> bytes:
        mds = self._vfs.session.mds
        table, total = await mds.call(GetOsts()), await mds.call(Statfs())
        return _json(
            {
                "total_bytes": total.total_bytes,
                "free_bytes": total.free_bytes,
                "used_bytes": total.total_bytes - total.free_bytes,
                "files": total.files,
                "files_free": total.files_free,
                "osts": [ost_report(ost) for ost in table.osts],
            }
        )

    async def _inspect(self, what: str) -> bytes:
        return (await self._vfs.session.mds.call(Inspect(what))).report

    async def sync(self) -> None:
        """Store everything that was written; OSError if some of it cannot be."""
        await self._vfs.store.write_out_all()

    async def _sync(self) -> bytes:
        await self.sync()
        return b""

    async def _path(self, name: bytes) -> bytes:
        number = name[len(_PATH_OF) :]
        if not number.isdigit():
            raise OSError(errno.EINVAL, "a fid is a number")
        return (await self._vfs.session.mds.call(GetXattr(int(number), b"nacre.path"))).value


def _whole(value: bytes) -> bytes:
    if len(value) > PART_BYTES:
        raise OSError(errno.E2BIG, "the report is longer than an attribute can be: ask for its parts")
    return value


async def _whole_later(answer: Answer[bytes]) -> bytes:
    return _whole(await settle(answer))


def _json(report: dict[str, Any]) -> bytes:
    return json.dumps(report).encode()
