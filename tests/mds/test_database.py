"""Making, opening and migrating an MDT's database."""

import errno
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SAWarning
from sqlalchemy.pool import NullPool

from nacrefs.common.fid import COUNTER_BITS, FIRST_FREE, ROOT, make_fid
from nacrefs.common.layout import Layout
from nacrefs.common.wire import Create, GetAttr, Mkdir, Mode
from nacrefs.mds.check import tree_findings
from nacrefs.mds.database import MIGRATIONS, format_mdt, open_store
from nacrefs.mds.engine import NotTheOwner, Store, parse_url
from nacrefs.mds.inode import encode_layout
from nacrefs.mds.lifecycle.places import class_place
from nacrefs.mds.mdt import Mdt
from nacrefs.mds.schema import metadata
from nacrefs.mds.transactions.cache import Cache
from nacrefs.mds.transactions.flush import discard, flush
from nacrefs.mds.transactions.tx import FID_RANGE, Tx
from tests.mds.actions import directory, failing, file
from tests.mds.world import World
from tests.mdt import make_mdt


def alchemy_url(url: str) -> str:
    """The URL with the driver that the MDS uses."""
    return url.replace("postgresql://", "postgresql+psycopg://")


class TestFormat:
    def test_makes_the_tables_of_the_schema(self, empty_url: str) -> None:
        format_mdt(empty_url, "test", 0, 1)
        engine = create_engine(alchemy_url(empty_url), poolclass=NullPool)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SAWarning)
                warnings.simplefilter("ignore", UserWarning)
                differences = compare_metadata(context, metadata)
        assert differences == []

    def test_makes_the_root_of_mdt_0_only(self, empty_url: str) -> None:
        format_mdt(empty_url, "test", 3, 1)
        store = open_store(empty_url)
        mdt = Mdt(store, Cache())
        assert (mdt.files, mdt.number, mdt.cluster) == (0, 3, "test")
        tx = Tx(mdt)
        assert tx.new_inode(0o100644, 0, 0, 1).attr.fid == make_fid(3, FIRST_FREE)
        store.close()

    def test_never_overwrites(self, empty_url: str) -> None:
        format_mdt(empty_url, "test", 0, 1)
        with failing(errno.EEXIST):
            format_mdt(empty_url, "test", 0, 1)

    @pytest.mark.parametrize("number", [-1, 1 << 15])
    def test_mdt_number_must_fit(self, tmp_path: Path, number: int) -> None:
        with pytest.raises(ValueError, match="MDT number"):
            format_mdt(str(tmp_path / "db"), "test", number, 1)

    def test_directory_must_exist(self, tmp_path: Path) -> None:
        with failing(errno.ENOENT):
            format_mdt(str(tmp_path / "none" / "db"), "test", 0, 1)


