"""Files that buckets of links are to follow."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "link_dirty",
        sa.Column("fid", kind, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("link", kind, nullable=False),
    )
