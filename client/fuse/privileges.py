"""Which of setuid and setgid end when a user changes a file: what the kernel decides for local filesystems.

The kernel says that they must go, not which: setgid of a file that its group may not execute goes only if the caller is
not in that group (`setattr_should_drop_sgid` in `fs/attr.c`), and of the caller's groups we are told one.
"""

import os
import stat
from typing import Final

from nacrefs.common.wire import Attr, Set


def privileges_to_kill(attr: Attr, uid: int, gid: int, pid: int) -> Set:
    """What `SetAttr` is to be asked for after a change by this caller."""
    if attr.mode & stat.S_ISGID and not attr.mode & stat.S_IXGRP and uid and not _in_group(attr.gid, gid, pid):
        return Set.KILL_PRIVILEGES | Set.KILL_SETGID
    return Set.KILL_PRIVILEGES


def ends_privileges(attr: Attr, kill: Set) -> bool:
    """Whether `kill` takes a bit away. A directory keeps both."""
    if stat.S_ISDIR(attr.mode):
        return False
    group = stat.S_ISGID if kill & Set.KILL_SETGID or attr.mode & stat.S_IXGRP else 0
    return bool(attr.mode & (stat.S_ISUID | group))


def _in_group(group: int, gid: int, pid: int) -> bool:
    """Whether a process with that effective group is in a group; a process that is gone is not."""
    if gid == group:
        return True
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("Groups:"):
                    return str(group) in line.split()[1:]
    except OSError:
        pass
    return False


def changes_owner(pid: int) -> bool | None:
    """Whether a thread, which waits in the kernel for our answer, is in chown(2) or one of its kin; None if it is not
    waiting yet."""
    try:
        with open(f"/proc/{pid}/syscall") as now:
            call = now.read().split()[0]
    except (OSError, IndexError):
        return False
    if call == "running":
        return None
    return call in _CHOWNS


_CHOWNS: Final = {"x86_64": frozenset(("92", "93", "94", "260")), "aarch64": frozenset(("54", "55"))}.get(
    os.uname().machine, frozenset()
)
"""Numbers of chown, fchown, lchown and fchownat."""
