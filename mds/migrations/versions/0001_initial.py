"""The first schema. What the columns mean stands in `nacrefs.mds.schema`; this is how it was at the time."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _integer(name: str, primary_key: bool = False) -> "sa.Column[int]":
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, primary_key=primary_key, nullable=False, autoincrement=False)


def _text(name: str, primary_key: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, primary_key=primary_key, nullable=False)


def _blob(name: str, primary_key: bool = False, nullable: bool = False) -> "sa.Column[bytes]":
    return sa.Column(name, sa.LargeBinary, primary_key=primary_key, nullable=nullable)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "mdt",
        _integer("id", primary_key=True),
        _text("cluster"),
        *(_integer(name) for name in ("number", "next_counter", "next_session", "files", "epoch")),
    )
    op.create_table(
        "inode",
        _integer("fid", primary_key=True),
        *(_integer(name) for name in ("mode", "nlink", "uid", "gid", "rdev", "size", "blocks")),
        *(_integer(name) for name in ("atime_ns", "mtime_ns", "ctime_ns", "btime_ns", "change", "flags")),
        *(_integer(name) for name in ("entries", "parent")),
        _blob("layout", nullable=True),
        _blob("spec", nullable=True),
        *(_integer(name) for name in ("project", "data_version")),
    )
    op.create_index(
        "inode_orphan",
        "inode",
        ["fid"],
        sqlite_where=sa.text("nlink = 0"),
        postgresql_where=sa.text("nlink = 0"),
    )
    op.create_table(
        "dentry",
        _integer("parent", primary_key=True),
        _blob("name", primary_key=True),
        _integer("fid"),
        sqlite_with_rowid=False,
    )
    op.create_index("dentry_fid", "dentry", ["fid"])
    op.create_table("inline", _integer("fid", primary_key=True), _blob("data"))
    op.create_table(
        "xattr",
        _integer("fid", primary_key=True),
        _blob("name", primary_key=True),
        _blob("value"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "session",
        _integer("id", primary_key=True),
        _text("client"),
        _text("host"),
        _integer("root"),
        _integer("created_ns"),
    )
    op.create_table(
        "open",
        _integer("session", primary_key=True),
        _integer("fid", primary_key=True),
        _integer("mode"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "reply",
        _integer("session", primary_key=True),
        _integer("xid", primary_key=True),
        _blob("body"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ost",
        _integer("index", primary_key=True),
        sa.Column("uuid", sa.Text, nullable=False, unique=True),
        _text("address"),
        *(_integer(name) for name in ("total_bytes", "free_bytes", "objects")),
    )
    op.create_table("pool", _text("name", primary_key=True), _integer("ost", primary_key=True), sqlite_with_rowid=False)
    op.create_table("destroy", _integer("fid", primary_key=True), _blob("layout"))
    op.create_table("intent", _integer("fid", primary_key=True), _integer("size"), _blob("layout"))
