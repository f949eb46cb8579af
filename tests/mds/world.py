"""One MDT without a server: requests are executed as steps, committed in batches of the test's choice."""

from typing import Any, TypeVar

from nacrefs.common.wire import Lease, Request
from nacrefs.mds.check import check
from nacrefs.mds.database import open_store
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.namespace.operations import READS, WRITES
from nacrefs.mds.transactions.cache import Cache
from nacrefs.mds.transactions.flush import discard, flush, publish
from nacrefs.mds.transactions.step import DEFAULT_SPEC, Step
from nacrefs.mds.transactions.tx import Tx
from tests.mds.doubles import LeaseBook, Osts, unsigned
from tests.mdt import make_mdt

ReplyT = TypeVar("ReplyT")
INLINE_BYTES = DEFAULT_SPEC.inline_bytes
START_NS = 1_700_000_000_000_000_000
_OPERATIONS = {**READS, **WRITES}


class World:
    """An MDT, its leases and OSTs, and a clock that moves by a microsecond with each request."""

    def __init__(self, url: str, cache_bytes: int = 64 << 20, formatted: bool = False) -> None:
        self.url = url
        self.cache_bytes = cache_bytes
        self.leases = LeaseBook()
        self.osts = Osts()
        self.now_ns = START_NS
        if not formatted:
            make_mdt(url, "test", START_NS)
        self.open()

    def open(self) -> None:
        """Open the database and begin a batch."""
        self.mdt = Mdt(open_store(self.url), Cache(self.cache_bytes))
        self.tx = Tx(self.mdt)

    def reopen(self) -> None:
        """As after a crash: what is not committed is gone, and so are the leases."""
        discard(self.tx)
        self.mdt.store.close()
        self.leases = LeaseBook()
        self.open()

    def close(self) -> None:
        """Close the database."""
        self.mdt.store.close()

    def session(self) -> int:
        """A new session, committed."""
        record = self.tx.add_session("client", "host", 1, self.now_ns)
        self.commit()
        return record.id

    def step(self, session: int = 1) -> Step:
        """The surroundings of the next request."""
        self.now_ns += 1000
        return Step(self.tx, self.leases.of(session), self.osts, unsigned, session, self.now_ns)

    def batched(self, request: Request[ReplyT], session: int = 1) -> ReplyT:
        """Execute a request in the present batch."""
        before = self.tx.writes
        operation = _OPERATIONS[type(request)]
        try:
            reply: Any = operation(self.step(session), request)
        except Exception:
            assert self.tx.writes == before, "a step failed after it had written"
            raise
        return reply  # type: ignore[no-any-return]

    def do(self, request: Request[ReplyT], session: int = 1) -> ReplyT:
        """Execute a request and commit."""
        reply = self.batched(request, session)
        self.commit()
        return reply

    def commit(self) -> None:
        """Commit the batch and begin another."""
        flush(self.tx)
        self.mdt.store.commit()
        publish(self.tx)
        self.tx = Tx(self.mdt)

    def abandon(self) -> None:
        """Let the batch fail, and begin another."""
        discard(self.tx)
        self.tx = Tx(self.mdt)

    def recall(self, session: int, fid: int, keep: Lease = Lease.NONE) -> None:
        """The session gives back its lease, having nothing open."""
        self.leases.set(session, fid, keep)

    def findings(self) -> list[str]:
        """What is wrong with the committed tree."""
        return check(self.mdt.store)
