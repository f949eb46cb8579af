"""Requests about links."""

import asyncio
import errno
from typing import TYPE_CHECKING, Any, Final

import msgspec
from croniter import croniter
from msgspec.structs import replace

from nacrefs.common import wire
from nacrefs.common.rpc import Call, Handler
from nacrefs.common.wire import ArchiveSpec, Inspection, LinkSpec
from nacrefs.mds.hsm.desk import HsmDesk, check_spec, overlap
from nacrefs.mds.links.rows import AUTO_IMPORT, CONFLICT, IMPORTS, LinkRow
from nacrefs.mds.links.service import Link, due
from nacrefs.mds.namespace.xattrs import path_of
from nacrefs.mds.once import Keep
from nacrefs.mds.transactions.tx import Tx

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

LINK_REQUESTS: Final[tuple[type[wire.Request[Any]], ...]] = (
    wire.SetLink, wire.RemoveLink, wire.GetLinks, wire.OrderLink, wire.GetLinkLog,
)  # fmt: skip
EVERY_LEAST_S: Final = 1.0


class LinkDesk:
    """Answers them."""

    def __init__(self, mds: "Mds", archives: HsmDesk) -> None:
        self._mds = mds
        self._archives = archives
        self._reading = Tx(mds.mdt, writable=False)

    def handlers(self) -> dict[type[wire.Request[Any]], Handler]:
        """The table of these requests."""
        return {
            wire.SetLink: self._mds.once.handler(self._set),
            wire.RemoveLink: self._mds.once.handler(self._remove, self._removed),
            wire.GetLinks: lambda request, call: _json(
                [self.report(link, request.totals) for link in self._mds.links.by_id.values()]
            ),
            wire.OrderLink: self._order,
            wire.GetLinkLog: self._log,
        }

    async def _set(self, request: wire.SetLink, keep: Keep) -> Inspection:
        spec, links = request.spec, self._mds.links
        check_link(spec)
        if spec.id:
            link = links.need(spec.id)
            await links.change(link, replace(spec, fid=link.row.fid), max(0.0, request.archive.rate_mibps))
            return _json(self.report(link))
        async with self._archives.placing:
            return await self._make(request, self._archives.free_number(), keep)

    async def _make(self, request: wire.SetLink, number: int, keep: Keep) -> Inspection:
        spec = request.spec
        archive = replace(request.archive, id=number, name=f"link-{number}", template="", keep=True)
        check_spec(archive)
        self._check_place(spec.fid, archive)
        probe = wire.MoveList(archive, "", "", 1)
        await self._mds.hsm.ask_everybody(probe)
        made = Link(LinkRow(number, spec.fid, replace(spec, id=number)))
        answer = _json(self.report(made, archive=archive))
        link = await self._mds.links.create(made, archive, lambda step: keep(step, answer))
        return _json(self.report(link))

    def _check_place(self, fid: int, archive: ArchiveSpec) -> None:
        """OSError (EEXIST) if the directory or the prefix is part of another link's, or holds it, or if the prefix has
        to do with an archive's."""
        tx = self._reading
        if not tx.need(fid).is_directory:
            raise OSError(errno.ENOTDIR, "only a directory can be linked")
        above = _directories_above(tx, fid)
        for link in self._mds.links.by_id.values():
            bound = link.row.fid
            if bound in above or (tx.inode(bound) is not None and fid in _directories_above(tx, bound)):
                raise OSError(errno.EEXIST, f"link {link.row.id} ({self._path(bound)}) overlaps: links do not nest")
            theirs = self._mds.hsm.archives[link.row.id]
            if overlap(archive, theirs):
                raise OSError(errno.EEXIST, f"link {link.row.id} has {theirs.url} already: links do not overlap")
        for number, other in self._mds.hsm.archives.items():
            if number not in tx.mdt.linked and overlap(archive, other):
                raise OSError(
                    errno.EEXIST,
                    f"archive {other.name} keeps its copies in {other.url}, and a link there would mix both: link"
                    " another prefix, or see what the archive has with `nacre archive import`",
                )

    async def _remove(self, request: wire.RemoveLink, keep: Keep) -> Inspection:
        link = self._mds.links.need(request.id)
        answer = _json(self.report(link))
        await self._mds.links.remove(link, request.purge, lambda step: keep(step, answer))
        return answer

    async def _removed(self, request: wire.RemoveLink) -> None:
        """A restart was in the middle of it: its keeper goes on."""
        link = self._mds.links.by_id.get(request.id)
        if link is not None and link.keeper is not None:
            await asyncio.wait({link.keeper})

    async def _order(self, request: wire.OrderLink, call: Call) -> wire.Done:
        self._mds.sessions.heard(call.peer)
        links = self._mds.links
        link = links.need(request.id)
        if request.verb == "refresh":
            links.ask(link)
        elif request.verb in ("pause", "resume"):
            await links.pause(link, request.verb == "pause")
        elif request.verb == "flush":
            if link.exporter is None:
                raise OSError(errno.EINVAL, "the link's bucket does not follow its files (--auto-export)")
            await link.exporter.flush()
        else:
            raise OSError(errno.EINVAL, f"a link can do refresh, pause, resume and flush, not {request.verb[:80]!r}")
        return wire.Done()

    def _log(self, request: wire.GetLinkLog, call: Call) -> Inspection:
        store, number = self._mds.mdt.store, self._mds.links.need(request.id).row.id
        if request.what == "log":
            rows = store.fetchall(store.statements.link_log, (number,))
            return _json([{"time_ns": time_ns, "text": text} for _, time_ns, text in rows[-request.limit :]])
        if request.what == "problems":
            limit = max(1, min(request.limit, wire.LISTING_MAX))
            rows = store.fetchall(store.statements.link_problems, (number, request.after, limit))
            return _json([{"key": key.decode(), "reason": reason} for key, reason in rows])
        raise OSError(errno.EINVAL, f"there is log and problems, no {request.what[:80]!r}")

    def _path(self, fid: int) -> str:
        try:
            return path_of(self._reading, fid).decode(errors="backslashreplace")
        except OSError:
            return ""

    def report(self, link: Link, totals: bool = False, archive: ArchiveSpec | None = None) -> dict[str, Any]:
        """A link, as plain data; `totals`: with what is to be counted."""
        row, spec = link.row, link.row.spec
        archive = archive or self._mds.hsm.archives[row.id]
        refresh = link.refresh
        next_ns = due(spec, row.refreshed_ns)
        return {
            "id": row.id,
            "fid": row.fid,
            "path": self._path(row.fid),
            "url": archive.url,
            "endpoint": archive.endpoint,
            "region": archive.region,
            "credentials": archive.credentials,
            "kind": archive.kind,
            "limit_mibps": archive.rate_mibps,
            "imports": spec.imports,
            "auto_import": list(spec.auto_import),
            "conflict": spec.conflict,
            "every_s": spec.every_s,
            "cron": spec.cron,
            "details": spec.details,
            "state": row.state,
            "reason": row.reason,
            "refreshed_ns": row.refreshed_ns,
            "next_ns": next_ns if row.state == "active" else None,
            "last": msgspec.to_builtins(row.counts),
            "refreshing": None if refresh is None else msgspec.to_builtins(refresh.counts),
            "wanted": link.wanted,
            "ended": link.ended,
            "auto_export": list(spec.auto_export),
            "unsent": 0 if link.exporter is None else len(link.exporter.waiting()),
            "unsent_reasons": {} if link.exporter is None else link.exporter.failures(),
            **(self._totals(row.id) if totals else {}),
        }

    def _totals(self, number: int) -> dict[str, int]:
        store = self._mds.mdt.store
        files = size = released = 0
        for flags, count, total in store.fetchall(store.statements.archive_counts, (number,)):
            files += count
            size += int(total)
            released += count if flags & wire.HsmFlag.RELEASED else 0
        (problems,) = store.fetchone(store.statements.link_problem_count, (number,)) or (0,)
        return {"files": files, "bytes": size, "released": released, "problems": problems}


