"""Requests about the lifecycle tier: states, actions, archives, and what comes back from a bucket alone."""

import asyncio
import errno
from collections.abc import Callable
from functools import partial
from posixpath import normpath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from nacrefs.common import wire
from nacrefs.common.rpc import Call, Handler
from nacrefs.common.wire import ArchiveSpec, HsmFlag, Inspection, Queued, Restored
from nacrefs.mds.hsm import steps
from nacrefs.mds.hsm.importing import Importer
from nacrefs.mds.hsm.rows import RELEASED
from nacrefs.mds.once import Keep
from nacrefs.mds.transactions.step import Step
from nacrefs.mds.transactions.tx import Tx
from nacrefs.mds.transactions.work import Work

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

HSM_REQUESTS: Final[tuple[type[wire.Request[Any]], ...]] = (
    wire.Restore, wire.SetArchive, wire.GetArchives, wire.ProbeArchive, wire.ImportArchive, wire.GetHsm,
    wire.HsmRequest, wire.HsmCancel, wire.SetHsm, wire.SaveCatalogue,
)  # fmt: skip
_encode = msgspec.msgpack.Encoder().encode
_BY_HAND: Final = 0x7F & ~int(HsmFlag.RELEASED)
_BY_OWNERS: Final = int(HsmFlag.NORELEASE | HsmFlag.NOARCHIVE)


