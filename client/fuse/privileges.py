"""Which of setuid and setgid end when a user changes a file: what the kernel decides for local filesystems.

The kernel says that they must go, not which: setgid of a file that its group may not execute goes only if the caller is
not in that group (`setattr_should_drop_sgid` in `fs/attr.c`), and of the caller's groups we are told one.
"""

import stat

from nacrefs.common.wire import Attr, Set


def privileges_to_kill(attr: Attr, uid: int, gid: int, pid: int) -> Set:
    """What `SetAttr` is to be asked for after a change by this caller."""
    if attr.mode & stat.S_ISGID and not attr.mode & stat.S_IXGRP and uid and not _in_group(attr.gid, gid, pid):
        return Set.KILL_PRIVILEGES | Set.KILL_SETGID
    return Set.KILL_PRIVILEGES


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
