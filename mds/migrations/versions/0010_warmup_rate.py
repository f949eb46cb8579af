"""Limits of warmup jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; jobs that are there have no limit."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("warmup", sa.Column("rate_bytes", kind, nullable=False, server_default="0"))
