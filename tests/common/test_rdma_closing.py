"""In which order RDMA links, their memory and their device are closed: over devices in memory, and in the VM of
tests/rdma over the real one. What must hold of every closing is checked by `noted_devices`."""

import asyncio
import gc
from collections.abc import Generator
from typing import Any

import pytest

from nacrefs.common import arena
from nacrefs.common.auth import new_keyring
from nacrefs.common.framing import Kind
from nacrefs.common.transport import address, rdmalink
from nacrefs.common.transport.link import Link
from nacrefs.common.transport.rdmalink import RdmaLink, State
from nacrefs.common.wire import Data, Inspect, Written
from tests.common.endpoints import ends, read, results, until, write
from tests.common.rdma_pair import upgraded
from tests.common.test_rdma import registered
from tests.common.test_transport import End
from tests.harness.closings import Closings, noted_devices
from tests.harness.fabric import MemoryFabric, memory_fabric

BULK_BYTES = 300_000
DEVICE = ["region closed", "domain closed"] * 2 + ["device closed"]
"""The end of a device that a client and a server of this process share."""


@pytest.fixture
def notes() -> Generator[Closings]:
    with noted_devices() as made:
        yield made


@pytest.fixture
def fabric() -> Generator[MemoryFabric]:
    with memory_fabric() as made:
        yield made


async def test_queue_pairs_are_closed_before_memory_domain_and_device(notes: Closings) -> None:
    async with ends("rdma", devices=True) as both:
        remote = await both.connected()
        target = registered(BULK_BYTES)
        await remote.call(read(BULK_BYTES), into=[target])
        await remote.call(write(BULK_BYTES), data=[target])
        await remote.aclose()
        assert "device closed" not in notes.order, "the server listens"
    pairs = len(notes.order) - len(DEVICE)
    assert sorted(notes.order[:pairs]) == ["queue pair closed"] * 2 + ["queue pair failed"] * 2
    assert notes.order[pairs:] == DEVICE


async def test_the_device_is_opened_anew_after_it_was_closed(notes: Closings) -> None:
    for _ in range(2):
        async with ends("rdma", devices=True) as both:
            remote = await both.connected()
            assert (await remote.call(Inspect("x"))).report == b"x"
            assert remote.link is not None
            assert remote.link.transport == "rdma"
    assert notes.order.count("device closed") == 2


def overwrite(views: list[memoryview]) -> None:
    """They are their owner's again, for something else."""
    for view in views:
        view[:] = b"z" * BULK_BYTES


@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("turns", [0, 1, 2, 5, 12])
async def test_closing_while_transfers_run_leaves_nothing_and_writes_nothing_afterwards(
    first: str, turns: int, notes: Closings
) -> None:
    async with ends("rdma", devices=True) as both:
        remote = await both.connected()
        memory = arena.share()
        views = [registered(BULK_BYTES) for _ in range(16)]
        calls: list[asyncio.Future[Any]] = [remote.call(read(BULK_BYTES), into=[view]) for view in views[:8]]
        calls += [remote.call(write(BULK_BYTES), data=[view]) for view in views[8:]]
        for _ in range(turns):
            await asyncio.sleep(0)
        await (remote.aclose() if first == "client" else both.server.close())
        overwrite(views)
        await (both.server.close() if first == "client" else remote.aclose())
        answers = await results(calls)
        assert all(isinstance(answer, Data | Written | OSError) for answer in answers)
        assert all(view == b"z" * BULK_BYTES for view in views), "it was written to after it had been closed"
        views.clear()
        calls.clear()
        gc.collect()
        assert memory.used_bytes == 0, "the messages' memory is free, too"
    assert notes.order[-len(DEVICE) :] == DEVICE


async def links() -> tuple[RdmaLink, RdmaLink, End, End]:
    """A connecting and an accepting link, whose listener has been closed, twice."""
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    listener = await address.listen("rdma://127.0.0.1:0", accepted.put_nowait)
    near, far = await upgraded(await address.connect(listener.address), await accepted.get())
    assert isinstance(near, RdmaLink)
    assert isinstance(far, RdmaLink)
    ends = End(), End()
    near.start(ends[0])
    far.start(ends[1])
    listener.close()
    listener.close()
    return near, far, *ends


