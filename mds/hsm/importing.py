"""Files, directories and links rebuilt from what lies in an archive: first from its catalogue, as far as the objects
that it names are there, then from the objects that are newer. Nothing is downloaded: files are released.
"""

import asyncio
import errno
import gzip
import logging
import stat
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import xxhash
from msgspec.structs import replace

from nacrefs.common import wire
from nacrefs.common.wire import ArchiveEntry, ArchiveSpec, AttrFlag, HsmFlag, Imported
from nacrefs.mds.hsm import catalogue, steps
from nacrefs.mds.hsm.attempts import TRANSIENT
from nacrefs.mds.hsm.catalogue import Current, Record
from nacrefs.mds.hsm.rows import ARCHIVED, COPIED, RELEASED, HsmRow, hsm_of
from nacrefs.mds.hsm.steps import name_of
from nacrefs.mds.inode import DIRECTORY_BLOCKS, DIRECTORY_BYTES, Inode
from nacrefs.mds.links.steps import is_link
from nacrefs.mds.namespace.layouts import new_layout
from nacrefs.mds.namespace.names import check_name
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")

PAGE: Final = 500
AWAY_S: Final = 60.0
AGAIN_S: Final = 0.5
_MARK: Final = "\n"
"""Begins cursors that stand for parts of the catalogue: no key has one."""
_record_of = msgspec.json.Decoder(Record).decode


class Job:
    """What an import under way must remember between its pages."""

    def __init__(self, current: Current | None) -> None:
        self.current = current
        self.objects: dict[str, ArchiveEntry] = {}
        """Objects that are there, and of which nothing has been made yet."""
        self.linked: set[str] = set()
        """Objects of files with several names that have been made."""
        self.fids: dict[int, int] = {}
        """New fids of files with several names, by their old ones."""
        self.owned: dict[str, int] = {}
        """Objects that files here had as their copies when it began, as after an import that was killed, and which."""

    def owner(self, step: Step, key: str) -> int:
        """The file that has this object as its copy already; 0: none. It must not have two: with the first that is
        removed it would go."""
        fid = self.owned.get(key, 0)
        return fid if fid and step.tx.inode(fid) is not None else 0