class HsmDesk:
    """Answers them."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._importer = Importer(mds)
        self._reading = Tx(mds.mdt, writable=False)
        self._set_once = mds.once.handler(self._set_flags)
        self.placing = asyncio.Lock()
        """Held by who gives an archive or a link a place: they must not overlap, and have numbers of their own."""

    def handlers(self) -> dict[type[wire.Request[Any]], Handler]:
        """The table of these requests."""
        return {
            wire.Restore: self._restore,
            wire.SetArchive: self._mds.once.handler(self._set_archive),
            wire.GetArchives: self._archives,
            wire.ProbeArchive: self._probe,
            wire.ImportArchive: self._mds.once.handler(self._import),
            wire.SaveCatalogue: self._save,
            wire.GetHsm: lambda request, call: wire.HsmStates(tuple(map(self._mds.hsm.state, request.fids))),
            wire.HsmRequest: self._request,
            wire.HsmCancel: self._cancel,
            wire.SetHsm: self._set,
        }

    # ---------------------------------------------------------------------------------------------------------- reading

    async def _restore(self, request: wire.Restore, call: Call) -> Restored:
        session = self._mds.sessions.heard(call.peer)
        fid, hsm = request.fid, self._mds.hsm
        if not request.wait:
            inode = self._reading.need(fid)
            action = await hsm.request(wire.HsmAction.RESTORE, fid, 0, -1, "read")
            if action is not None and not action.has(request.start, min(request.end, inode.attr.size)):
                raise OSError(errno.EAGAIN, "it is being brought back")
        else:
            await hsm.need(fid, request.start, request.end)
        work = Work(lambda step, _: self._restored(step, request), request, session, None, True)
        work.settled = asyncio.get_running_loop().create_future()
        self._mds.journal.read(work)
        answer: Restored = await work.settled
        return answer

    def _restored(self, step: Step, request: wire.Restore) -> Restored:
        node = steps.released_node(step, request.fid)
        action = self._mds.hsm.active.get(request.fid)
        end = request.end
        if not node.attr.flags & RELEASED:
            end = max(end, node.attr.size)
        elif action is not None:
            end = max(end, action.back_until(request.start))
        return Restored(node, request.start, end)

    # ---------------------------------------------------------------------------------------------------------- actions

    async def _each(self, fids: tuple[int, ...], work: Callable[[int], Any]) -> Queued:
        async def one(fid: int) -> tuple[int, str]:
            try:
                await work(fid)
            except steps.Gone:
                return errno.ENOENT, "the file was removed, or is none"
            except OSError as error:
                return error.errno or errno.EIO, error.strerror or str(error)
            return 0, ""

        if len(fids) > wire.LISTING_MAX:
            raise OSError(errno.EINVAL, f"{len(fids)} files at once are more than {wire.LISTING_MAX}")
        return Queued(tuple(await asyncio.gather(*map(one, fids))))

    async def _request(self, request: wire.HsmRequest, call: Call) -> Queued:
        self._mds.sessions.heard(call.peer)
        hsm = self._mds.hsm
        if request.action == wire.HsmAction.TRANSITION:
            raise OSError(errno.EINVAL, "storage classes are changed by lifecycle rules")
        return await self._each(
            request.fids, lambda fid: hsm.request(request.action, fid, request.archive, request.uid)
        )

    async def _cancel(self, request: wire.HsmCancel, call: Call) -> Queued:
        self._mds.sessions.heard(call.peer)
        return await self._each(request.fids, self._mds.hsm.cancel)

    def _set(self, request: wire.SetHsm, call: Call) -> Any:
        if (request.set | request.clear) & ~_BY_HAND:
            raise OSError(errno.EINVAL, "these flags cannot be set or cleared by hand")
        if (request.set | request.clear) & ~_BY_OWNERS and call.peer.role is wire.Role.CLIENT:
            raise OSError(
                errno.EACCES, "only norelease and noarchive are set and cleared without an administrator's key"
            )
        return self._set_once(request, call)

    async def _set_flags(self, request: wire.SetHsm, keep: Keep) -> Queued:
        """The answer is stored with what is done to the last file."""
        submit = self._mds.journal.submit_own

        def set_flags(fid: int, step: Step) -> None:
            steps.set_flags(step, fid, request.set, request.clear, request.archive)

        before = await self._each(request.fids[:-1], lambda fid: submit(partial(set_flags, fid)))

        def set_last(fid: int, step: Step) -> None:
            set_flags(fid, step)
            keep(step, Queued((*before.errors, (0, ""))))

        last = await self._each(request.fids[-1:], lambda fid: submit(partial(set_last, fid)))
        return Queued(before.errors + last.errors)

    # --------------------------------------------------------------------------------------------------------- archives

    def _archives(self, request: wire.GetArchives, call: Call) -> wire.Archives:
        return self._table()

    def _table(self) -> wire.Archives:
        linked = self._mds.mdt.linked
        specs = tuple(spec for number, spec in sorted(self._mds.hsm.archives.items()) if number not in linked)
        store = self._mds.mdt.store
        files: dict[int, int] = {}
        size: dict[int, int] = {}
        released: dict[int, int] = {}
        for archive, flags, count, total in store.fetchall(store.statements.hsm_counts):
            if flags & HsmFlag.EXISTS:
                files[archive] = files.get(archive, 0) + count
                size[archive] = size.get(archive, 0) + int(total)
                released[archive] = released.get(archive, 0) + (count if flags & HsmFlag.RELEASED else 0)
        return wire.Archives(
            specs,
            tuple(files.get(spec.id, 0) for spec in specs),
            tuple(size.get(spec.id, 0) for spec in specs),
            tuple(released.get(spec.id, 0) for spec in specs),
            tuple(self._mds.hsm.full.why(spec.id) for spec in specs),
        )

    async def _set_archive(self, request: wire.SetArchive, keep: Keep) -> Inspection:
        spec = request.spec
        known = self._archive_named(spec.name)
        if known is not None and known.id in self._mds.mdt.linked:
            raise OSError(errno.EBUSY, f"archive {known.name} is the bucket of a link: see `nacre link`")
        if request.remove:
            if known is None:
                raise OSError(errno.ENOENT, f"there is no archive {spec.name!r}")
            return await self._remove_archive(known, keep)
        check_spec(spec)
        async with self.placing:
            known = self._archive_named(spec.name)
            if known is not None and spec.id not in (0, known.id):
                raise OSError(errno.EEXIST, f"archive {spec.name} is there already")
            if known is None or _place(known) != _place(spec):
                self._check_place(spec)
                if known is not None:
                    await self._check_moved(known, spec)
            return await self._define(replace(spec, id=self.free_number() if known is None else known.id), keep)

    def _archive_named(self, name: str) -> ArchiveSpec | None:
        return next((one for one in self._mds.hsm.archives.values() if one.name == name), None)

    def _check_place(self, spec: ArchiveSpec) -> None:
        """OSError (EEXIST) if the prefix is part of another archive's or of a link's, or holds it: a key could be one
        of both, and be deleted by who has given it up while the other needs it."""
        linked = self._mds.mdt.linked
        others = [one for one in self._mds.hsm.archives.values() if one.name != spec.name and overlap(spec, one)]
        for other in sorted(others, key=lambda one: one.id not in linked):
            if other.id in linked:
                raise OSError(
                    errno.EEXIST,
                    f"link {other.id} is bound to {other.url}, where copies of an archive would become files: give the"
                    " archive another prefix, or remove the link first (`nacre link rm`)",
                )
            raise OSError(
                errno.EEXIST,
                f"archive {other.name} keeps its copies in {other.url}, and each would take the other's for its own:"
                " give this one another prefix",
            )

    async def _check_moved(self, known: ArchiveSpec, spec: ArchiveSpec) -> None:
        """OSError (EINVAL) if files have copies in an archive, and the place that it is to have now has not: who reads
        one would be told that it is lost."""
        store = self._mds.mdt.store
        rows = store.fetchall(store.statements.archive_keys, (known.id, 0, wire.LISTING_MAX))
        key = next((key for _, key in rows if key), "")
        if not key:
            return
        try:
            await self._mds.hsm.ask_one(wire.MoveHead(spec, key))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            raise OSError(
                errno.EINVAL,
                f"archive {known.name} has copies in {known.url}, and {spec.url} does not have them ({key!r}): copy"
                " them there first, or give the new archive another name",
            ) from None

    async def _define(self, spec: ArchiveSpec, keep: Keep) -> Inspection:
        """Try an archive out, and store it."""
        hsm = self._mds.hsm
        probed = await hsm.ask_everybody(wire.MoveProbe(spec))
        can = _common(probed)
        answer = Inspection(msgspec.json.encode({"id": spec.id, "can": can}))
        await self._put(spec.id, spec.name, spec, 0, lambda step: keep(step, answer))
        hsm.archives[spec.id] = spec
        hsm.archives_changed()
        hsm.classes.learned(spec.id, can)
        return answer

    async def _remove_archive(self, known: ArchiveSpec, keep: Keep) -> Inspection:
        hsm, answer = self._mds.hsm, Inspection(b"{}")

        def also(step: Step) -> None:
            """Nobody may come to have a copy there while this is decided."""
            if any(action.row.archive == known.id for action in hsm.active.values()):
                raise OSError(errno.EBUSY, f"files are being copied to or from archive {known.name}: see `nacre hsm`")
            table = self._table()
            if files := dict(zip((one.id for one in table.specs), table.files, strict=True))[known.id]:
                raise OSError(errno.ENOTEMPTY, f"archive {known.name} has the copies of {files} files")
            keep(step, answer)

        await self._put(known.id, f"{known.name}\n{known.id}", known, 1, also)
        hsm.archives.pop(known.id, None)
        hsm.archives_changed()
        return answer

    async def _put(self, number: int, name: str, spec: ArchiveSpec, gone: int, also: Callable[[Step], None]) -> None:
        """Store an archive, durably; `also` is the first part of that step."""

        def put(step: Step) -> None:
            also(step)
            step.tx.run("put_archive", (number, name, _encode(spec), gone))

        await self._mds.journal.submit_own(put)

    def free_number(self) -> int:
        """A number that no archive ever had; whoever asks is `placing`."""
        store = self._mds.mdt.store
        return 1 + max((row[0] for row in store.fetchall(store.statements.archives)), default=0)

    def _named(self, name: str) -> ArchiveSpec:
        for spec in self._mds.hsm.archives.values():
            if name in (spec.name, str(spec.id)):
                return spec
        raise OSError(errno.ENOENT, f"there is no archive {name!r}")

    async def _probe(self, request: wire.ProbeArchive, call: Call) -> Inspection:
        spec = self._named(request.name)
        probed = await self._mds.hsm.ask_everybody(wire.MoveProbe(spec))
        can = _common(probed)
        self._mds.hsm.classes.learned(spec.id, can)
        self._mds.hsm.try_again(spec.id)
        return Inspection(msgspec.json.encode({"id": spec.id, "servers": len(probed), "can": can}))

    async def _import(self, request: wire.ImportArchive, keep: Keep) -> wire.Imported:
        done = await self._importer.page(self._named(request.name), request)
        await self._mds.journal.submit_own(lambda step: keep(step, done))
        return done

    async def _save(self, request: wire.SaveCatalogue, call: Call) -> Inspection:
        self._mds.sessions.heard(call.peer)
        return Inspection(msgspec.json.encode(await self._mds.hsm.saver.save(self._named(request.name))))


def _common(probed: list[Inspection]) -> dict[str, Any]:
    """What all OSSes say that an archive can do."""
    reports = [msgspec.json.decode(one.report) for one in probed]
    return {name: all(report.get(name) for report in reports) for name in reports[0]}


def check_spec(spec: ArchiveSpec) -> None:
    """OSError (EINVAL) that says why, unless this can be an archive."""
    url = urlsplit(spec.url)
    if not spec.name or "/" in spec.name or spec.name.isdigit() or any(char.isspace() for char in spec.name):
        raise OSError(errno.EINVAL, f"{spec.name!r} is not a name for an archive (no blanks, no `/`, not a number)")
    if spec.kind not in ("s3", "dir"):
        raise OSError(errno.EINVAL, f"there is no kind {spec.kind!r} of archive (s3, dir)")
    if spec.kind == "s3" and (url.scheme != "s3" or not url.netloc):
        raise OSError(errno.EINVAL, f"{spec.url!r} is not s3://BUCKET/PREFIX")
    if url.username or url.password or "@" in spec.endpoint:
        raise OSError(errno.EINVAL, "an address must not hold credentials: name a file with --credentials-file")
    if spec.kind == "dir" and (url.scheme != "file" or not url.path.startswith("/")):
        raise OSError(errno.EINVAL, f"{spec.url!r} is not file:///DIRECTORY")
    if spec.part_bytes and not 5 << 20 <= spec.part_bytes <= 1 << 30:
        raise OSError(errno.EINVAL, "parts have 5 MiB to 1 GiB")
    if spec.template and "{fid}" not in spec.template:
        raise OSError(errno.EINVAL, "a template needs {fid}, or two files could have one key")


def _place(spec: ArchiveSpec) -> tuple[str, str, str, str]:
    """Where an archive is: kind, server, bucket, and the path of its prefix with a slash behind each part."""
    url = urlsplit(spec.url)
    path = normpath(url.path) if spec.kind == "dir" else url.path
    return spec.kind, spec.endpoint.rstrip("/"), url.netloc, f"{path.strip('/')}/".lstrip("/")


def overlap(one: ArchiveSpec, other: ArchiveSpec) -> bool:
    """Whether an object could be in the prefixes of both."""
    (*server, path), (*other_server, other_path) = _place(one), _place(other)
    return server == other_server and (path.startswith(other_path) or other_path.startswith(path))
