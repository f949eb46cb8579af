"""Where copies are, beside the inode; indexes for lifecycle rules are made when there are rules."""

from typing import Any

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

BATCH = 1000
SETS = 16
CLASSES = (
    "", "STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "GLACIER",
    "DEEP_ARCHIVE",
)  # fmt: skip


def _osts_place(layout: bytes | None) -> int:
    """As `lifecycle/places.py` had it: a layout is (stripe size, stripe count, OSTs, ...)."""
    osts: list[int] = [] if layout is None else msgspec.msgpack.decode(layout)[2]
    if len(osts) == 1:
        return -1 - osts[0]
    place = 0
    for ost in osts:
        place |= 1 << ost % SETS
    return place


def _fill(connection: Any) -> None:
    """The columns of files that an archive has a copy of (0x100)."""
    after = 0
    while rows := connection.exec_driver_sql(
        "SELECT i.fid, i.layout, h.archive, h.storage_class FROM inode i JOIN hsm h ON h.fid = i.fid"
        f" WHERE i.fid > {after} AND i.flags & 256 <> 0 ORDER BY i.fid LIMIT {BATCH}"
    ).fetchall():
        after = rows[-1][0]
        values = [
            {
                "key": fid,
                "osts": _osts_place(layout),
                "class": archive << 4 | (CLASSES.index(name) if name in CLASSES else 1),
            }
            for fid, layout, archive, name in rows
        ]
        connection.execute(sa.text("UPDATE inode SET copy_osts = :osts, copy_class = :class WHERE fid = :key"), values)


def upgrade() -> None:
    """Add the columns, fill them, and drop the indexes: a server that has rules makes those that they need."""
    for name in ("inode_last_use", "inode_last_change"):
        op.drop_index(name, "inode")
    op.drop_index("hsm_class", "hsm")
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    for name in ("copy_osts", "copy_class"):
        op.add_column("inode", sa.Column(name, kind, nullable=False, server_default="0"))
    _fill(op.get_bind())
