"""Archives, the state of files in the lifecycle tier, its queue, and files by their last use."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _integer(name: str, primary_key: bool = False) -> "sa.Column[int]":
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, primary_key=primary_key, nullable=False, autoincrement=False)


def _text(name: str, primary_key: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, primary_key=primary_key, nullable=False)


def _blob(name: str) -> "sa.Column[bytes]":
    return sa.Column(name, sa.LargeBinary, nullable=False)


def upgrade() -> None:
    """Make the tables."""
    op.create_index(
        "inode_last_use",
        "inode",
        [sa.text("(CASE WHEN (atime_ns > mtime_ns) THEN atime_ns ELSE mtime_ns END)")],
        sqlite_where=sa.text("mode & 61440 = 32768"),
        postgresql_where=sa.text("mode & 61440 = 32768"),
    )
    op.create_table(
        "archive",
        _integer("id", primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        _blob("spec"),
        _integer("gone"),
    )
    op.create_table(
        "hsm",
        _integer("fid", primary_key=True),
        _integer("flags"),
        _integer("archive"),
        _text("key"),
        *(_integer(name) for name in ("version", "size")),
        _text("etag"),
        _integer("part_bytes"),
        _blob("digests"),
        _blob("checksum"),
        _text("storage_class"),
        *(_integer(name) for name in ("archived_ns", "restored_ns", "thawed_until_ns")),
        sqlite_with_rowid=False,
    )
    op.create_index("hsm_archive", "hsm", ["archive", "flags"])
    op.create_table(
        "hsm_action",
        _integer("id", primary_key=True),
        *(_integer(name) for name in ("fid", "kind", "archive", "uid")),
        *(_text(name) for name in ("cause", "state")),
        *(_integer(name) for name in ("attempts", "not_before_ns", "created_ns", "changed_ns")),
        *(_text(name) for name in ("reason", "key", "upload")),
    )
    op.create_index("hsm_action_fid", "hsm_action", ["fid"])
    op.create_index("hsm_action_state", "hsm_action", ["state", "id"])
    op.create_table(
        "hsm_gone", _integer("archive", primary_key=True), _text("key", primary_key=True), sqlite_with_rowid=False
    )
