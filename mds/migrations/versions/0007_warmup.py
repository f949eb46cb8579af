"""Warmup jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def _integer(name: str, primary_key: bool = False) -> "sa.Column[int]":
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, primary_key=primary_key, nullable=False, autoincrement=False)


def _text(name: str) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, nullable=False)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "warmup",
        _integer("id", primary_key=True),
        *(_text(name) for name in ("verb", "state")),
        *(_integer(name) for name in ("after", "width", "uid", "created_ns", "changed_ns")),
        _text("counts"),
    )
    op.create_table(
        "warmup_item",
        _integer("job", primary_key=True),
        _integer("number", primary_key=True),
        _integer("fid"),
        sqlite_with_rowid=False,
    )