class TestOpen:
    def test_unformatted_database_says_what_to_do(self, empty_url: str, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="nacre mds format"):
            open_store(empty_url)
        with pytest.raises(OSError, match="nacre mds format"):
            open_store(str(tmp_path / "none.db"))
        assert not (tmp_path / "none.db").exists()

    def test_newer_schema_says_what_to_do(self, empty_url: str) -> None:
        format_mdt(empty_url, "test", 0, 1)
        engine = create_engine(alchemy_url(empty_url), poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(OSError, match=r"newer than this nacrefs.*serve it with") as caught:
            open_store(empty_url)
        assert "\n" not in str(caught.value)
        assert caught.value.errno == errno.EPROTONOSUPPORT

    def test_foreign_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "db"
        path.write_bytes(b"this is no database " * 1000)
        with pytest.raises(OSError, match="not a database"):
            open_store(str(path))
        assert path.read_bytes() == b"this is no database " * 1000

    def test_second_server_is_refused(self, empty_url: str) -> None:
        format_mdt(empty_url, "test", 0, 1)
        store = open_store(empty_url)
        try:
            with pytest.raises(NotTheOwner, match="another MDS is serving this MDT") as caught:
                open_store(empty_url)
            assert caught.value.errno == errno.EBUSY
        finally:
            store.close()
        open_store(empty_url).close()

    def test_owner_that_was_killed_leaves_no_lock(self, tmp_path: Path) -> None:
        path = str(tmp_path / "db")
        format_mdt(path, "test", 0, 1)
        program = (
            "import os, sys; from nacrefs.mds.database import open_store; s = open_store(sys.argv[1]); os._exit(9)"
        )
        assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == 9
        open_store(path).close()

    def test_unreachable_server(self) -> None:
        with pytest.raises(OSError, match="cannot reach the MDT database") as caught:
            open_store("postgresql://nobody:secret@127.0.0.1:1/none")
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "postgresql://", "://"])
    def test_bad_urls_are_named(self, url: str) -> None:
        with pytest.raises(ValueError, match="database URL"):
            parse_url(url)

    def test_an_older_schema_learns_where_copies_are(self, empty_url: str) -> None:
        engine = create_engine(alchemy_url(empty_url), poolclass=NullPool)
        with engine.connect() as connection:
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS))
            config.attributes["connection"] = connection
            command.upgrade(config, "0008")
            connection.execute(text("INSERT INTO mdt VALUES (1, 'test', 0, 100, 1, 0)"))
            names = "fid mode nlink uid gid rdev size blocks atime_ns mtime_ns ctime_ns btime_ns change flags entries"
            columns = f"{names} parent layout project data_version".split()
            zeros = dict.fromkeys(columns, 0)
            insert = text(f"INSERT INTO inode ({', '.join(columns)}) VALUES (:{', :'.join(columns)})")
            for fid, osts, archived in ((20, (5,), True), (21, (0, 3), True), (22, (1,), False)):
                layout = encode_layout(Layout(1 << 20, len(osts), osts))
                flags = 0x140 if archived else 0
                connection.execute(insert, {**zeros, "fid": fid, "mode": 0o100644, "layout": layout, "flags": flags})
                if archived:
                    connection.execute(
                        text("INSERT INTO hsm VALUES (:fid, 9, 2, 'k', 0, 0, '', 0, :none, :none, 'GLACIER', 1, 0, 0)"),
                        {"fid": fid, "none": b""},
                    )
            connection.commit()
        store = open_store(empty_url)
        try:
            rows = store.fetchall("SELECT fid, copy_osts, copy_class FROM inode ORDER BY fid")
            glacier = class_place(2, "GLACIER")
            assert rows == [(20, -6, glacier), (21, 0b1001, glacier), (22, 0, 0)]
            assert [one.kind for one in tree_findings(store) if one.kind == "copy-place"] == []
        finally:
            store.close()


