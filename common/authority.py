"""Which request needs which right: the one table (docs/security.md explains it to administrators).

Three roles, each of which may do what the ones before may: a client's key, an administrator's, a server's (whoever has
that can sign capabilities, so that nothing could be kept from him). What is not in the table is refused to everybody;
`tests/common/test_authority.py` finds it first.

A client's key may be limited to a part of the tree, to reading, or to some users (`common.export`). The second column
says what its requests then are about; the MDS looks at those about FILES one by one (`mds/access/exports.py`).
"""

import enum
import errno
from collections.abc import Mapping
from typing import Any, Final

from nacrefs.common import wire
from nacrefs.common.rpc import Call, Service
from nacrefs.common.wire import Request, Role


class Scope(enum.Enum):
    """What a request is about."""

    OWN = "the sender's own session, or nothing that anybody could hide"
    FILES = "files that it names by fid, or in a directory that it names by fid"
    WHOLE = "the filesystem as a whole: refused to a key that is limited"


OWN: Final = Scope.OWN
FILES: Final = Scope.FILES
WHOLE: Final = Scope.WHOLE

OF_CLIENTS: Final[Mapping[type[Request[Any]], Scope]] = {
    wire.Attach: OWN, wire.Keepalive: OWN, wire.Detach: OWN, wire.Reclaim: OWN, wire.Yield: OWN, wire.GetOsts: OWN,
    wire.As: OWN, wire.Access: FILES,
    wire.Lookup: FILES, wire.GetAttr: FILES, wire.SetAttr: FILES, wire.Create: FILES, wire.Mknod: FILES,
    wire.Mkdir: FILES, wire.Symlink: FILES, wire.Link: FILES, wire.Unlink: FILES, wire.Rmdir: FILES,
    wire.Rename: FILES, wire.Open: FILES, wire.Commit: FILES, wire.Readdir: FILES, wire.GetParent: FILES,
    wire.GetXattrs: FILES, wire.SetXattr: FILES, wire.RemoveXattr: FILES, wire.GetXattr: FILES,
    wire.Statfs: FILES, wire.GetLayout: FILES, wire.SetLayout: FILES, wire.OpenDirect: FILES,
    wire.Append: FILES, wire.Appended: FILES, wire.SetLock: FILES, wire.GetLock: FILES, wire.CancelLock: OWN,
    wire.CopiesFailed: FILES, wire.ListCopies: WHOLE, wire.Resync: WHOLE,
    wire.Restore: FILES, wire.GetHsm: FILES, wire.HsmRequest: FILES, wire.HsmCancel: FILES, wire.SetHsm: FILES,
    wire.AskLifecycle: WHOLE, wire.GetArchives: WHOLE, wire.GetLinks: WHOLE, wire.GetLinkLog: WHOLE,
    wire.GetWarmups: WHOLE,
    wire.AddWarmup: WHOLE, wire.CancelWarmup: WHOLE,
    wire.Inspect: WHOLE, wire.GetQuota: WHOLE, wire.ListQuotas: WHOLE,
    # To an OSS: a capability, which every one of these brings along, says what may be done.
    wire.Read: OWN, wire.Write: OWN, wire.Punch: OWN, wire.Truncate: OWN, wire.StatObject: OWN, wire.Sync: OWN,
    wire.ReadSums: OWN, wire.Seek: OWN, wire.CopyRange: OWN,
    # From the MDS to its clients.
    wire.Recall: OWN, wire.Evicted: OWN,
}  # fmt: skip
"""What every key may ask."""

OF_ADMINISTRATORS: Final[frozenset[type[Request[Any]]]] = frozenset({
    wire.Scrub, wire.VerifyFile,
    wire.SetPool, wire.SetQuota, wire.SetProject, wire.CheckQuota, wire.SetArchive, wire.ProbeArchive,
    wire.ImportArchive, wire.SaveCatalogue, wire.Fsck, wire.WatchFsck, wire.SetLink, wire.RemoveLink, wire.OrderLink,
    wire.SetLifecycle, wire.RemoveRule, wire.SetRuleState, wire.RunRule,
})  # fmt: skip
"""What an administrator's key may ask besides."""

OF_SERVERS: Final[frozenset[type[Request[Any]]]] = frozenset({
    wire.ScrubOst, wire.VerifyObject,
    wire.Register, wire.Heartbeat, wire.JoinMirrors, wire.ReportDamage,
    # From the MDS to OSSes, over the connections that these have made to it.
    wire.Destroy, wire.Glimpse, wire.TruncateObjects, wire.Fence, wire.RaiseFloors, wire.SyncObject,
    wire.ListObjects, wire.ProbeObjects, wire.MoveMany, wire.MoveRead,
    wire.MovePut, wire.MoveBegin, wire.MovePart, wire.MoveComplete, wire.MoveAbort, wire.MoveGet, wire.MoveSync,
    wire.MoveDelete, wire.MoveList, wire.MoveProbe, wire.MoveHead, wire.MoveThaw, wire.MoveStop, wire.MoveClass,
})  # fmt: skip
"""What only a server's key may ask."""


def may(role: Role, kind: type[Request[Any]]) -> bool:
    """Whether a peer in this role may ask this at all."""
    if kind in OF_CLIENTS:
        return True
    if kind in OF_ADMINISTRATORS:
        return role is not Role.CLIENT
    return kind in OF_SERVERS and role is Role.SERVER


def allowed(service: Service, role: Role) -> Service:
    """A service as a peer in this role has it: what it may not ask is answered with EACCES."""
    return {kind: handler if may(role, kind) else _refusal(kind) for kind, handler in service.items()}


def _refusal(kind: type[Request[Any]]) -> Any:
    whose, hint = "a server's", ""
    if kind in OF_ADMINISTRATORS:
        whose, hint = "an administrator's", ": --keyring names a file with one"

    def refuse(request: Request[Any], call: Call) -> Any:
        raise OSError(errno.EACCES, f"{kind.__name__} needs {whose} key{hint}")

    return refuse
