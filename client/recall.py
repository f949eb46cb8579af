"""Giving leases back: recalls from the MDS, eviction from the full cache, the loss of a session.

The order that keeps everybody honest: first our own cache stops using the lease, then the kernel forgets, then the MDS
is told. For a WRITE lease: the kernel first (it may launder dirty pages of writable mappings, which arrive as writes
that we still accept), then new writes wait, then what is dirty is committed.

Nothing here waits for a request in service that itself waits for the MDS. The one exception is inside the kernel:
dropping a dentry takes the directory's lock, which a change in service of its entries, mode, owner, times or extended
attributes, or its removal or move, holds while it waits for the MDS, which may wait for this very answer. Therefore
`_forget_entries` stops waiting as soon as such a change is in service (`cache.locked`): the kernel then forgets right
after it.
"""

import asyncio
import logging
import stat
from asyncio import FIRST_COMPLETED
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from nacrefs.client.cache import NONE, READ, WRITE, Cache, Inode
from nacrefs.client.data.commit import commit, register
from nacrefs.client.data.file import File
from nacrefs.client.data.store import Store
from nacrefs.client.data.writebehind import land
from nacrefs.client.filesystem import Kernel
from nacrefs.client.session import Session
from nacrefs.common import faults
from nacrefs.common.answer import Answer, is_later, settle
from nacrefs.common.wire import Holding, Lease, Mode, Recall, Recalled, RecallItem

log = logging.getLogger("nacre.client")
_EVICT_MOST: Final = 1000
_TRIES: Final = 3
_STUCK_S: Final = 0.1
"""So long the kernel is waited for while it may be waiting for us."""


