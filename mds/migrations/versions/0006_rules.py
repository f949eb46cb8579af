"""Lifecycle rules; files by their last use and change, in each state of the tier; subdirectories."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

IS_FILE = "mode & 61440 = 32768"
IS_DIRECTORY = "mode & 61440 = 16384"


def _integer(name: str) -> "sa.Column[int]":
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=False, autoincrement=False)


def _text(name: str, primary_key: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, primary_key=primary_key, nullable=False)


def _index(name: str, columns: list[str], where: str) -> None:
    op.create_index(
        name,
        "inode",
        [sa.text(column) for column in columns],
        sqlite_where=sa.text(where),
        postgresql_where=sa.text(where),
    )


def upgrade() -> None:
    """Make tables and indexes, and mark the files whose copy is of what they have now."""
    op.execute(
        "UPDATE inode SET flags = flags | 256 WHERE fid IN (SELECT h.fid FROM hsm h JOIN inode i ON i.fid = h.fid"
        " WHERE h.flags & 8 <> 0 AND h.version = i.data_version)"
    )
    op.drop_index("inode_last_use", "inode")
    last_use = "(CASE WHEN (atime_ns > mtime_ns) THEN atime_ns ELSE mtime_ns END)"
    _index("inode_last_use", ["(flags & 384)", last_use, "fid"], IS_FILE)
    _index("inode_last_change", ["(flags & 384)", "mtime_ns", "fid"], IS_FILE)
    _index("inode_directory", ["parent", "fid"], IS_DIRECTORY)
    op.create_index("hsm_class", "hsm", ["archive", "storage_class", "fid"])
    op.add_column("hsm_action", sa.Column("storage_class", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "rule",
        _text("id", primary_key=True),
        _integer("position"),
        *(_text(name) for name in ("document", "state", "reason")),
        _integer("last_run_ns"),
        _text("counts"),
        sqlite_with_rowid=False,
    )
