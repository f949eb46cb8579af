"""What an import makes of objects and catalogues. (With real archives: tests/cluster.)"""

import gzip
import stat

import msgspec
import pytest

from nacrefs.common.fid import ROOT
from nacrefs.common.wire import (
    ArchiveSpec,
    Commit,
    HsmAction,
    HsmFlag,
    ImportArchive,
    Lease,
    Lookup,
    Mode,
    Reclaim,
    Rename,
    SetArchive,
)
from nacrefs.mds.hsm.catalogue import CURRENT, Copy, Current, Record, part_key
from nacrefs.mds.hsm.queue import Action
from nacrefs.mds.hsm.rows import STARTED, ActionRow, HsmRow
from nacrefs.mds.hsm.steps import put_hsm
from nacrefs.mds.transactions.step import Step
from tests.mds.served import Client, Served


@pytest.fixture
async def client(served: Served) -> Client:
    one = await served.client()
    await one.call(SetArchive(ArchiveSpec(0, "cold", "dir", "file:///cold")))
    return one


async def test_symbolic_link_in_a_bucket_is_one_in_the_tree(served: Served, client: Client) -> None:
    shelf = served.first.shelf
    for key, body in (("link", b"../target"), ("strange", b"nul\0")):
        shelf.add(key, len(body), meta=(("file-permissions", "0120777"), ("file-mtime", "5ns")))
        shelf.data[key] = body
    shelf.add("plain", 9, meta=(("file-permissions", "0100640"),))
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


def catalogued(served: Served, *parts: list[Record]) -> None:
    """A catalogue in the archive, and the objects that it names."""
    shelf, encode = served.first.shelf, msgspec.json.encode
    put = {CURRENT: encode(Current("1", len(parts), 0, sum(map(len, parts)), 0))}
    for number, records in enumerate(parts):
        put[part_key("1", number)] = gzip.compress(b"\n".join(map(encode, records)))
        for record in records:
            if record.copy is not None:
                shelf.add(record.copy.key, record.size, record.copy.etag)
    for key, data in put.items():
        shelf.add(key, len(data))
        shelf.data[key] = data


async def imported(client: Client, pages: int = 100) -> int:
    """Import so many pages; the number of names that were made."""
    after, made = "", 0
    for _ in range(pages):
        done = await client.call(ImportArchive("cold", ROOT, "", after))
        assert done.problems == ()
        after, made = done.after, made + done.made
        if not after:
            break
    return made


async def names(client: Client) -> dict[bytes, int]:
    """The number of names of each file that is there."""
    found: dict[bytes, int] = {}
    for name in (b"one", b"two", b"moved", b"pipe", b"pipe 2"):
        node = (await client.call(Lookup(ROOT, name))).node
        if node is not None:
            found[name] = node.attr.nlink
    return found


async def test_names_of_one_file_come_together_and_do_not_come_again(served: Served, client: Client) -> None:
    file = Record("one", 77, 0o100644, 2, 0, 0, 8, 1, 2, 3, copy=Copy("one~4d", 1, 8))
    pipe = Record("pipe", 78, 0o010644, 2, 0, 0, 0, 1, 2, 3)
    replace = msgspec.structs.replace
    catalogued(served, [file, pipe], [replace(file, path="two"), replace(pipe, path="pipe 2")])
    await imported(client, pages=1)  # and then the MDS was killed
    for name in (b"one", b"pipe"):
        if name in await names(client):
            await client.call(Rename(ROOT, name, ROOT, b"moved"))
    client.reclaims = [Reclaim(())]
    await served.restart()
    await imported(client)
    assert await names(client) == {b"one": 2, b"two": 2, b"pipe": 2, b"pipe 2": 2}
    await client.call(Rename(ROOT, b"two", ROOT, b"moved"))
    assert await imported(client) == 0
    assert await names(client) == {b"one": 2, b"moved": 2, b"pipe": 2, b"pipe 2": 2}


async def test_names_that_are_not_wanted_are_not_waited_for(served: Served, client: Client) -> None:
    file = Record("one", 77, 0o100644, 2, 0, 0, 8, 1, 2, 3, copy=Copy("x~4d", 1, 8))
    catalogued(served, [file, msgspec.structs.replace(file, path="two")])
    assert (await client.call(ImportArchive("cold", ROOT, "one"))).made == 1
    assert await names(client) == {b"one": 1}


@pytest.mark.parametrize("known", [True, False], ids=["archived", "being archived"])
async def test_file_that_is_archived_while_an_import_runs_has_no_double(
    served: Served, client: Client, known: bool
) -> None:
    shelf, node = served.first.shelf, (await client.create(b"f")).node
    assert node is not None
    fid = node.attr.fid
    await client.call(Commit(fid, Lease.NONE, Mode.CLOSED, True, 8, 5, 8, b"contents"))
    await client.call(Rename(ROOT, b"f", ROOT, b"moved"))
    key = f"f~{fid:x}"
    shelf.add(key, 8, meta=(("nacre-fid", f"{fid:x}"),))
    shelf.may_answer.clear()
    done = client.call(ImportArchive("cold", ROOT))
    await shelf.listed.wait()

    def archived(step: Step) -> None:
        inode = step.tx.need(fid)
        put_hsm(step, inode, HsmRow(fid, int(HsmFlag.EXISTS | HsmFlag.ARCHIVED), 1, key, inode.data_version, 8))

    if known:
        await served.mds.journal.submit_own(archived)
    else:
        row = ActionRow(1, fid, int(HsmAction.ARCHIVE), 1, 0, "", STARTED, 1, 0, 0, 0, key=key)
        served.mds.hsm.active[fid] = Action(row)
    shelf.may_answer.set()
    assert (await done).made == 0
    served.mds.hsm.active.clear()
