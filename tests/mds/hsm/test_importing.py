"""What an import makes of objects. (With catalogues and real archives: tests/cluster.)"""

import stat

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import ArchiveSpec, ImportArchive, Lookup, SetArchive
from tests.mds.served import Served


async def test_symbolic_link_in_a_bucket_is_one_in_the_tree(served: Served) -> None:
    client, shelf = await served.client(), served.first.shelf
    for key, body in (("link", b"../target"), ("strange", b"nul\0")):
        shelf.add(key, len(body), meta=(("file-permissions", "0120777"), ("file-mtime", "5ns")))
        shelf.data[key] = body
    shelf.add("plain", 9, meta=(("file-permissions", "0100640"),))
    await client.call(SetArchive(ArchiveSpec(0, "cold", "dir", "file:///cold")))
    done = await client.call(ImportArchive("cold", ROOT))
    assert (done.made, done.problems) == (3, ())
    kinds: dict[bytes, int] = {}
    for name in (b"link", b"strange", b"plain"):
        node = (await client.call(Lookup(ROOT, name))).node
        assert node is not None
        kinds[name] = stat.S_IFMT(node.attr.mode)
        if name == b"link":
            inode = served.mds.journal.reading.need(node.attr.fid)
            assert (served.mds.journal.reading.data(inode), inode.attr.mtime_ns) == (b"../target", 5)
    assert kinds == {b"link": stat.S_IFLNK, b"strange": stat.S_IFREG, b"plain": stat.S_IFREG}
    assert (await client.call(ImportArchive("cold", ROOT))).made == 0
