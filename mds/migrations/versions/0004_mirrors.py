"""Copies of mirrored files that are not good, and who writes such files."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _integer(name: str, primary_key: bool = False) -> "sa.Column[int]":
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, primary_key=primary_key, nullable=False, autoincrement=False)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "mirror",
        *(_integer(name, primary_key=True) for name in ("fid", "number", "ost")),
        *(_integer(name) for name in ("state", "generation")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "mirror_writer",
        *(_integer(name, primary_key=True) for name in ("session", "fid")),
        sqlite_with_rowid=False,
    )
