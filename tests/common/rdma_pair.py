"""The part of a handshake that makes RDMA links of two TCP links, without the rest of it."""

from nacrefs.common.transport.link import Link


async def upgraded(near: Link, far: Link) -> tuple[Link, Link]:
    """The RDMA links of two ends that were connected at an rdma:// address."""
    assert near.upgrade is not None
    assert far.upgrade is not None
    offer = near.upgrade.offer()
    assert offer is not None
    assert await near.upgrade.accepted(far.upgrade.answer(offer), "") == ""
    return near.upgrade.switched(), far.upgrade.switched()
