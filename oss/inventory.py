"""Which objects an OST has, for `nacre fsck`: `ListObjects`, `ProbeObjects`.

A page is read in a thread, since it may wait for the disk. What looks wrong in it is looked at again in one step of the
event loop, where record, file and what is known in memory cannot change meanwhile.
"""

import errno
import os
from typing import Final

from nacrefs.common.wire import ListObjects, ObjectFact, ObjectFacts, ProbeObjects
from nacrefs.oss.admission import FID_MAX, check_object, invalid
from nacrefs.oss.blockio import IoThreads
from nacrefs.oss.gate import Call, Gate
from nacrefs.oss.index import Index, Record
from nacrefs.oss.object import CLEANING, DEAD
from nacrefs.oss.recovery import DIRECTORIES
from nacrefs.oss.target import Target

PAGE_MAX: Final = 10_000

Key = tuple[int, int]


class Inventory:
    """Handlers."""

    def __init__(self, gate: Gate, threads: IoThreads) -> None:
        self._gate = gate
        self._threads = threads

    async def list_objects(self, request: ListObjects, call: Call) -> ObjectFacts:
        """A page of objects."""
        target = self._gate.target(request.ost)
        if not 0 < request.limit <= PAGE_MAX:
            raise invalid(f"limit {request.limit} is not in 1..{PAGE_MAX}")
        if request.unknown:
            return await self._unknown(target, request.cursor)
        fid, number = request.cursor if len(request.cursor) == 2 else (request.first, -1)
        after = (fid, number) if number >= 0 else (max(fid - 1, 0), (1 << 32) - 1)
        last = min(request.last, FID_MAX)
        index, path_of = target.index, target.path_of
        keys = await self._threads.run(index.keys, after, last, request.limit)
        facts = await self._threads.run(lambda: [_fact(index, key, path_of(*key)) for key in keys])
        found = [
            fact if fact is not None and not fact.problem else look(target, *key)
            for key, fact in zip(keys, facts, strict=True)
        ]
        cursor = keys[-1] if len(keys) == request.limit else ()
        return ObjectFacts(tuple(fact for fact in found if fact is not None), cursor)

    async def _unknown(self, target: Target, cursor: tuple[int, ...]) -> ObjectFacts:
        """The objects without a record in the next directory that has any."""
        at, keys = cursor[0] if cursor else 0, list[Key]()
        while not keys and at < DIRECTORIES:
            keys = await self._threads.run(target.unknown, at)
            at += 1
        found = [look(target, *key) for key in keys]
        return ObjectFacts(tuple(fact for fact in found if fact is not None), (at,) if at < DIRECTORIES else ())

    def probe_objects(self, request: ProbeObjects, call: Call) -> ObjectFacts:
        """Some objects."""
        found: list[ObjectFact] = []
        for item in request.objects:
            check_object(item.fid, item.number)
            fact = look(self._gate.target(item.ost), item.fid, item.number)
            if fact is not None:
                found.append(fact)
        return ObjectFacts(tuple(found))


def look(target: Target, fid: int, number: int) -> ObjectFact | None:
    """An object as it is now; None if there is none."""
    stored = target.opened(fid, number)
    if stored is not None and stored.state is DEAD:
        return None
    if stored is not None and stored.state >= CLEANING:
        stat = os.fstat(stored.fd)
        problem = ""
        if not stat.st_nlink:
            problem = "its file has been removed"
        elif stat.st_size != stored.size:
            problem = f"its file is {stat.st_size} bytes long, the object {stored.size}"
        elif stored.failure is not None:
            problem = "its bytes could not be written to the disk"
        allocated = stat.st_blocks * 512
        return ObjectFact(fid, number, stored.size, allocated, stored.mtime_ns, stored.generation, problem)
    return _fact(target.index, (fid, number), target.path_of(fid, number))


def _fact(index: Index, key: Key, path: str) -> ObjectFact | None:
    """What record and file of an object that nobody uses say."""
    fid, number = key
    record: Record | None = None
    problem = ""
    try:
        record = index.record(fid, number)
    except OSError as error:
        if error.errno != errno.EBADMSG:
            raise
        problem = "its index record is damaged"
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        if record is None and not problem:
            return None
        size, mtime_ns, generation = (record.size, record.mtime_ns, record.generation) if record else (0, 0, 0)
        return ObjectFact(fid, number, size, 0, mtime_ns, generation, problem or "its file is missing")
    allocated = stat.st_blocks * 512
    if record is None:
        return ObjectFact(fid, number, stat.st_size, allocated, stat.st_mtime_ns, 0, problem)
    if not record.dirty and stat.st_size != record.size:
        problem = f"its file is {stat.st_size} bytes long, the object {record.size}"
    size = stat.st_size if record.dirty else record.size
    return ObjectFact(fid, number, size, allocated, record.mtime_ns, record.generation, problem)
