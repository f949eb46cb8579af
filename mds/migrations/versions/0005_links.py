"""Directories that are bound to bucket prefixes."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
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
        "link",
        _integer("id", primary_key=True),
        _integer("fid"),
        sa.Column("spec", sa.LargeBinary, nullable=False),
        _text("state"),
        _integer("refreshed_ns"),
        _text("counts"),
        _text("reason"),
    )
    op.create_table(
        "link_object",
        _integer("link", primary_key=True),
        sa.Column("key", sa.LargeBinary, primary_key=True, nullable=False),
        _integer("fid"),
        _text("reason"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "link_object_problem",
        "link_object",
        ["link", "key"],
        sqlite_where=sa.text("fid = 0"),
        postgresql_where=sa.text("fid = 0"),
    )
    op.create_table(
        "link_log",
        _integer("link", primary_key=True),
        _integer("number", primary_key=True),
        _integer("time_ns"),
        _text("text"),
        sqlite_with_rowid=False,
    )
