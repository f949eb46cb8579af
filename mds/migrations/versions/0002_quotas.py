"""Quotas: what every owner uses, counted from the inodes that are there, and limits."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _integer(name: str, primary_key: bool = False) -> "sa.Column[int]":
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, primary_key=primary_key, nullable=False, autoincrement=False)


def upgrade() -> None:
    """Make the tables and count."""
    op.create_table(
        "usage",
        *(_integer(name, primary_key=True) for name in ("uid", "gid", "project")),
        *(_integer(name) for name in ("bytes", "inodes")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "quota",
        *(_integer(name, primary_key=True) for name in ("kind", "id")),
        *(_integer(name) for name in ("soft_bytes", "hard_bytes", "soft_inodes", "hard_inodes")),
        *(_integer(name) for name in ("grace_bytes_s", "grace_inodes_s", "bytes_until_ns", "inodes_until_ns")),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO usage (uid, gid, project, bytes, inodes)"
        " SELECT uid, gid, project, 512 * sum(blocks), count(*) FROM inode GROUP BY uid, gid, project"
    )
    op.drop_column("mdt", "files")