@pytest.mark.parametrize("state", [State.CLOSING, State.DRAINING, State.CLOSED])
async def test_closing_again_in_any_state_does_nothing(state: State, notes: Closings) -> None:
    near, far, near_end, far_end = await links()
    target = registered(BULK_BYTES)
    near.send(Kind.REQUEST, 1, 1, b"", (), None, [target])
    near.close("once")
    while near.state is not state:
        await asyncio.sleep(0)
    near.close("twice")
    far.close("once")
    far.close("twice")
    await asyncio.gather(address.settle(), address.settle())
    await address.settle()
    assert "once" in str(await near_end.ended)
    await far_end.ended
    near.close("at the end")
    await asyncio.sleep(0)
    assert (near_end.endings, far_end.endings) == (1, 1)
    assert near.state is far.state is State.CLOSED
    assert notes.order.count("queue pair failed") == notes.order.count("queue pair closed") == 2
    assert notes.order[-len(DEVICE) :] == DEVICE


async def test_a_queue_pair_that_fails_is_replaced_by_a_new_connection(notes: Closings) -> None:
    async with ends("rdma", devices=True) as both:
        remote = await both.connected()
        target = registered(BULK_BYTES)
        for generation, side in ((2, "client"), (3, "server")):
            call = remote.call(read(BULK_BYTES), into=[target])
            link = remote.link if side == "client" else both.peer.link
            assert isinstance(link, RdmaLink)
            link.work.pair.fail()
            assert (await call).lengths == (BULK_BYTES,)
            assert bytes(target) == (bytes(range(256)) * 1200)[:BULK_BYTES]
            await remote.call(Inspect("x"))
            assert remote.generation == generation
            target[:] = bytes(BULK_BYTES)
    assert notes.order.count("queue pair closed") == 6


async def test_a_client_without_the_key_never_gets_a_queue_pair_of_the_server(notes: Closings) -> None:
    async with ends("rdma", devices=True) as both:
        with pytest.raises(OSError, match="key"):
            await both.remote(keyring=new_keyring("test-cluster")).open()
        assert notes.accepting == 0
        await both.connected()
        assert notes.accepting == 1


async def test_a_device_that_is_taken_out_is_closed_all_the_same(fabric: MemoryFabric) -> None:
    async with ends("rdma", devices=True) as both:
        remote = await both.connected()
        target = registered(BULK_BYTES)
        call = remote.call(read(BULK_BYTES), into=[target])
        link = remote.link
        assert isinstance(link, RdmaLink)
        fabric.gone = True
        link.tcp.close()
        for _ in range(10):
            await asyncio.sleep(0)
        assert link.state is State.CLOSED, "it waits for what will not come back"
        await remote.aclose()
        assert isinstance((await results([call]))[0], OSError)


async def test_a_device_that_is_taken_out_while_a_link_is_made_is_closed_too(fabric: MemoryFabric) -> None:
    async with ends("rdma", devices=True) as both:
        await both.connected()
        fabric.gone = True
        with pytest.raises(OSError, match="the device is gone"):
            await both.connected(name="another")


async def test_a_device_that_never_gives_back_its_work_is_closed_after_a_while(
    fabric: MemoryFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdmalink, "FLUSH_S", 0.05)
    async with ends("rdma", devices=True) as both:
        remote = await both.connected()
        target = registered(BULK_BYTES)
        fabric.held = fabric.stuck = True
        call = remote.call(read(BULK_BYTES), into=[target])
        near, far = remote.link, both.peer.link
        assert isinstance(near, RdmaLink)
        assert isinstance(far, RdmaLink)
        near.work.pair.fail()
        near.tcp.close()
        await until(lambda: near.state is far.state is State.DRAINING)
        await remote.aclose()
        await both.server.close()
        assert near.state is far.state is State.CLOSED
        assert isinstance((await results([call]))[0], OSError)
        assert not fabric.queue_pairs


@pytest.mark.parametrize(("inline_bytes", "sent_inline"), [(256, 2), (0, 0)])
async def test_small_messages_are_sent_inline_where_the_device_can(
    inline_bytes: int, sent_inline: int, fabric: MemoryFabric
) -> None:
    fabric.inline_bytes = inline_bytes
    async with ends("rdma", devices=True) as both:
        remote = await both.connected()
        before = fabric.sends, fabric.inline_sends
        await remote.call(Inspect("x"))
        await remote.call(Inspect("x" * 1000))
        assert (fabric.sends - before[0], fabric.inline_sends - before[1]) == (4, sent_inline)
