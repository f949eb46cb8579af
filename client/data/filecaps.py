"""File capabilities (capabilities(7)) of a file that several mounts write: they end before it is written.

Who writes under a lease reports that, and the MDS takes them away then. Without a lease they are taken away by whoever
writes next, which costs a question only if the file may have any: the MDS recalls its writers when it is given some.
"""

from nacrefs.client.data.file import File
from nacrefs.client.data.store import Store
from nacrefs.common.wire import CAPABILITIES, AttrFlag, GetXattrs, Set, SetAttr

_XATTRS = int(AttrFlag.XATTRS)


def may_have_capabilities(file: File) -> bool:
    """Whether a shared file may have capabilities, for all that is known."""
    inode = file.inode
    if file.plain == inode.recalls:
        return False
    return inode.asked != inode.recalls or inode.attr is None or inode.attr.flags & _XATTRS != 0


async def end_capabilities(store: Store, file: File) -> None:
    """Take them away if there are any."""
    if not may_have_capabilities(file):
        return
    inode, mds = file.inode, store.session.mds
    recalls = inode.recalls
    if any(name == CAPABILITIES for name, _ in (await mds.call(GetXattrs(inode.fid))).items):
        await mds.call(SetAttr(inode.fid, Set.KILL_CAPABILITIES))
    file.plain = recalls
