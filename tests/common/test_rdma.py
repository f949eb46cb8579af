"""RDMA links over devices in memory: how they come about, what they cost, and what must never happen on them."""

import asyncio
import errno
import gc
import logging
import os
import socket
import struct
import tracemalloc
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest

from nacrefs.common import arena
from nacrefs.common.framing import Kind
from nacrefs.common.remote import Remote
from nacrefs.common.rpc import LATER, Call
from nacrefs.common.transport import address, rdma
from nacrefs.common.transport.rdmalink import RdmaLink, State
from nacrefs.common.transport.rdmaqueue import SENDS
from nacrefs.common.transport.rdmawire import PREFIX_BYTES, Place, Transfer, What, head
from nacrefs.common.wire import Data, Inspect, RdmaEnd, Read, Write, Written
from tests.common.endpoints import HANDLERS, Ends, data_read, ends, read, results, until, write
from tests.common.rdma_pair import upgraded
from tests.common.test_transport import End
from tests.harness.fabric import MemoryFabric, memory_fabric, rdma_devices

MIB = 1 << 20


def registered(size: int) -> memoryview:
    """Memory of the arena."""
    view = arena.buffer(size)
    assert view is not None
    return view


def tcp_payload_bytes() -> int:
    """What the TCP connections of this process have received so far (tcp(7), `struct tcp_info`)."""
    total = 0
    for number in os.listdir("/proc/self/fd"):
        path = Path(f"/proc/self/fd/{number}")
        if path.exists() and path.is_socket():
            with socket.socket(fileno=os.dup(int(number))) as sock:
                if sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6):
                    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
                    total += struct.unpack_from("<Q", info, 128)[0]
    return total


class Spent:
    """What a client and its server have posted since this was made: messages, writes, reads; and their TCP's bytes."""

    def __init__(self, both: Ends, remote: Remote) -> None:
        self._ends = (remote.link, both.peer.link)
        self._before = self._now()

    def _now(self) -> tuple[int, int, int, int]:
        works = [link.work for link in self._ends if isinstance(link, RdmaLink)]
        assert len(works) == 2
        sums = [sum(getattr(work, name) for work in works) for name in ("sends", "writes", "reads")]
        return sums[0], sums[1], sums[2], tcp_payload_bytes()

    def take(self) -> tuple[int, int, int, int]:
        before, self._before = self._before, self._now()
        messages, writes, reads, tcp_bytes = (now - then for now, then in zip(self._before, before, strict=True))
        return messages, writes, reads, tcp_bytes


@pytest.fixture
def fabric() -> Generator[MemoryFabric]:
    with memory_fabric() as made:
        yield made


@pytest.fixture
def devices() -> Generator[None]:
    """Whatever devices there are."""
    with rdma_devices():
        yield


@pytest.fixture
async def both(devices: None) -> AsyncGenerator[Ends]:
    async with ends("rdma", devices=True) as made:
        yield made


@pytest.fixture
async def links(devices: None) -> AsyncGenerator[tuple[RdmaLink, RdmaLink, End, End]]:
    """A connecting and an accepting link, and their receivers."""
    accepted: asyncio.Queue[Any] = asyncio.Queue()
    listener = await address.listen("rdma://127.0.0.1:0", accepted.put_nowait)
    near, far = await upgraded(await address.connect(listener.address), await accepted.get())
    assert isinstance(near, RdmaLink)
    assert isinstance(far, RdmaLink)
    ends = End(), End()
    near.start(ends[0])
    far.start(ends[1])
    yield near, far, *ends
    near.close()
    far.close()
    listener.close()
    await address.settle()


# ------------------------------------------------------------------------------------------------------- what it costs


async def test_one_send_each_way_for_a_request_and_not_a_byte_of_tcp(both: Ends) -> None:
    remote = await both.connected()
    spent = Spent(both, remote)
    for number in range(10):
        await remote.call(Inspect(str(number)))
    messages, writes, reads, tcp_bytes = spent.take()
    assert 20 <= messages <= 20 + 3, "and now and then one that returns credits"
    assert (writes, reads, tcp_bytes) == (0, 0, 0)


