"""Files for rules, found by SQL: all of them, in pages, by indexes only. On both engines."""

import itertools
import re
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from nacrefs.common.layout import Layout
from nacrefs.common.wire import Create, Entry, Link, Mkdir, Mode
from nacrefs.mds.hsm.rows import COPIED, RELEASED, HsmRow, hsm_of
from nacrefs.mds.inode import encode_layout
from nacrefs.mds.lifecycle.candidates import Candidate, Stretch, by_age, in_states, in_subtree, on_osts, pages
from nacrefs.mds.lifecycle.indexes import CLASS_BY_CHANGE, CLASS_BY_USE, RULE_INDEXES
from nacrefs.mds.lifecycle.places import class_place
from nacrefs.mds.lifecycle.queries import PAGE, Queries, queries_of
from nacrefs.mds.lifecycle.rules import Since
from tests.mds.world import World

ROOT = 1
STATES = (0, COPIED, RELEASED, COPIED | RELEASED)
FAR_NS = 1 << 62


@pytest.fixture(autouse=True)
def with_indexes(world: World) -> None:
    for name, index in RULE_INDEXES.items():
        world.mdt.store.writer.execute(index.create(name))


def made(entry: Entry) -> int:
    assert entry.node is not None
    return entry.node.attr.fid


def directory(world: World, name: bytes, parent: int = ROOT) -> int:
    return made(world.batched(Mkdir(parent, name, 0o755, 0, 0)))


def file(world: World, name: bytes, parent: int = ROOT, atime_ns: int = 10, mtime_ns: int = 10, flags: int = 2) -> int:
    fid = made(world.batched(Create(parent, name, 0o644, 0, 0, Mode.CLOSED)))
    inode = world.tx.edit(fid)
    inode.attr = replace(inode.attr, atime_ns=atime_ns, mtime_ns=mtime_ns, flags=flags)
    return fid


def found(source: Iterable[list[Candidate]]) -> list[int]:
    """Fids of all that come, and no page longer than it may be."""
    fids: list[int] = []
    for page in source:
        assert len(page) <= 2 * PAGE
        fids += [one.fid for one in page]
    return fids


def test_files_come_in_order_of_their_last_use_or_change_up_to_a_moment(world: World) -> None:
    ages = {
        file(world, b"%d" % number, atime_ns=atime, mtime_ns=mtime): (max(atime, mtime), mtime)
        for number, (atime, mtime) in enumerate(itertools.product((5, 20, 30), (7, 20, 90)))
    }
    world.commit()
    store, queries = world.mdt.store, queries_of(world.mdt.store.backend)
    for until in (0, 7, 20, 30, 100):
        used = found(by_age(store, queries, in_states((0,), Since.ACCESS, until)))
        assert sorted(used) == sorted(fid for fid, (use, _) in ages.items() if use <= until)
        assert [ages[fid][0] for fid in used] == sorted(ages[fid][0] for fid in used)
        changed = found(by_age(store, queries, in_states((0,), Since.MODIFICATION, until)))
        assert sorted(changed) == sorted(fid for fid, (_, change) in ages.items() if change <= until)