class TestTransactions:
    def test_a_server_that_was_replaced_cannot_commit(self, world: World) -> None:
        world.mdt.store.epoch -= 1  # as if another had taken over since
        world.batched(Mkdir(ROOT, b"d", 0o755, 0, 0))
        with pytest.raises(NotTheOwner, match="taken over") as caught:
            flush(world.tx)
        assert caught.value.errno == errno.ESTALE
        world.abandon()
        world.mdt.store.epoch += 1
        assert world.findings() == []

    def test_a_batch_that_is_discarded_after_the_flush_never_was(self, world: World) -> None:
        fid = directory(world)
        world.batched(Mkdir(fid, b"a", 0o755, 0, 0))
        flush(world.tx)
        world.abandon()
        assert world.do(GetAttr(fid)).attr.nlink == 2
        assert (world.findings(), world.mdt.files) == ([], 2)

    def test_after_a_commit_of_unknown_end_memory_is_what_sql_says(self, world: World) -> None:
        node = world.batched(Create(ROOT, b"a", 0o644, 0, 0, Mode.WRITE)).node
        assert node is not None
        world.tx.set_open(1, node.attr.fid, Mode.WRITE)
        flush(world.tx)
        world.mdt.store.commit()  # and its answer was lost
        discard(world.tx, unknown=True)
        world.tx = Tx(world.mdt)
        assert world.do(GetAttr(node.attr.fid)).attr == node.attr
        assert (world.mdt.files, world.mdt.opens) == (2, {node.attr.fid: {1: Mode.WRITE}})

    def test_reader_sees_committed_state_while_a_transaction_is_open(self, world: World) -> None:
        world.batched(Mkdir(ROOT, b"d", 0o755, 0, 0))
        flush(world.tx)
        assert world.mdt.store.fetchall("SELECT name FROM dentry") == []
        world.mdt.store.commit()
        assert world.mdt.store.fetchall("SELECT name FROM dentry") == [(b"d",)]

    def test_engine_errors_are_oserrors(self, world: World) -> None:
        with failing(errno.EIO):
            world.mdt.store.fetchall("SELECT nothing FROM nowhere")
        world.tx.store_reply(1, 1, b"")
        world.commit()
        world.tx.store_reply(1, 1, b"")  # the same again, which the journal never does
        with failing(errno.EIO):
            world.commit()
        world.abandon()
        assert world.do(GetAttr(ROOT)).attr.fid == ROOT

    def test_full_database_is_enospc_and_goes_on_when_there_is_room(self, tmp_path: Path) -> None:
        world = World(str(tmp_path / "db"))
        writer = world.mdt.store.writer
        writer.execute("PRAGMA page_count")
        writer.execute(f"PRAGMA max_page_count = {writer.fetchone()[0] + 2}")
        with failing(errno.ENOSPC):
            for number in range(100):
                world.do(Create(ROOT, b"%d" % number, 0o644, 0, 0, Mode.CLOSED, data=bytes(16384)))
        world.abandon()
        writer.execute("PRAGMA max_page_count = 100000")
        file(world, b"fits", data=bytes(16384))
        assert world.findings() == []
        world.close()


class TestFids:
    def test_are_never_given_out_twice(self, world: World) -> None:
        seen: set[int] = set()
        for ending in (world.commit, world.abandon, world.reopen, world.abandon, world.commit):
            for _ in range(3):
                fid = world.tx.new_inode(0o100644, 0, 0, 1, nlink=0).attr.fid
                assert fid not in seen
                seen.add(fid)
            if ending != world.commit:
                seen.clear() if ending == world.reopen else None
            ending()

    def test_a_new_range_is_reserved_in_sql_before_it_is_used(self, world: World) -> None:
        fids = [world.tx.new_inode(0o100644, 0, 0, 1).attr.fid for _ in range(FID_RANGE + 10)]
        world.commit()
        assert fids[-1] & ((1 << COUNTER_BITS) - 1) < world.mdt.counter_limit
        row = world.mdt.store.fetchone(world.mdt.store.statements.mdt)
        assert row is not None
        assert row[2] == world.mdt.counter_limit


@pytest.mark.parametrize("statement", ["lookup", "listing", "names", "orphans"])
def test_hot_statements_search_an_index(mdt_url: str, statement: str) -> None:
    make_mdt(mdt_url, "test")
    store = open_store(mdt_url)
    try:
        assert "scan" not in plan(store, statement).lower()
    finally:
        store.close()


def plan(store: Store, statement: str) -> str:
    """The engine's plan for a statement, on a table large enough to make scanning it unwise."""
    parameters = {"lookup": (1, b"a"), "listing": (1, b"a", 10), "names": (1,), "orphans": ()}[statement]
    if store.backend == "sqlite":
        rows = store.fetchall("EXPLAIN QUERY PLAN " + getattr(store.statements, statement), parameters)
        return "\n".join(row[3] for row in rows if not row[3].startswith("SCAN inode USING INDEX inode_orphan"))
    for method in ("seqscan", "bitmapscan", "sort"):
        store.reader.execute(f"SET enable_{method} = off")
    rows = store.fetchall("EXPLAIN " + getattr(store.statements, statement), parameters)
    return "\n".join(row[0] for row in rows if "Index Scan" not in row[0] and "Index Only Scan" not in row[0])