class Importer:
    """Imports, page by page."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._jobs: dict[tuple[int, int, str], Job] = {}

    async def page(self, spec: ArchiveSpec, request: wire.ImportArchive) -> Imported:
        """One page. Its cursor is empty at first, then `\\nN` (part N of the catalogue comes next), then a key."""
        await self._mds.grace.ended()
        which = (spec.id, request.parent, request.prefix)
        if not request.after:
            self._jobs[which] = await self._begin(spec)
        job = self._jobs.get(which)
        if job is None:
            raise OSError(errno.ESTALE, "the MDS was restarted meanwhile: import again, what is there already stays")
        number = int(request.after[1:] or 0) if request.after.startswith(_MARK) else 0
        if job.current is None:
            done = await self._listing(spec, request, job)
        elif number < job.current.parts:
            done = replace(await self._part(spec, request, job, number), after=f"{_MARK}{number + 1}")
        else:
            done = replace(await self._newer(spec, request, job), after=f"{_MARK}{number + 1}" if job.objects else "")
        if not done.after:
            del self._jobs[which]
        return done

    async def _begin(self, spec: ArchiveSpec) -> Job:
        job = Job(await self._current(spec))
        store, fid = self._mds.mdt.store, 0
        while rows := store.fetchall(store.statements.archive_keys, (spec.id, fid, PAGE)):
            fid = rows[-1][0]
            job.owned.update((key, owner) for owner, key in rows if key)
            await asyncio.sleep(0)
        after = ""
        while job.current is not None:
            page: wire.ArchiveListing = await self._ask(wire.MoveList(spec, "", after))
            job.objects.update((entry.key, entry) for entry in page.entries)
            after = page.after
            if not after:
                break
        return job

    async def _current(self, spec: ArchiveSpec) -> Current | None:
        try:
            found: wire.Bytes = await self._ask(wire.MoveRead(spec, catalogue.CURRENT))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return msgspec.json.decode(found.data, type=Current)

    async def _part(self, spec: ArchiveSpec, request: wire.ImportArchive, job: Job, number: int) -> Imported:
        assert job.current is not None
        found: wire.Bytes = await self._ask(wire.MoveRead(spec, catalogue.part_key(job.current.stamp, number)))
        works: list[tuple[str, int, asyncio.Future[bool]]] = []
        for line in gzip.decompress(found.data).splitlines():
            record = _record_of(line)
            if not record.path or not _is_wanted(record, request.prefix):
                continue
            if record.copy is not None:
                key = record.copy.key
                if job.objects.pop(key, None) is None and key not in job.linked:
                    continue  # it was removed, or copied anew, since
                if record.nlink > 1:
                    job.linked.add(key)
            work = partial(import_record, spec, record, request.parent, job)
            works.append((record.path, record.size, self._mds.journal.submit_own(work)))
        return await _done(works)

    async def _newer(self, spec: ArchiveSpec, request: wire.ImportArchive, job: Job) -> Imported:
        """Objects that the catalogue does not know."""
        works: list[tuple[str, int, asyncio.Future[bool]]] = []
        while job.objects and len(works) < PAGE:
            key, entry = job.objects.popitem()
            if key.startswith(request.prefix) and not key.startswith(catalogue.PREFIX):
                known: ArchiveEntry = await self._ask(wire.MoveHead(spec, key))
                work = partial(import_entry, spec, known, request.parent, job, await self._target(spec, known))
                works.append((key, entry.size, self._mds.journal.submit_own(work)))
        return await _done(works)

    async def _target(self, spec: ArchiveSpec, entry: ArchiveEntry) -> bytes:
        """What an object points at that is a symbolic link; empty: it is none."""
        if not is_link(entry):
            return b""
        found: wire.Bytes = await self._ask(wire.MoveRead(spec, entry.key))
        return b"" if b"\0" in found.data else found.data

    async def _ask(self, request: wire.Request[Any]) -> Any:
        """The answer of one OSS. One that is lost, or an archive that cannot be reached, has a while to come back."""
        until_s = time.monotonic() + AWAY_S
        while True:
            try:
                return await self._mds.hsm.ask_one(request)
            except OSError as error:
                if error.errno not in TRANSIENT or time.monotonic() >= until_s:
                    raise
                log.info("an import waits: %s", error.strerror)
            await asyncio.sleep(AGAIN_S)

    async def _listing(self, spec: ArchiveSpec, request: wire.ImportArchive, job: Job) -> Imported:
        """There is no catalogue."""
        order = wire.MoveList(spec, request.prefix, request.after, min(request.limit, PAGE), True)
        page: wire.ArchiveListing = await self._ask(order)
        works: list[tuple[str, int, asyncio.Future[bool]]] = []
        for entry in page.entries:
            work = partial(import_entry, spec, entry, request.parent, job, await self._target(spec, entry))
            works.append((entry.key, entry.size, self._mds.journal.submit_own(work)))
        return replace(await _done(works), after=page.after)


def _is_wanted(record: Record, prefix: str) -> bool:
    return record.path.startswith(prefix) or (record.copy is not None and record.copy.key.startswith(prefix))


async def _done(works: "list[tuple[str, int, asyncio.Future[bool]]]") -> Imported:
    """What came of them; they share commits."""
    made = skipped = size = 0
    problems: list[str] = []
    for name, length, work in works:
        try:
            done = await work
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
            continue
        made += done
        skipped += not done
        size += length if done else 0
    return Imported("", made, skipped, size, tuple(problems[:100]))


def import_record(spec: ArchiveSpec, record: Record, parent: int, job: Job, step: Step) -> bool:
    """Make what a record of the catalogue describes; False if there is something of its name already."""
    tx = step.tx
    parts = [name_of(part) for part in record.path.split("/")]
    for part in parts:
        check_name(part)
    top = parent
    for part in parts[:-1]:
        parent = _directory(step, parent, part, None, 0, 0, top)
    name = parts[-1]
    there = tx.lookup(parent, name)
    if there is not None:
        if record.nlink > 1 and record.copy is None and _is_same(step, there, record):
            job.fids[record.fid] = there.attr.fid
        return False
    owner = 0 if record.copy is None else job.owner(step, record.copy.key)
    if owner and tx.need(owner).attr.nlink >= record.nlink:
        return False
    if stat.S_ISDIR(record.mode):
        fid = _directory(step, parent, name, stat.S_IMODE(record.mode), record.uid, record.gid, top)
    else:
        step.leases.changed(parent, name)
        again = owner or job.fids.get(record.fid, 0)
        if again and tx.inode(again) is not None:
            tx.relink(again, 1, step.now_ns)
            fid = again
        else:
            fid = _new(step, record, spec, parent).attr.fid
            if record.nlink > 1:
                job.fids[record.fid] = fid
        tx.set_dentry(parent, name, fid)
        _add_entry(step, parent, 0, top)
        if fid == again:
            return True
    for key, value in record.xattrs.items():
        tx.set_xattr(fid, name_of(key), value)
    _set_times(fid, record, step)
    return True


def _is_same(step: Step, inode: Inode, record: Record) -> bool:
    """Whether this is what an earlier import has made of a record without a copy: a symbolic link, a device."""
    attr = inode.attr
    return (attr.mode, attr.rdev) == (record.mode, record.rdev) and (
        not stat.S_ISLNK(attr.mode) or step.tx.data(inode) == record.target
    )


def _new(step: Step, record: Record, spec: ArchiveSpec, parent: int) -> Inode:
    tx = step.tx
    directory = tx.need_directory(parent)
    copy = record.copy
    released = copy is not None and copy.size > 0
    inode = tx.new_inode(
        record.mode,
        record.uid,
        record.gid,
        step.now_ns,
        rdev=record.rdev,
        size=copy.size if copy is not None else record.size,
        blocks=1 if released else 0,
        flags=0 if copy is None else ARCHIVED | COPIED | (RELEASED if released else int(AttrFlag.INLINE)),
        layout=new_layout(step, directory) if copy is not None else None,
        project=directory.project,
        data=record.target or None,
    )
    if copy is not None:
        inode.data_version = copy.version
        flags = HsmFlag.EXISTS | HsmFlag.ARCHIVED | (HsmFlag.RELEASED if released else HsmFlag(0))
        tx.set_hsm(
            inode.attr.fid,
            HsmRow(
                inode.attr.fid, int(flags), spec.id, copy.key, copy.version, copy.size, copy.etag, copy.part_bytes,
                copy.digests, xxhash.xxh3_64_digest(copy.digests), copy.storage_class, step.now_ns,
            ),
        )  # fmt: skip
    return inode


def _set_times(fid: int, record: Record, step: Step) -> None:
    inode = step.tx.inode(fid)
    if inode is None:
        return
    step.leases.changed(fid)
    edited = step.tx.edit(fid)
    edited.attr = replace(
        edited.attr,
        atime_ns=record.atime_ns,
        mtime_ns=record.mtime_ns,
        ctime_ns=record.ctime_ns,
        change=edited.attr.change + 1,
    )


def import_entry(spec: ArchiveSpec, entry: ArchiveEntry, parent: int, job: Job, target: bytes, step: Step) -> bool:
    """Make the file, directory or symbolic link (to `target`) that an object is of; False if there is one already."""
    tx, meta, top = step.tx, dict(entry.meta), parent
    if job.owner(step, entry.key):
        return False
    parts = entry.key.rstrip("/").split("/")
    own = _number(meta.get("nacre-fid", ""), 16)
    if not entry.key.endswith("/"):
        stem, tilde, _ = parts[-1].rpartition("~")
        if tilde and own:
            parts[-1] = stem
    mode = _number(meta.get("file-permissions", ""), 8)
    uid, gid = _number(meta.get("file-owner", "")), _number(meta.get("file-group", ""))
    for part in parts[:-1]:
        parent = _directory(step, parent, steps.name_of(part), None, 0, 0, top)
    name = steps.name_of(parts[-1])
    if entry.key.endswith("/"):
        before = tx.dentry(parent, name)
        _directory(step, parent, name, stat.S_IMODE(mode) if mode else None, uid, gid, top)
        return before is None
    check_name(name)
    existing = tx.lookup(parent, name)
    if existing is not None:
        row = hsm_of(tx, existing)
        if row.archive == spec.id and _number(meta.get("nacre-version", "")) > row.version and (
            existing.attr.flags & RELEASED and row.key.partition("~")[2].split(".")[0] == f"{own:x}"
        ):  # fmt: skip
            step.leases.changed(existing.attr.fid)
            return _describe(step, existing.attr.fid, spec, entry, meta)
        return False
    directory = tx.need_directory(parent)
    if target:
        inode = tx.new_inode(
            stat.S_IFLNK | 0o777, uid, gid, step.now_ns, size=len(target), project=directory.project, data=target
        )
        times = _times(entry, meta)
        inode.attr = replace(inode.attr, atime_ns=times[0], mtime_ns=times[1])
    else:
        released = entry.size > 0
        inode = tx.new_inode(
            stat.S_IFREG | (stat.S_IMODE(mode) if mode else 0o644),
            uid,
            gid,
            step.now_ns,
            size=entry.size,
            blocks=1 if released else 0,
            flags=ARCHIVED | COPIED | (RELEASED if released else 0),
            layout=new_layout(step, directory),
            project=directory.project,
        )
    step.leases.changed(parent, name)
    tx.set_dentry(parent, name, inode.attr.fid)
    _add_entry(step, parent, 0, top)
    return bool(target) or _describe(step, inode.attr.fid, spec, entry, meta)


def _times(entry: ArchiveEntry, meta: dict[str, str]) -> tuple[int, int]:
    """When a file was last read and changed, as its object says."""
    mtime_ns = _time(meta.get("file-mtime", "")) or entry.mtime_ns
    return _time(meta.get("file-atime", "")) or mtime_ns, mtime_ns


def _describe(step: Step, fid: int, spec: ArchiveSpec, entry: ArchiveEntry, meta: dict[str, str]) -> bool:
    edited = step.tx.edit(fid)
    version = _number(meta.get("nacre-version", ""))
    atime_ns, mtime_ns = _times(entry, meta)
    edited.data_version = version
    edited.attr = replace(
        edited.attr, size=entry.size, mtime_ns=mtime_ns, atime_ns=atime_ns, change=edited.attr.change + 1
    )
    digest = bytes.fromhex(meta.get("nacre-checksum", "")) if len(meta.get("nacre-checksum", "")) == 16 else b""
    flags = HsmFlag.EXISTS | HsmFlag.ARCHIVED | (HsmFlag.RELEASED if entry.size else HsmFlag(0))
    row = HsmRow(
        fid, int(flags), spec.id, entry.key, version, entry.size, entry.etag, max(1, entry.size) if digest else 0,
        digest, b"", entry.storage_class, step.now_ns,
    )  # fmt: skip
    step.tx.set_hsm(fid, row)
    return True


def _add_entry(step: Step, parent: int, nlink: int, top: int) -> None:
    """A directory has one more name. Below the one into which all is imported (`top`) that is not its last change: its
    times are those that it had, whenever an import is killed."""
    before = step.tx.need(parent).attr
    step.tx.touch(parent, nlink, 1, step.now_ns)
    if parent != top:
        edited = step.tx.edit(parent)
        edited.attr = replace(edited.attr, mtime_ns=before.mtime_ns, ctime_ns=before.ctime_ns)


def _directory(step: Step, parent: int, name: bytes, mode: int | None, uid: int, gid: int, top: int) -> int:
    """The directory of that name, made if need be; its mode and owner if they are known."""
    tx = step.tx
    check_name(name)
    found = tx.lookup(parent, name)
    if found is None:
        inode = tx.new_inode(
            stat.S_IFDIR | (0o755 if mode is None else mode),
            uid,
            gid,
            step.now_ns,
            nlink=2,
            size=DIRECTORY_BYTES,
            blocks=DIRECTORY_BLOCKS,
            parent=parent,
            project=tx.need_directory(parent).project,
        )
        step.leases.changed(parent, name)
        tx.set_dentry(parent, name, inode.attr.fid)
        _add_entry(step, parent, 1, top)
        return inode.attr.fid
    if not found.is_directory:
        raise OSError(errno.ENOTDIR, f"{name!r} is there and is no directory")
    return found.attr.fid


def _number(text: str, base: int = 10) -> int:
    try:
        return int(text, base)
    except ValueError:
        return 0


def _time(text: str) -> int:
    """Nanoseconds of `123ns`, as FSx writes it."""
    return _number(text.removesuffix("ns"))