@pytest.mark.parametrize("number", [PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 3 * PAGE + 7])
def test_no_file_is_lost_or_doubled_where_pages_meet(world: World, number: int) -> None:
    fids = [file(world, b"%06d" % each, mtime_ns=1000 + each // (2 * PAGE), atime_ns=1) for each in range(number)]
    later = [file(world, b"later%d" % each, mtime_ns=5000, atime_ns=6000 + each) for each in range(5)]
    world.commit()
    store, queries = world.mdt.store, queries_of(world.mdt.store.backend)
    for since in Since:
        assert found(by_age(store, queries, in_states((0,), since, FAR_NS))) == fids + later
    assert sorted(found(in_subtree(store, queries, in_states((0,), Since.ACCESS, FAR_NS), ROOT))) == sorted(
        fids + later
    )


def test_a_file_with_two_names_comes_with_both(world: World) -> None:
    fid = file(world, b"one")
    other = directory(world, b"other")
    world.batched(Link(fid, other, b"two"))
    world.commit()
    store, queries = world.mdt.store, queries_of(world.mdt.store.backend)
    names = [
        (one.parent, one.name) for page in by_age(store, queries, in_states((0,), Since.ACCESS, FAR_NS)) for one in page
    ]
    assert sorted(names) == [(ROOT, b"one"), (other, b"two")]


def test_states_are_told_apart_and_directories_are_not_files(world: World) -> None:
    by_state = {state: file(world, b"%d" % state, flags=2 | state) for state in STATES}
    directory(world, b"directory")
    world.commit()
    store, queries = world.mdt.store, queries_of(world.mdt.store.backend)
    for state, fid in by_state.items():
        scan = in_states((state,), Since.ACCESS, FAR_NS)
        assert found(by_age(store, queries, scan)) == [fid]
        assert found(in_subtree(store, queries, scan, ROOT)) == [fid]
    everything = in_states(tuple(by_state), Since.ACCESS, FAR_NS)
    assert sorted(found(by_age(store, queries, everything))) == sorted(by_state.values())


def test_a_small_subtree_is_gone_through_and_not_all_that_is_old(world: World) -> None:
    for number in range(50):
        file(world, b"%d" % number)
    top = directory(world, b"top")
    deep = directory(world, b"deep", directory(world, b"middle", top))
    inside = [file(world, b"a", top), file(world, b"b", deep), file(world, b"young", deep, mtime_ns=1000)]
    world.commit()
    store, queries = world.mdt.store, queries_of(world.mdt.store.backend)
    scan = in_states((0,), Since.ACCESS, 500)
    assert sorted(found(pages(store, queries, scan, top))) == inside[:2]
    assert len(found(pages(store, queries, scan, ROOT))) == 52
    assert len(found(pages(store, queries, in_states((0,), Since.ACCESS, 5), top))) == 0


def copied(world: World, name: bytes, osts: tuple[int, ...], used_ns: int, archive: int, storage_class: str) -> int:
    """A file with a copy, made as requests make it."""
    fid = file(world, name, atime_ns=used_ns, mtime_ns=5, flags=0)
    inode = world.tx.edit(fid)
    inode.layout = Layout(1 << 20, len(osts), osts)
    row = HsmRow(fid, 9, archive, f"key{fid}", inode.data_version, 10, storage_class=storage_class)
    world.tx.set_hsm(fid, row)
    inode.attr = replace(inode.attr, flags=row.marks(inode))
    return fid


def test_copies_come_by_archive_and_class_when_they_are_old_enough(world: World) -> None:
    classes = ["", "GLACIER", "", "", "GLACIER"]
    fids = [copied(world, b"%d" % at, (0,), 10 * at, 1, name) for at, name in enumerate(classes)]
    other = copied(world, b"other", (0,), 0, 2, "")
    world.commit()
    store, queries = world.mdt.store, queries_of(world.mdt.store.backend)

    def of(archive: int, storage_class: str, until_ns: int, index: str = CLASS_BY_USE) -> list[int]:
        return found(by_age(store, queries, [Stretch(index, class_place(archive, storage_class), until_ns)]))

    assert of(1, "", 25) == [fids[0], fids[2]]
    assert of(1, "", 30) == [fids[0], fids[2], fids[3]]
    assert of(1, "", 5, CLASS_BY_CHANGE) == [fids[0], fids[2], fids[3]]
    assert (of(1, "GLACIER", 10), of(1, "STANDARD", FAR_NS), of(2, "", FAR_NS)) == ([fids[1]], [], [other])
    moved = world.tx.edit(fids[0])  # its copy goes to another class, without a change of the file
    world.tx.set_hsm(fids[0], hsm_of(world.tx, moved)._replace(storage_class="GLACIER"))
    changed = world.tx.edit(fids[2])
    changed.data_version += 1
    world.commit()
    assert of(1, "", FAR_NS) == [fids[3]]
    assert of(1, "GLACIER", FAR_NS) == [fids[0], fids[1], fids[4]]
    below = [Stretch(CLASS_BY_USE, class_place(1, name), 30) for name in ("", "GLACIER")]
    assert sorted(found(in_subtree(store, queries, below, ROOT))) == [fids[0], fids[1], fids[3]]


@pytest.mark.parametrize("width", [1, 2, 5])
def test_files_on_an_ost_come_in_order_of_their_last_use_whatever_others_they_are_on(world: World, width: int) -> None:
    count = 20
    placed: dict[int, tuple[int, ...]] = {}
    for number in range(120):
        osts = tuple(sorted({number % count, *((number * 7 + shift) % count for shift in range(1, width))}))
        placed[copied(world, b"%03d" % number, osts, 1000 + number * 37 % 50, 1, "")] = osts
    here = next(iter(placed))
    world.batched(Link(here, ROOT, b"again"))
    file(world, b"inline", flags=COPIED | 2)
    world.commit()
    store, queries = world.mdt.store, queries_of(world.mdt.store.backend)
    for wanted in ({3}, {0, 19}):
        came = [one for page in on_osts(store, queries, wanted, FAR_NS) for one in page]
        on_them = {fid for fid, osts in placed.items() if wanted & set(osts)}
        assert on_them <= {one.fid for one in came} <= placed.keys()
        assert [one.atime_ns for one in came] == sorted(one.atime_ns for one in came)
        assert len(came) == len({(one.fid, one.name) for one in came})
        if width == 1:
            assert {one.fid for one in came} == on_them
    assert [one.fid for page in on_osts(store, queries, {3}, 1000) for one in page if one.atime_ns > 1000] == []


STATEMENTS = {
    "later": (0, -1, FAR_NS), "same": (0, 5, 0), "count": (0, FAR_NS, 1000), "next_osts": (-1 << 62,),
    "in_directory": (ROOT, b""), "directories": (ROOT, 0), "copies": (0,),
}  # fmt: skip


def many_files(world: World, count: int) -> None:
    """Directories of a hundred files, most of which have a copy, without going through requests."""
    store = world.mdt.store
    layout = encode_layout(Layout(1 << 20, 1, (0,)))
    directories = [
        (fid, 0o040755, 2, 0, 0, 0, 4096, 8, 1, 1, 1, 1, 1, 0, 100, ROOT, None, None, 0, 0)
        for fid in range(1000, 1000 + count // 100)
    ]
    files = [
        (fid, 0o100644, 1, 0, 0, 0, 10, 8, fid, fid, 1, 1, 1, (COPIED if fid % 10 else 0), 0, 0, layout, None, 0, 0)
        for fid in range(100_000, 100_000 + count)
    ]
    names = [(1000 + (row[0] - 100_000) // 100, b"%d" % row[0], row[0]) for row in files]
    names += [(ROOT, b"%d" % row[0], row[0]) for row in directories]
    copies = [
        (row[0], 9, row[0] % 20, f"key{row[0]}", 0, 10, "", 0, b"", b"", "", 1, 0, 0) for row in files if row[0] % 10
    ]
    store.begin()
    with store.pipeline():
        for statement, rows in (
            (store.statements.insert_inode, directories + files),
            (store.statements.insert_dentry, names),
            (store.statements.put_hsm, copies),
        ):
            store.writer.executemany(statement, rows)
    store.writer.execute("UPDATE inode SET copy_class = fid % 20 * 16, copy_osts = fid % 7 WHERE flags & 256 <> 0")
    store.commit()
    if store.backend == "postgresql":
        store.reader.execute("ANALYZE")
        store.reader.execute("SET random_page_cost = 1.1")  # of a disk without arms; tables are small here


def test_no_statement_reads_a_table_from_end_to_end(world: World) -> None:
    many_files(world, 20_000)
    store = world.mdt.store
    queries = Queries(store.backend)
    store.fetchone(store.statements.mdt)  # SQLite explains by the schema that the last statement has seen
    statements: list[tuple[str, str, tuple[int | bytes, ...]]] = []
    for name, parameters in STATEMENTS.items():
        several: str | dict[str, str] = getattr(queries, name)
        for index, statement in several.items() if isinstance(several, dict) else [("", several)]:
            statements.append((f"{name} {index}", statement, parameters))
    assert len(statements) == 3 * len(RULE_INDEXES) + 4
    for name, statement, parameters in statements:
        if store.backend == "sqlite":
            plan = "\n".join(row[3] for row in store.fetchall(f"EXPLAIN QUERY PLAN {statement}", parameters))
            scanned = re.findall(r"SCAN (?!p\b|q\b|d\b)\w+", plan)
        else:
            plan = "\n".join(row[0] for row in store.fetchall(f"EXPLAIN {statement}", parameters))
            scanned = re.findall(r"Seq Scan on \w+", plan)
        assert not scanned, f"{name}:\n{plan}"
        index = name.partition(" ")[2]
        assert index in plan, f"{name}:\n{plan}"
