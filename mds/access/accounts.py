"""What users, groups and projects use, and what they may: the committed state in memory, and the rules of quotas.

Usage is counted per (uid, gid, project), one row in SQL each (`schema.usage`): a batch adds to one row for all its new
files of one owner. Here it is summed up by user, group and project, since limits are theirs.

Clients write to the OSTs without asking here, so the MDS hears of bytes only afterwards, by `Commit`. Therefore each
answer to a writer of a file with a quota says how much his client may add before it reports (`allow`): a small part of
what is neither used nor allowed to other clients, the smaller the more of them there are, so that who writes about as
fast as the others has reported before they reach the limit; and `FLOOR_BYTES` at least while so much is left, since
nobody is to be refused before that. So a hard limit is overrun by a few `FLOOR_BYTES` for each client that writes at
that moment (two, if an OST is asked while another client writes to it), by what the OSTs' file systems round up, and by
what a client was allowed, has not written yet when others have used up the floors, and goes on to write. An allowance
is remembered for `ALLOWED_S`; a client trusts it for a part of that.
Decisions only: no clock, no SQL but the load.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from nacrefs.common.wire import QuotaInfo, QuotaKind, QuotaLimits
from nacrefs.mds.engine import Store
from nacrefs.mds.inode import Inode
from nacrefs.mds.records import Quota

REPORT_BYTES: Final = 16 << 20
"""A client of whose owner bytes are limited reports at least so often."""
FLOOR_BYTES: Final = 16 << 10
"""Smallest allowance, unless less is left."""
ALLOWED_S: Final = 30
"""Whose writing and reporting takes longer than that (a stalled OST) overruns the limit by what he was allowed."""
UNKNOWN: Final = -2
"""`Node.quota` for those who do not write."""
ID_MAX: Final = (1 << 32) - 2
"""Highest uid, gid and project; the next one means "none" to the kernel."""

Account = tuple[int, int]
"""A kind (`wire.QuotaKind`) and an id."""
Triple = tuple[int, int, int]
"""Who an inode belongs to: uid, gid, project."""


class Used(NamedTuple):
    """What somebody uses."""

    bytes: int
    inodes: int


NOTHING: Final = Used(0, 0)
UNLIMITED: Final = QuotaLimits(0, 0, 0, 0)


def triple_of(inode: Inode) -> Triple:
    """Who an inode belongs to."""
    attr = inode.attr
    return attr.uid, attr.gid, inode.project


def accounts_of(triple: Triple) -> tuple[Account, ...]:
    """Who pays for what belongs to a triple."""
    uid, gid, project = triple
    if project:
        return (0, uid), (1, gid), (2, project)
    return (0, uid), (1, gid)


def changes(
    made: Iterable[Inode], gone: Iterable[Inode], edited: Iterable[tuple[Inode, Inode]]
) -> dict[Triple, list[int]]:
    """What a batch adds to usage, as [bytes, inodes] by triple: inodes that are new, gone, or different (before,
    after)."""
    found: dict[Triple, list[int]] = {}

    def add(inode: Inode, sign: int) -> None:
        attr = inode.attr
        triple = (attr.uid, attr.gid, inode.project)
        sums = found.get(triple)
        if sums is None:
            found[triple] = [sign * attr.blocks << 9, sign]
        else:
            sums[0] += sign * attr.blocks << 9
            sums[1] += sign

    for inode in made:
        add(inode, 1)
    for inode in gone:
        add(inode, -1)
    for before, after in edited:
        old, new = before.attr, after.attr
        if old.blocks != new.blocks or old.uid != new.uid or old.gid != new.gid or before.project != after.project:
            add(before, -1)
            add(after, 1)
    return found


class Accounts:
    """Usage and quotas of one MDT. Only `flush.publish` and `load` change them."""

    def __init__(self) -> None:
        self.used: dict[Account, list[int]] = {}
        """[bytes, inodes] by account."""
        self.recorded: set[Triple] = set()
        """Whose rows of `schema.usage` are there."""
        self.quotas: dict[Account, Quota] = {}
        self.inodes = 0
        """Of all together."""
        self.version = 1
        """Grows when limits change."""
        self._allowed: dict[Account, dict[int, tuple[int, int]]] = {}
        """What clients may add that they have not reported: bytes and until when (ns), by session."""

    def load(self, store: Store) -> None:
        """Read from SQL what is committed."""
        self.used, self.recorded, self.inodes = {}, set(), 0
        self.quotas = {(row[0], row[1]): Quota(*row) for row in store.fetchall(store.statements.quotas)}
        for uid, gid, project, used_bytes, inodes in store.fetchall(store.statements.usage):
            self.add((uid, gid, project), used_bytes, inodes)

    def add(self, triple: Triple, used_bytes: int, inodes: int) -> None:
        """This is used in addition."""
        self.recorded.add(triple)
        self.inodes += inodes
        for account in accounts_of(triple):
            sums = self.used.get(account)
            if sums is None:
                self.used[account] = [used_bytes, inodes]
            else:
                sums[0] += used_bytes
                sums[1] += inodes

    def use_of(self, account: Account) -> Used:
        """What an account uses."""
        sums = self.used.get(account)
        return NOTHING if sums is None else Used(*sums)

    def crossings(self, added: Mapping[Triple, list[int]], now_ns: int) -> dict[Account, Quota]:
        """The quotas whose grace terms begin or end by what a batch adds."""
        found: dict[Account, Quota] = {}
        touched = {account for triple in added for account in accounts_of(triple) if account in self.quotas}
        for account in touched:
            used_bytes, inodes = self.use_of(account)
            for triple, (more_bytes, more_inodes) in added.items():
                if account in accounts_of(triple):
                    used_bytes += more_bytes
                    inodes += more_inodes
            quota = self.quotas[account]
            now = with_grace(quota, used_bytes, inodes, now_ns)
            if now != quota:
                found[account] = now
        return found

    def apply(self, added: Mapping[Triple, list[int]], quotas: Mapping[Account, Quota | None]) -> None:
        """A batch is durable."""
        for triple, (used_bytes, inodes) in added.items():
            self.add(triple, used_bytes, inodes)
        for account, quota in quotas.items():
            if quota is None:
                self.quotas.pop(account, None)
            else:
                self.quotas[account] = quota

    def refusal(
        self, triple: Triple, more_bytes: int, more_inodes: int, charged: Mapping[Account, list[int]], now_ns: int
    ) -> str:
        """Why somebody may not use so much more, in words; empty if he may. `charged` is what is on its way."""
        for account in accounts_of(triple):
            quota = self.quotas.get(account)
            if quota is None:
                continue
            used_bytes, inodes = self.use_of(account)
            if account in charged:
                used_bytes += charged[account][0]
                inodes += charged[account][1]
            if more_bytes > 0:
                limit = bytes_limit(quota, now_ns)
                if limit is not None and used_bytes + more_bytes > limit:
                    return f"{words_of(account)} uses {used_bytes} of {limit} bytes: its quota is full"
            if more_inodes > 0:
                limit = inodes_limit(quota, now_ns)
                if limit is not None and inodes + more_inodes > limit:
                    return f"{words_of(account)} has {inodes} of {limit} files: its quota is full"
        return ""

    def is_limited(self, triple: Triple) -> bool:
        """Whether anybody limits the bytes of this owner's files."""
        quotas = [self.quotas.get(account) for account in accounts_of(triple)]
        return any(quota is not None and (quota.soft_bytes or quota.hard_bytes) for quota in quotas)

    def allow(self, triple: Triple, charged: Mapping[Account, list[int]], session: int, now_ns: int) -> int:
        """How many bytes a session may add to this owner's files, which are limited, before it reports them."""
        allowed = REPORT_BYTES
        held: list[dict[int, tuple[int, int]]] = []
        for account in accounts_of(triple):
            quota = self.quotas.get(account)
            limit = None if quota is None else bytes_limit(quota, now_ns)
            if limit is None:
                continue
            left = limit - self.use_of(account).bytes
            if account in charged:
                left -= charged[account][0]
            others = self._allowed.setdefault(account, {})
            for other in [other for other, (_, until_ns) in others.items() if until_ns <= now_ns]:
                del others[other]
            writers = len(others.keys() | {session})
            free = left - sum(size for other, (size, _) in others.items() if other != session)
            allowed = max(0, min(allowed, max(free // (4 * max(writers, 2)), min(left, FLOOR_BYTES))))
            held.append(others)
        for others in held:
            # The client may still use what it was allowed for another file of this owner.
            before = others.get(session, (0, 0))[0]
            others[session] = max(allowed, before), now_ns + ALLOWED_S * 1_000_000_000
        return allowed

    def room(self, project: int, now_ns: int) -> tuple[Quota, Used] | None:
        """A project's quota and use, if it has one."""
        quota = self.quotas.get((2, project)) if project else None
        return None if quota is None else (quota, self.use_of((2, project)))

    def info(self, account: Account) -> QuotaInfo:
        """What an account uses and may use."""
        used = self.use_of(account)
        quota = self.quotas.get(account)
        kind = QuotaKind(account[0])
        if quota is None:
            return QuotaInfo(kind, account[1], used.bytes, used.inodes, UNLIMITED)
        limits = QuotaLimits(*quota[2:8])
        return QuotaInfo(kind, account[1], used.bytes, used.inodes, limits, quota.bytes_until_ns, quota.inodes_until_ns)


def words_of(account: Account) -> str:
    """An account as people call it."""
    return f"{QuotaKind(account[0]).name.lower()} {account[1]}"


def with_grace(quota: Quota, used_bytes: int, inodes: int, now_ns: int) -> Quota:
    """The quota with its grace terms begun or ended, as this use says."""
    bytes_over = 0 < quota.soft_bytes < used_bytes
    inodes_over = 0 < quota.soft_inodes < inodes
    return quota._replace(
        bytes_until_ns=(quota.bytes_until_ns or now_ns + quota.grace_bytes_s * 1_000_000_000) if bytes_over else 0,
        inodes_until_ns=(quota.inodes_until_ns or now_ns + quota.grace_inodes_s * 1_000_000_000) if inodes_over else 0,
    )


def bytes_limit(quota: Quota, now_ns: int) -> int | None:
    """Where bytes end now: at the soft limit once its grace term is over, else at the hard one; None: nowhere."""
    if quota.bytes_until_ns and now_ns >= quota.bytes_until_ns:
        return quota.soft_bytes
    return quota.hard_bytes or None


def inodes_limit(quota: Quota, now_ns: int) -> int | None:
    """Where inodes end now; None: nowhere."""
    if quota.inodes_until_ns and now_ns >= quota.inodes_until_ns:
        return quota.soft_inodes
    return quota.hard_inodes or None