class Recaller:
    """Serves recalls, and keeps the cache within its limit. `kernel` is whoever caches above us, if anybody does."""

    def __init__(self, session: Session, cache: Cache, store: Store) -> None:
        self.kernel: Kernel | None = None
        self._session = session
        self._cache = cache
        self._store = store
        self._evicting = False
        session.holder = self
        cache.on_full = self.evict
        cache.on_shared = self._shared

    # --------------------------------------------------------------------------------------------------------- recalls

    def recall(self, request: Recall) -> Answer[Recalled]:
        """Shrink leases; answered at once where nobody else has to forget or write anything."""
        if faults.on:
            faults.hit("client.recall.begin")
        answers = [self._begin(item) for item in request.items]
        if not any(map(is_later, answers)):
            return Recalled(tuple(answers))  # type: ignore[arg-type]
        return self._all(answers)

    async def _all(self, answers: Sequence[Answer[Holding]]) -> Recalled:
        recalled = Recalled(tuple(await asyncio.gather(*(settle(answer) for answer in answers))))
        if faults.on:
            faults.hit("client.recall.answer")
        return recalled

    def _begin(self, item: RecallItem) -> Answer[Holding]:
        inode = self._cache.inodes.get(item.fid)
        if inode is None:
            return Holding(item.fid, Lease.NONE, Mode.CLOSED)
        if inode.recall is not None:
            return self._after(inode.recall, item)
        if inode.attr is not None and stat.S_ISDIR(inode.attr.mode):
            return self._directory(inode, item)
        if inode.lowering and inode.file is not None and inode.file.reporting is not None:
            # The answer would overtake the Commit, which the MDS would then refuse: it executes requests in batches.
            return self._after(inode.file.reporting, item)
        if inode.lease <= item.lease and not item.spill:
            inode.recalls += 1  # it may be setuid now: see `Namespace.may_be_setid`
            return self._holding(inode)
        if inode.lease == WRITE and inode.file is not None:
            return self._shrink(inode, inode.file, item, self._start(inode))
        inode.lower(item.lease)
        if self.kernel is None or item.lease:  # attributes and pages that the kernel has stay valid under READ
            inode.lowered()
            return self._holding(inode)
        return self._forget_inode(inode, self._start(inode))

    async def _after(self, before: "asyncio.Future[None]", item: RecallItem) -> Holding:
        await before
        return await settle(self._begin(item))

    def _start(self, inode: Inode) -> "asyncio.Future[None]":
        inode.recall = asyncio.get_running_loop().create_future()
        inode.served = 0
        return inode.recall

    @staticmethod
    def _end(inode: Inode, recall: "asyncio.Future[None]") -> None:
        inode.recall = None
        recall.set_result(None)

    def _holding(self, inode: Inode) -> Holding:
        """What we hold of an inode; the MDS registers the mode."""
        file = inode.file
        mode = file.mode_beside(inode.lease) if file is not None else Mode.CLOSED
        inode.registered = mode
        holding = Holding(inode.fid, Lease(inode.lease), mode)
        if file is not None:
            file.let_go()
        elif not inode.lease and not inode.pinned:
            self._cache.drop(inode)
        return holding

    # ---------------------------------------------------------------------------------------------------------- files

    async def _forget_inode(self, inode: Inode, recall: "asyncio.Future[None]") -> Holding:
        try:
            await self._kernel_forgets(inode)
        finally:
            inode.lowered()
            self._end(inode, recall)
        return self._holding(inode)

    async def _kernel_forgets(self, inode: Inode) -> None:
        """Make the kernel forget; again if it has been given something to remember meanwhile."""
        kernel = self.kernel
        if kernel is None:
            return
        for _ in range(4):
            served = inode.served
            await kernel.forget_inode(inode.fid)
            if inode.served == served:
                return

    async def _shrink(self, inode: Inode, file: File, item: RecallItem, recall: "asyncio.Future[None]") -> Holding:
        frozen = False
        try:
            await self._kernel_forgets(inode)
            file.freeze()
            frozen = True
            for attempt in range(_TRIES):
                try:
                    await commit(file, item.lease, spill=item.spill, recalled=True)
                    break
                except OSError as error:
                    if inode.gone or attempt + 1 == _TRIES:
                        log.error("inode %#x: giving up dirty data: %s", inode.fid, error.strerror or error)
                        file.abandon(lost=not inode.gone)
                        await land(file)
                        inode.lease = min(inode.lease, item.lease)
                        if not inode.lease:
                            inode.forget()
                        break
                    await asyncio.sleep(0.2 * (attempt + 1))
        finally:
            if frozen:
                file.thaw()
            self._end(inode, recall)
        if self.kernel is not None and item.lease < READ and inode.served:
            inode.lower(NONE)
            try:
                await self._kernel_forgets(inode)
            finally:
                inode.lowered()
        return self._holding(inode)

    def _shared(self, inode: Inode) -> None:
        if self.kernel is not None:
            self._session.spawn(self._kernel_forgets(inode))

    # ---------------------------------------------------------------------------------------------------- directories

    def _directory(self, inode: Inode, item: RecallItem) -> Answer[Holding]:
        if not inode.lease:
            return self._holding(inode)
        known = inode.names or {}
        keep = bool(item.lease) or (bool(item.names) and inode.used)
        inode.used = False
        if keep:
            names = [name for name in item.names if name in known]
            inode.forget_names(item.names)
            inode.stale = True
        else:
            names = list(known)
            inode.lower(NONE)
        if self.kernel is None:
            if not keep:
                inode.lowered()
            return self._holding(inode)
        return self._forget_directory(inode, names, keep)

    async def _forget_directory(self, inode: Inode, names: list[bytes], keep: bool) -> Holding:
        try:
            await self._forget_entries(inode, names)
        finally:
            if not keep:
                inode.lowered()
        return self._holding(inode)

    async def _forget_entries(self, inode: Inode, names: list[bytes]) -> None:
        kernel = self.kernel
        if kernel is None:
            return
        forgetting = self._session.spawn(kernel.forget_entries(inode.fid, names))
        unknown = self._cache.unknown
        while not forgetting.done() and not inode.mutating:
            if unknown.mutating:  # perhaps it is this one that the kernel has locked
                await asyncio.wait({forgetting, inode.next_mutation()}, timeout=_STUCK_S, return_when=FIRST_COMPLETED)
                return
            waited_for = {forgetting, inode.next_mutation(), unknown.next_mutation()}
            await asyncio.wait(waited_for, return_when=FIRST_COMPLETED)

    # --------------------------------------------------------------------------------------------------------- eviction

    def evict(self) -> None:
        """Make room in the cache, in the background: leases of inodes that were not used for long are given back in
        bulk."""
        if self._evicting:
            return
        victims = self._cache.oldest(max(1, min(_EVICT_MOST, self._cache.limit // 8)))
        if victims:
            self._evicting = True
            self._session.spawn(self._evict(victims))

    async def _evict(self, victims: list[Inode]) -> None:
        try:
            leased: list[tuple[Inode, int]] = []
            forgetting: list[Coroutine[Any, Any, None]] = []
            for inode in victims:
                if not inode.lease:
                    self._cache.drop(inode)
                    continue
                names = list(inode.names or ())
                inode.lower(NONE)
                leased.append((inode, NONE))
                if self.kernel is not None:
                    if names:
                        forgetting.append(self._forget_entries(inode, names))
                    forgetting.append(self.kernel.forget_inode(inode.fid))
            try:
                await asyncio.gather(*forgetting)
                await self._session.give_back(leased)
            finally:
                for inode, _ in leased:
                    inode.lowered()
                    if not inode.lease and not inode.pinned:
                        self._cache.drop(inode)
        finally:
            self._evicting = False
            if len(self._cache.inodes) > self._cache.limit:
                self.evict()

    # -------------------------------------------------------------------------------------------------- loss and
    # reclaim

    def lost(self, reason: str) -> None:
        """The session is over: nothing that it cached is valid, what was dirty is gone."""
        for inode in list(self._cache.inodes.values()):
            if self.kernel is not None and inode.lease:
                self._session.spawn(self._forget_all(inode.fid, list(inode.names or ())))
            inode.lease = NONE
            inode.forget()
            inode.registered = Mode.CLOSED
            inode.capability = None
            file = inode.file
            if file is not None:
                file.abandon(lost=True)
                file.let_go()
                if file.mode != Mode.CLOSED:
                    self._session.spawn(register(file))  # in the next session, too
            elif not inode.pinned:
                self._cache.drop(inode)

    def fenced(self) -> None:
        """We may not serve from caches for now: nor may the kernel."""
        if self.kernel is None:
            return
        for inode in list(self._cache.inodes.values()):
            if inode.lease:
                self._session.spawn(self._forget_all(inode.fid, list(inode.names or ())))

    async def _forget_all(self, fid: int, names: list[bytes]) -> None:
        assert self.kernel is not None
        await self.kernel.forget_inode(fid)
        if names:
            await self.kernel.forget_entries(fid, names)

    def holdings(self) -> list[Holding]:
        """Everything that the session holds. (Of opens the MDS knows which of them the leases cover that it agrees
        to.)"""
        held: list[Holding] = []
        for inode in self._cache.inodes.values():
            mode = inode.file.mode if inode.file is not None else Mode.CLOSED
            lease = inode.claimed
            if lease or mode:
                change = inode.attr.change if inode.attr is not None and not inode.stale else 0
                held.append(Holding(inode.fid, Lease(lease), mode, change))
        return held

    def reclaimed(self, holding: Holding) -> None:
        """What the MDS, restarted, agrees to."""
        inode = self._cache.inodes.get(holding.fid)
        if inode is None:
            return
        inode.registered = holding.mode
        if not inode.lease:
            inode.recalls += 1  # what we were to be told without a lease may not have been said
        if holding.lease < inode.lease:
            log.warning("inode %#x: lease %d was not reclaimed", inode.fid, inode.lease)
            names = list(inode.names or ())
            inode.lease = holding.lease
            if not inode.lease:
                inode.forget()
                if self.kernel is not None:
                    self._session.spawn(self._forget_all(inode.fid, names))
        elif inode.lease and inode.attr is not None and inode.attr.change < holding.change:
            inode.stale = True  # under a WRITE lease contents and size are ours, but not owner, mode and names
            inode.xattrs = None
            if self.kernel is not None:
                self._session.spawn(self.kernel.forget_inode(inode.fid))