def _json(document: Any) -> Inspection:
    return Inspection(msgspec.json.encode(document))


def check_link(spec: LinkSpec) -> None:
    """OSError (EINVAL) that says why, unless this can be a link."""
    if spec.imports not in IMPORTS:
        raise OSError(errno.EINVAL, f"imports are {', '.join(IMPORTS)}, not {spec.imports!r}")
    for mode in spec.auto_import:
        if mode not in AUTO_IMPORT:
            raise OSError(errno.EINVAL, f"what is imported by itself is {', '.join(AUTO_IMPORT)}, not {mode!r}")
    for mode in spec.auto_export:
        if mode not in AUTO_IMPORT:
            raise OSError(errno.EINVAL, f"what the bucket follows is {', '.join(AUTO_IMPORT)}, not {mode!r}")
    if spec.conflict not in CONFLICT:
        raise OSError(errno.EINVAL, f"conflicts are decided by {', '.join(CONFLICT)}, not {spec.conflict!r}")
    if spec.cron and (len(spec.cron.split()) != 5 or not croniter.is_valid(spec.cron)):
        raise OSError(errno.EINVAL, f"{spec.cron!r} is not a cron expression of five fields")
    if spec.every_s and (spec.cron or spec.every_s < EVERY_LEAST_S):
        raise OSError(errno.EINVAL, "a link is refreshed every so often (1 s at least) or as cron says, not both")


def _directories_above(tx: Tx, fid: int) -> set[int]:
    """The directory and all that hold it."""
    found: set[int] = set()
    while fid not in found:
        found.add(fid)
        fid = tx.need(fid).parent
    return found