async def test_one_write_for_a_read_and_one_read_for_a_write(both: Ends) -> None:
    remote = await both.connected()
    target = registered(MIB)
    spent = Spent(both, remote)
    assert (await remote.call(read(MIB), into=[target])).lengths == (MIB,)
    assert bytes(target) == bytes(range(256)) * (MIB // 256)
    assert spent.take() == (2, 1, 0, 0)
    assert (await remote.call(write(MIB), data=[target])).size == MIB
    assert spent.take() == (2, 0, 1, 0)


async def test_scattered_room_takes_one_write_for_each_place(both: Ends) -> None:
    remote = await both.connected()
    memory = registered(MIB)
    targets = [memory[:1000], memory[1000:100_000], memory[200_000:300_000], memory[500_000:600_000]]
    size = sum(map(len, targets))
    spent = Spent(both, remote)
    await remote.call(read(size), into=targets)
    assert b"".join(targets) == (bytes(range(256)) * MIB)[:size]
    assert spent.take() == (2, 3, 0, 0), "the first two are neighbours"


async def test_small_bulk_rides_in_the_message(both: Ends) -> None:
    remote = await both.connected()
    target = registered(4096)
    spent = Spent(both, remote)
    await remote.call(read(4096), into=[target])
    await remote.call(write(4096), data=[target])
    assert spent.take() == (4, 0, 0, 0)


async def test_ordinary_memory_works_too(both: Ends) -> None:
    remote = await both.connected()
    target = memoryview(bytearray(100_000))
    spent = Spent(both, remote)
    await remote.call(read(100_000), into=[target])
    assert bytes(target) == (bytes(range(256)) * 400)[:100_000]
    assert spent.take()[1:] == (0, 0, 0), "through the stream"
    await remote.call(write(100_000), data=[memoryview(bytes(target))])
    assert spent.take() == (2, 0, 1, 0), "copied into registered memory once"


async def test_bulk_bytes_pass_through_no_python_object(devices: None) -> None:
    stored: list[memoryview] = []

    def served(request: Read, call: Call) -> Data:
        call.push(stored)
        return Data((MIB,), b"", 1)

    def kept(request: Write, call: Call) -> Written:
        return Written(len(call.pull()), 0, call.pull()[-1])

    async with ends("rdma", {**HANDLERS, Read: served, Write: kept}, devices=True) as both:
        remote = await both.connected()
        stored.append(registered(MIB))
        stored[0][:] = bytes(range(256)) * (MIB // 256)
        target = registered(MIB)
        await remote.call(write(MIB), data=[target])  # the pool has its buffer then
        tracemalloc.start()
        try:
            await remote.call(read(MIB), into=[target])
            assert (await remote.call(write(MIB), data=[target])).version == 255
            assert tracemalloc.get_traced_memory()[1] < MIB // 8
        finally:
            tracemalloc.stop()
        assert target == stored[0]


# ------------------------------------------------------------------------------------------------ no stale write, ever


async def test_the_buffer_of_a_cancelled_read_belongs_to_nobody_until_the_answer_is_there(both: Ends) -> None:
    calls: list[Call] = []

    def later(request: Read, call: Call) -> Any:
        calls.append(call)
        return LATER

    remote = await both.connected()
    both.peer.service = {**HANDLERS, Read: later}
    target = registered(MIB)
    place = arena.locate(target)
    future = remote.call(read(MIB), into=[target])
    await until(lambda: calls)
    future.cancel()
    await asyncio.sleep(0)
    del target
    others = [registered(MIB) for _ in range(16)]
    assert all(arena.locate(other) != place for other in others), "memory with a key outside was handed out"
    for number in range(len(others)):
        others[number][:] = b"mine" * (MIB // 4)
    calls[0].reply(data_read(read(MIB), calls[0]))
    await remote.call(Inspect("the answer has come before this one"))
    assert all(bytes(other) == b"mine" * (MIB // 4) for other in others)
    others.clear()
    gc.collect()
    free = [registered(MIB) for _ in range(arena.share().held_bytes // MIB - 2)]
    assert place in [arena.locate(view) for view in free], "it never came back"


async def test_memory_of_a_cancelled_read_that_is_offered_again_cuts_the_old_link_first(both: Ends) -> None:
    calls: list[Call] = []

    def later(request: Read, call: Call) -> Any:
        calls.append(call)
        return LATER if len(calls) == 1 else data_read(request, call)

    remote, other = await both.connected(), await both.connected(name="client-2")
    both.server.service = {**HANDLERS, Read: later}
    for peer in both.server.peers:
        peer.service = both.server.service
    target = registered(MIB)
    future = remote.call(read(MIB), into=[target])
    await until(lambda: calls)
    future.cancel()
    await asyncio.sleep(0)
    await other.call(read(MIB), into=[target])
    expected = bytes(target)
    calls[0].push([memoryview(bytes(MIB))])
    calls[0].reply(Data((MIB,), b"", 1))
    await remote.call(Inspect("over a new connection"))
    assert remote.generation == 2
    assert bytes(target) == expected


async def test_a_buffer_is_not_given_back_before_the_queue_pair_was_flushed(fabric: MemoryFabric) -> None:
    async with ends("rdma", devices=True) as both:
        remote = await both.connected()
        target = registered(MIB)
        place = arena.locate(target)
        fabric.held = True
        future = remote.call(read(MIB), into=[target])
        remote.close()
        future.cancel()
        del target
        others = [registered(MIB) for _ in range(16)]
        assert all(arena.locate(view) != place for view in others)
        fabric.let_go()


# ----------------------------------------------------------------------------------------------- wrong keys, no credits


async def wrong_write(links: tuple[RdmaLink, RdmaLink, End, End], place: Place) -> None:
    _, far, near_end, far_end = links
    source = registered(16384)
    piece = far.registered.piece(source)
    assert piece is not None
    far.work.write([Transfer([piece._replace(size=place.size)], place)])
    far.send(Kind.REPLY, 1, 0, b"behind it")
    assert "does not allow access to that memory" in str(await far_end.ended)
    assert (await near_end.ended).errno == errno.ECONNRESET
    assert near_end.frames.empty()


async def test_a_wrong_key_writes_nothing_and_ends_the_link(links: tuple[RdmaLink, RdmaLink, End, End]) -> None:
    mine = registered(16384)
    mine[:] = b"m" * 16384
    found = arena.locate(mine)
    assert found is not None
    await wrong_write(links, Place(found[1], 100, 999_999))
    assert bytes(mine) == b"m" * 16384


async def test_an_access_past_the_end_of_what_is_registered_ends_the_link(
    links: tuple[RdmaLink, RdmaLink, End, End],
) -> None:
    near = links[0]
    piece = near.registered.piece(registered(16384), remote=True)
    assert piece is not None
    segment = arena.share().segments[0]
    await wrong_write(links, Place(segment.address + segment.size - 10, 100, piece.key))


async def test_a_server_shows_its_memory_to_nobody(links: tuple[RdmaLink, RdmaLink, End, End]) -> None:
    near, far, near_end, far_end = links
    view = registered(16384)
    theirs, ours = far.registered.piece(view, remote=True), near.registered.piece(view)
    assert theirs is not None
    assert ours is not None
    near.work.write([Transfer([ours], Place(*theirs))])
    near.work.send(0, signal=True)
    assert "does not allow its memory to be" in str(await near_end.ended)
    assert (await far_end.ended).errno == errno.ECONNRESET


async def test_more_messages_than_credits_are_an_error_at_once(links: tuple[RdmaLink, RdmaLink, End, End]) -> None:
    near, far, near_end, _ = links
    far.pause()
    while not near_end.ended.done():
        while near.work.room():
            near.work.slot()[:PREFIX_BYTES] = head(What.BYTES, 0)
            near.work.send(PREFIX_BYTES, signal=True)
        await asyncio.sleep(0)
    assert "posted no receive" in str(await near_end.ended)
    far.resume()


async def test_messages_that_make_no_sense_end_the_link(links: tuple[RdmaLink, RdmaLink, End, End]) -> None:
    near, _, _, far_end = links
    near.work.slot()[:PREFIX_BYTES] = b"\xff" * PREFIX_BYTES
    near.work.send(PREFIX_BYTES, signal=True)
    assert "unknown RDMA message 255" in str(await far_end.ended)


async def test_requests_beyond_all_credits_wait_and_all_are_answered(both: Ends) -> None:
    remote = await both.connected()
    replies = await asyncio.gather(*(remote.call(Inspect(str(number))) for number in range(50 * SENDS)))
    assert [reply.report for reply in replies] == [str(number).encode() for number in range(50 * SENDS)]


# -------------------------------------------------------------------------------------------------------------- the end


async def test_the_death_of_either_side_ends_the_other(links: tuple[RdmaLink, RdmaLink, End, End]) -> None:
    near, far, near_end, far_end = links
    target = registered(MIB)
    near.send(Kind.REQUEST, 1, 1, b"", (), None, [target])
    far.tcp.close()  # as the kernel does for a process that is gone
    await near_end.ended
    await far_end.ended
    assert near.state is far.state is State.CLOSED


@pytest.mark.parametrize("victim", ["client", "server"])
@pytest.mark.parametrize("turns", range(7))
async def test_a_side_that_dies_at_any_moment_leaves_the_other_an_answer_or_an_error_and_no_stale_byte(
    victim: str, turns: int, fabric: MemoryFabric
) -> None:
    async with ends("rdma", devices=True) as both:
        remote = await both.connected()
        reading = [registered(300_000) for _ in range(4)]
        writing = [registered(300_000) for _ in range(4)]
        calls: list[asyncio.Future[Any]] = [remote.call(read(300_000), into=[view]) for view in reading]
        calls += [remote.call(write(300_000), data=[view]) for view in writing]
        for _ in range(turns):
            await asyncio.sleep(0)
        link = remote.link if victim == "client" else both.peer.link
        assert isinstance(link, RdmaLink)
        link.tcp.close()
        answers = await results(calls)  # asked again over another connection, what had no answer
        assert not [answer for answer in answers if isinstance(answer, BaseException)]
        await until(lambda: remote.generation == 2)
        expected = (bytes(range(256)) * 1200)[:300_000]
        assert all(bytes(view) == expected for view in reading)
        for view in reading:
            view[:] = b"z" * len(view)  # its owner's again, for something else
        await remote.call(Inspect("and whatever was still under way is over"))
        assert all(bytes(view) == b"z" * len(view) for view in reading)


async def test_what_had_been_sent_before_the_other_side_died_still_arrives(
    links: tuple[RdmaLink, RdmaLink, End, End],
) -> None:
    _, far, near_end, _ = links
    for number in range(5):
        far.send(Kind.REPLY, number, 0, b"last words")
    await asyncio.sleep(0)
    far.tcp.close()
    assert [frame[1] for frame in await near_end.take(5)] == list(range(5))
    await near_end.ended


async def connect_again_and_again(both: Ends, times: int) -> None:
    """So many clients, one after the other, and a check of what they leave behind."""
    await (await both.connected(name="first")).call(Inspect("x"))
    peers, used, descriptors = len(both.server.peers), arena.share().used_bytes, len(os.listdir("/proc/self/fd"))
    for number in range(times):
        remote = await both.connected(name=f"c{number}")
        await results([remote.call(Inspect("x")), remote.call(read(100_000), into=[registered(100_000)])])
        await remote.aclose()
        both.remotes.remove(remote)
    await until(lambda: len(both.server.peers) == peers)
    await until(lambda: arena.share().used_bytes == used)
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_connecting_again_and_again_leaves_nothing_behind(fabric: MemoryFabric) -> None:
    async with ends("rdma", devices=True) as both:
        await connect_again_and_again(both, 250)
        await until(lambda: len(fabric.queue_pairs) == 2)
        assert len(fabric.devices) == 1


# ------------------------------------------------------------------------------------------------------------- fallback


@pytest.fixture(autouse=True)
def nothing_said_yet() -> Generator[None]:
    rdma.forget()
    yield
    rdma.forget()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "nacre.rdma"]


async def transports(both: Ends, addresses: str) -> list[str]:
    """How two clients with these addresses, one after the other, are connected."""
    found: list[str] = []
    for name in ("one", "two"):
        remote = both.remote(name=name, address=addresses)
        await remote.open()
        assert (await remote.call(Inspect("x"))).report == b"x"
        assert remote.link is not None
        found.append(remote.link.transport)
        await remote.aclose()
    return found


async def test_a_server_without_rdma_declines_and_this_is_said_once(
    devices: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with ends("tcp", devices=True) as both:
        where = both.url.removeprefix("tcp://")
        assert await transports(both, f"rdma://{where},tcp://{where}") == ["tcp", "tcp"]
        assert said(caplog) == [
            f"{where}: RDMA cannot be used: the server does not listen at an rdma:// address; going on over TCP"
        ]
        with pytest.raises(OSError, match="does not listen at an rdma:// address .add a tcp:// address"):
            await both.remote(address=f"rdma://{where}").open()


async def test_a_client_without_a_device_goes_on_over_tcp(
    fabric: MemoryFabric, caplog: pytest.LogCaptureFixture
) -> None:
    async with ends("rdma", devices=True) as both:
        fabric.failure = OSError(errno.ENODEV, "no RDMA device")
        where = both.url.removeprefix("rdma://")
        assert await transports(both, f"rdma://{where},tcp://{where}") == ["tcp", "tcp"]
        assert said(caplog) == [f"rdma://{where}: no RDMA device; going on over TCP"]
        with pytest.raises(OSError, match="no RDMA device .add a tcp:// address to go on without"):
            await both.remote(address=f"rdma://{where}").open()
        fabric.failure = None


@pytest.mark.parametrize("lacking", ["address", "memory", "path"])
async def test_whatever_is_lacking_the_connection_stays_tcp_and_says_why(
    lacking: str, fabric: MemoryFabric, caplog: pytest.LogCaptureFixture
) -> None:
    async with ends("rdma", devices=True) as both:
        where = both.url.removeprefix("rdma://")
        if lacking == "address":
            fabric.addresses = ("192.0.2.1",)
            why = "no RDMA device has the address 127.0.0.1"
        elif lacking == "memory":
            assert arena.share().take(1) is not None
            fabric.lockable_bytes = 0
            why = "no more memory may be locked"
        else:
            fabric.deaf = set(range(100_000))
            why = "the other side's device does not answer"
        assert await transports(both, f"rdma://{where},tcp://{where}") == ["tcp", "tcp"]
        (line,) = set(said(caplog))
        assert why in line
        fabric.addresses, fabric.lockable_bytes = ("127.0.0.1",), 1 << 40


async def test_a_server_that_is_not_heard_is_not_asked_for_rdma_again(fabric: MemoryFabric) -> None:
    async with ends("rdma", devices=True) as both:
        where = both.url.removeprefix("rdma://")
        fabric.deaf_accepting = True
        with pytest.raises(OSError, match=where):
            await both.remote(name="one", address=f"rdma://{where},tcp://{where}").open()
        assert await transports(both, f"rdma://{where},tcp://{where}") == ["tcp", "tcp"]


async def test_another_version_of_rdma_is_declined(links: tuple[RdmaLink, RdmaLink, End, End]) -> None:
    other = RdmaEnd(2, "::1", 0, True, 1, 1, 5, 8192, 16)
    with pytest.raises(OSError, match="speaks version 2 of RDMA, this side 1"):
        links[0].connect(other)


async def test_a_list_with_both_schemes_listens_at_one_port(devices: None, caplog: pytest.LogCaptureFixture) -> None:
    async with ends("rdma", devices=True) as both:
        where = both.url.removeprefix("rdma://")
        assert await both.server.listen(f"tcp://{where}") == f"tcp://{where}"
        assert await transports(both, f"tcp://{where}") == ["tcp", "tcp"]
        assert await transports(both, f"rdma://{where},tcp://{where}") == ["rdma", "rdma"]
        caplog.set_level(logging.INFO)
        assert said(caplog) == []
