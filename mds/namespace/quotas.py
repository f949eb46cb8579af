"""Quotas: what a step may still use, limits, and the projects of inodes."""

import errno

from nacrefs.common.wire import Attr, QuotaInfo, SetQuota
from nacrefs.mds.access.accounts import ID_MAX, UNKNOWN, Accounts, Triple, accounts_of, triple_of, with_grace
from nacrefs.mds.inode import Inode
from nacrefs.mds.records import Quota
from nacrefs.mds.transactions.step import Step


def admit_new(step: Step, parent: Inode, uid: int, gid: int, blocks: int = 0) -> None:
    """OSError (EDQUOT) if nobody may make an inode for this owner in the directory; to be asked right before it is
    made."""
    if step.tx.mdt.accounts.quotas:
        _admit(step, (uid, gid, parent.project), blocks << 9, 1)


def admit_growth(step: Step, inode: Inode, blocks: int) -> None:
    """OSError (EDQUOT) if contents of an inode may not grow to so many blocks; to be asked right before they do."""
    if step.tx.mdt.accounts.quotas and blocks > inode.attr.blocks:
        _admit(step, triple_of(inode), (blocks - inode.attr.blocks) << 9, 0)


def note_growth(step: Step, before: Attr, after: Inode) -> None:
    """Bytes that are there already count against those who come later in the same batch."""
    if step.tx.mdt.accounts.quotas and after.attr.blocks > before.blocks:
        _charge(step, triple_of(after), (after.attr.blocks - before.blocks) << 9, 0)


def _admit(step: Step, triple: Triple, more_bytes: int, more_inodes: int) -> None:
    tx = step.tx
    refusal = tx.mdt.accounts.refusal(triple, more_bytes, more_inodes, tx.charged, step.now_ns)
    if refusal:
        raise OSError(errno.EDQUOT, refusal)
    _charge(step, triple, more_bytes, more_inodes)


def _charge(step: Step, triple: Triple, more_bytes: int, more_inodes: int) -> None:
    charged = step.tx.charged
    for account in accounts_of(triple):
        sums = charged.setdefault(account, [0, 0])
        sums[0] += more_bytes
        sums[1] += more_inodes


def allowance(step: Step, inode: Inode, session: int, writes: bool) -> int:
    """`Node.quota`: how much a session may add to a regular file before it reports, if it `writes`."""
    accounts = step.tx.mdt.accounts
    if not accounts.quotas:
        return -1
    triple = triple_of(inode)
    if not accounts.is_limited(triple):
        return -1
    return accounts.allow(triple, step.tx.charged, session, step.now_ns) if writes else UNKNOWN


def check_project(directory: Inode, inode: Inode) -> None:
    """OSError (EXDEV) if an inode of another project would get a name in a project's directory, as on ext4 and XFS:
    whoever moves it copies it then, and the copy belongs to the project."""
    if directory.project and directory.project != inode.project:
        raise OSError(
            errno.EXDEV, f"the directory belongs to project {directory.project}, what moves there to {inode.project}"
        )


def check_id(number: int) -> None:
    """OSError (EINVAL) unless this can be a uid, gid or project."""
    if not 0 <= number <= ID_MAX:
        raise OSError(errno.EINVAL, f"{number} is not an id (0 to {ID_MAX})")


def set_quota(request: SetQuota, step: Step) -> QuotaInfo:
    """Give an owner limits, or none."""
    check_id(request.id)
    limits = request.limits
    numbers = (limits.soft_bytes, limits.hard_bytes, limits.soft_inodes, limits.hard_inodes)
    graces = (limits.grace_bytes_s, limits.grace_inodes_s)
    if any(not 0 <= number < 1 << 62 for number in numbers):
        raise OSError(errno.EINVAL, "a limit is not in 0..2^62-1")
    if any(not 0 <= grace < 1 << 32 for grace in graces):
        raise OSError(errno.EINVAL, "a grace term is not in 0..2^32-1 seconds")
    for soft, hard in (numbers[:2], numbers[2:]):
        if hard and soft > hard:
            raise OSError(errno.EINVAL, f"the soft limit {soft} is above the hard limit {hard}")
    if request.kind == 2 and not request.id:
        raise OSError(errno.EINVAL, "project 0 stands for no project and has no quota")
    accounts: Accounts = step.tx.mdt.accounts
    account = (int(request.kind), request.id)
    if not any(numbers):
        step.tx.set_quota(account, None)
        return QuotaInfo(request.kind, request.id, *accounts.use_of(account), limits)
    quota = with_grace(Quota(*account, *numbers, *graces), *accounts.use_of(account), step.now_ns)
    step.tx.set_quota(account, quota)
    used = accounts.use_of(account)
    return QuotaInfo(request.kind, request.id, *used, limits, quota.bytes_until_ns, quota.inodes_until_ns)
