"""What every transport promises: one suite over all of them; what only TCP can meet; and TCP on uvloop."""

import asyncio
import contextlib
import errno
import itertools
import os
import random
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Sequence

import pytest
import uvloop

from nacrefs.common.framing import Frame, FramingError, Kind, encode_frame
from nacrefs.common.transport import address, tcp
from nacrefs.common.transport.link import Link, Listener
from nacrefs.common.wire import BODY_BYTES_MAX
from tests.common.endpoints import until
from tests.common.rdma_pair import upgraded
from tests.harness.fabric import rdma_devices

MIB = 1 << 20
names = itertools.count()


@pytest.fixture(params=["mem", "tcp", "rdma"])
def place(request: pytest.FixtureRequest) -> Generator[str]:
    if request.param == "mem":
        yield f"mem://transport-{next(names)}"
    elif request.param == "tcp":
        yield "tcp://127.0.0.1:0"
    else:
        with rdma_devices():
            yield "rdma://127.0.0.1:0"


class End:
    """A receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[tuple[Kind, int, int, bytes, bytes]] = asyncio.Queue()
        self.ended: asyncio.Future[OSError] = asyncio.get_running_loop().create_future()
        self.endings = 0
        self.on_frame: Callable[[Frame], None] = lambda frame: None
        self.buffers: Callable[[Frame], Sequence[memoryview] | None] = lambda frame: [
            memoryview(bytearray(frame.bulk_bytes))
        ]

    def sink(self, frame: Frame) -> Sequence[memoryview] | None:
        return self.buffers(frame)

    def frame(self, frame: Frame) -> None:
        self.frames.put_nowait((frame.kind, frame.xid, frame.oldest, bytes(frame.body), b"".join(frame.bulk)))
        self.on_frame(frame)

    def closed(self, link: Link, error: OSError) -> None:
        self.endings += 1
        if not self.ended.done():
            self.ended.set_result(error)

    async def take(self, count: int) -> list[tuple[Kind, int, int, bytes, bytes]]:
        return [await self.frames.get() for _ in range(count)]


class Pair:
    """Two ends of a link."""

    def __init__(self, near: Link, far: Link, listener: Listener) -> None:
        self.near, self.far, self.listener = near, far, listener
        self.near_end, self.far_end = End(), End()

    def start(self) -> None:
        self.near.start(self.near_end)
        self.far.start(self.far_end)


Connect = Callable[[], Awaitable[Pair]]


@contextlib.asynccontextmanager
async def connector(place: str) -> AsyncGenerator[Connect]:
    """Makes pairs, and closes them; no end may have heard twice that its link is gone."""
    pairs: list[Pair] = []

    async def make() -> Pair:
        accepted: asyncio.Queue[Link] = asyncio.Queue()
        listener = await address.listen(place, accepted.put_nowait)
        near, far = await address.connect(listener.address), await accepted.get()
        if place.startswith("rdma"):
            near, far = await upgraded(near, far)
        pair = Pair(near, far, listener)
        pairs.append(pair)
        return pair

    try:
        yield make
    finally:
        for pair in pairs:
            pair.near.close()
            pair.far.close()
            pair.listener.close()
        await address.settle()
        await asyncio.sleep(0)
    assert all(end.endings <= 1 for pair in pairs for end in (pair.near_end, pair.far_end))


@pytest.fixture
async def connect(place: str) -> AsyncIterator[Connect]:
    async with connector(place) as make:
        yield make


@pytest.fixture
async def pair(connect: Connect) -> Pair:
    pair = await connect()
    pair.start()
    return pair


def views(data: bytes, sizes: Iterable[int]) -> list[memoryview]:
    """`data` in pieces of these sizes, the rest as the last one."""
    pieces: list[memoryview] = []
    left = memoryview(data)
    for size in sizes:
        pieces.append(left[:size])
        left = left[size:]
    return [*pieces, left]


async def test_frames_arrive_in_order_both_ways(pair: Pair) -> None:
    sent = [(Kind.REQUEST, xid, 1, b"%d" % xid * (xid % 50), b"") for xid in range(1, 1001)]
    for kind, xid, oldest, body, _ in sent:
        pair.near.send(kind, xid, oldest, body)
        pair.far.send(kind, xid, oldest, body)
    assert await pair.far_end.take(1000) == sent
    assert await pair.near_end.take(1000) == sent


async def test_bulk_goes_both_ways_from_and_into_many_buffers(pair: Pair) -> None:
    data = random.Random(1).randbytes(3 * MIB)
    targets = [memoryview(bytearray(size)) for size in [1, 0, 5000, MIB, *[997] * 700, 3 * MIB]]

    def buffers(frame: Frame) -> list[memoryview]:
        chosen: list[memoryview] = []
        left = frame.bulk_bytes
        for target in targets:
            chosen.append(target[:left])
            left -= len(chosen[-1])
        return chosen

    pair.far_end.buffers = pair.near_end.buffers = buffers
    for link, end in ((pair.near, pair.far_end), (pair.far, pair.near_end)):
        link.send(Kind.REQUEST, 1, 1, b"a", views(data, [0, 100, 0, MIB, *[10] * 1000]))
        link.send(Kind.REQUEST, 2, 1, b"b")
        assert await end.take(2) == [(Kind.REQUEST, 1, 1, b"a", data), (Kind.REQUEST, 2, 1, b"b", b"")]


async def test_a_large_body_arrives_whole(pair: Pair) -> None:
    body = random.Random(2).randbytes(BODY_BYTES_MAX)
    pair.near.send(Kind.REPLY, 1, 0, body)
    assert await pair.far_end.take(1) == [(Kind.REPLY, 1, 0, body, b"")]


async def test_receiver_without_room_stops_the_sender_and_loses_nothing(pair: Pair) -> None:
    free = [memoryview(bytearray(MIB)), memoryview(bytearray(MIB))]
    held: list[memoryview] = []
    refused = 0

    def buffers(frame: Frame) -> list[memoryview] | None:
        nonlocal refused
        if not free:
            refused += 1
            asyncio.get_running_loop().call_later(0.001, give)
            return None
        held.append(free.pop())
        return held[-1:]

    def give() -> None:
        free.extend(held)
        held.clear()
        pair.far.resume()

    pair.far_end.buffers = buffers
    data = random.Random(3).randbytes(MIB)
    done: list[int] = []
    for xid in range(50):
        pair.near.send(Kind.REQUEST, xid, 0, b"x", [memoryview(data)], lambda xid=xid: done.append(xid))  # type: ignore[misc]
    assert pair.near.backlog_bytes >= 48 * MIB
    got = await pair.far_end.take(50)
    assert [frame[1] for frame in got] == list(range(50)) == done
    assert all(frame[4] == data for frame in got)
    assert refused == 24
    await until(lambda: pair.near.backlog_bytes == 0)


async def test_nothing_is_handed_over_while_paused_not_even_what_has_come(pair: Pair) -> None:
    pair.far_end.on_frame = lambda frame: pair.far.pause()
    for xid in range(3):
        pair.near.send(Kind.REQUEST, xid, 0, b"")
    for xid in range(3):
        assert (await pair.far_end.frames.get())[1] == xid
        for _ in range(5):
            await asyncio.sleep(0)
        assert pair.far_end.frames.empty()
        pair.far.resume()


async def test_a_link_is_handed_over_between_two_frames(connect: Connect) -> None:
    pair = await connect()
    pair.start()
    second = End()

    def hand_over(frame: Frame) -> None:
        pair.far.pause()
        pair.far.start(second)

    pair.far_end.on_frame = hand_over
    for xid in range(3):
        pair.near.send(Kind.REQUEST, xid, 0, b"")
    assert [frame[1] for frame in await second.take(2)] == [1, 2]
    assert pair.far_end.frames.qsize() == 1


async def test_a_longer_body_than_the_receiver_allows_ends_the_link(connect: Connect) -> None:
    pair = await connect()
    pair.near.start(pair.near_end)
    pair.far.start(pair.far_end, 100)
    pair.near.send(Kind.HELLO, 0, 0, bytes(100))
    pair.near.send(Kind.HELLO, 0, 0, bytes(101))
    assert isinstance(error := await pair.far_end.ended, FramingError)
    assert "body of 101 bytes is above the limit of 100" in str(error)
    assert pair.far_end.frames.qsize() == 1
    assert (await pair.near_end.ended).errno == errno.ECONNRESET


async def test_bulk_that_nobody_wants_ends_the_link(pair: Pair) -> None:
    pair.far_end.buffers = lambda frame: ()
    pair.near.send(Kind.REPLY, 0, 0, b"", [memoryview(b"bulk")])
    assert "nobody wants 4 bytes" in str(await pair.far_end.ended)


@pytest.mark.parametrize("size", [10, 100_000])
async def test_what_was_sent_before_close_arrives(pair: Pair, size: int) -> None:
    pair.near.send(Kind.FAILURE, 1, 0, b"why", [memoryview(bytes(size))])
    pair.near.close("refused")
    assert "refused" in str(await pair.near_end.ended)
    assert await pair.far_end.take(1) == [(Kind.FAILURE, 1, 0, b"why", bytes(size))]
    assert "closed by peer" in str(await pair.far_end.ended)


async def test_both_sides_hear_once_of_a_close_from_either_side(connect: Connect) -> None:
    for side in ("near", "far"):
        pair = await connect()
        pair.start()
        link: Link = getattr(pair, side)
        link.close()
        link.close()
        errors = [await pair.near_end.ended, await pair.far_end.ended]
        assert [error.errno for error in errors] == [errno.ECONNRESET] * 2
        late = End()
        pair.near.start(late)
        assert (await late.ended).errno == errno.ECONNRESET
        pair.listener.close()


async def test_done_is_called_exactly_once_whatever_happens(pair: Pair) -> None:
    calls: dict[int, int] = dict.fromkeys(range(30), 0)

    def done(number: int) -> Callable[[], None]:
        def called() -> None:
            calls[number] += 1

        return called

    pair.far_end.on_frame = lambda frame: pair.far.close() if frame.xid == 10 else None
    data = memoryview(bytes(MIB))
    for number in range(25):
        pair.near.send(Kind.REQUEST, number, 0, b"", [data] if number % 2 else [], done(number))
    await pair.far_end.ended
    await pair.near_end.ended
    for number in range(25, 30):
        pair.near.send(Kind.REQUEST, number, 0, b"", [data], done(number))
    assert set(calls.values()) == {1}
    assert pair.near.backlog_bytes == 0


async def test_done_is_called_when_the_sender_closes_before_sending(pair: Pair) -> None:
    calls: list[int] = []
    pair.far.pause()
    pair.near.send(Kind.REQUEST, 1, 0, b"", [memoryview(bytes(30 * MIB))], lambda: calls.append(1))
    pair.near.close()
    assert calls == [1]


async def test_withdrawn_bytes_are_not_looked_at_again(pair: Pair) -> None:
    pair.far.pause()
    await asyncio.sleep(0)
    pair.near.send(Kind.REQUEST, 1, 1, b"", [memoryview(bytes(8 * MIB))])
    mine = bytearray(b"x" * MIB)
    pair.near.send(Kind.REQUEST, 2, 1, b"", [memoryview(mine)])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    pair.near.withdraw(2)
    mine[:] = b"y" * MIB
    pair.far.resume()
    assert [frame[4] for frame in await pair.far_end.take(2)] == [bytes(8 * MIB), b"x" * MIB]


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for where in ("mem://nobody", f"tcp://127.0.0.1:{port}"):
            with pytest.raises(OSError, match=where) as caught:
                await address.connect(where)
            assert caught.value.errno == errno.ECONNREFUSED


async def test_the_first_address_that_answers_is_taken(place: str) -> None:
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    listener = await address.listen(place, accepted.put_nowait)
    link = await address.connect(f"mem://nobody, {listener.address}/")
    far = await accepted.get()
    for end in (link, far, listener):
        end.close()
    await address.settle()


@pytest.mark.parametrize("bad", ["", "host:1", "tcp://host", "tcp://:1", "tcp://h:x", "tcp://h:70000"])
async def test_malformed_addresses_are_named(bad: str) -> None:
    with pytest.raises(OSError, match=bad or "''") as caught:
        await address.connect(bad)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match=bad or "''"):
        await address.listen(bad, lambda link: None)


async def test_unknown_hosts_are_named() -> None:
    with pytest.raises(OSError, match=r"no-such-host\.invalid"):
        await address.connect("tcp://no-such-host.invalid:1")
    with pytest.raises(OSError, match=r"no-such-host\.invalid"):
        await address.listen("tcp://no-such-host.invalid:1", lambda link: None)


async def test_a_taken_address_is_named(place: str) -> None:
    listener = await address.listen(place, lambda link: None)
    with pytest.raises(OSError, match=listener.address) as caught:
        await address.listen(listener.address, lambda link: None)
    assert caught.value.errno == errno.EADDRINUSE
    listener.close()
    listener.close()
    (await address.listen(listener.address, lambda link: None)).close()
    await address.settle()


# ---------------------------------------------------------------------------------------------------- a bare TCP socket


async def bare(end: End) -> tuple[socket.socket, tcp.TcpLink]:
    """A link to `end`, and the socket at its other side."""
    ours, theirs = socket.socketpair()
    link = tcp.TcpLink(theirs, "test")
    link.start(end)
    ours.setblocking(False)
    return ours, link


async def test_the_other_side_dies_in_the_middle_of_bulk() -> None:
    end = End()
    sock, link = await bare(end)
    whole = encode_frame(Kind.REQUEST, 1, 1, b"body", 1000) + bytes(600)
    await asyncio.get_running_loop().sock_sendall(sock, whole)
    sock.close()
    assert (await end.ended).errno == errno.ECONNRESET
    assert end.frames.empty()
    link.close()


async def test_garbage_ends_the_link_and_says_so() -> None:
    end = End()
    sock, _ = await bare(end)
    await asyncio.get_running_loop().sock_sendall(sock, encode_frame(Kind.REQUEST, 1, 1, b"") + b"GET / HTTP/1.1")
    error = await end.ended
    assert "test: not a nacrefs frame" in str(error)
    assert end.frames.qsize() == 1
    assert await asyncio.get_running_loop().sock_recv(sock, 100) == b""
    sock.close()


async def test_withdrawn_buffers_are_not_written_to_in_mid_receive() -> None:
    end = End()
    sock, link = await bare(end)
    mine = bytearray(2000)
    asked = asyncio.Event()

    def buffers(frame: Frame) -> list[memoryview]:
        asked.set()
        return [memoryview(mine)]

    end.buffers = buffers
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, encode_frame(Kind.REPLY, 5, 0, b"", 2000) + b"x" * 700)
    await asked.wait()
    await asyncio.sleep(0)
    link.withdraw(5)
    await loop.sock_sendall(sock, b"y" * 1300 + encode_frame(Kind.REPLY, 6, 0, b"next"))
    assert [frame[1] for frame in await end.take(2)] == [5, 6]
    assert mine == b"x" * 700 + bytes(1300)
    link.close()
    sock.close()


async def test_listener_out_of_descriptors_goes_on_later() -> None:
    import resource

    accepted: asyncio.Queue[Link] = asyncio.Queue()
    listener = await address.listen("tcp://127.0.0.1:0", accepted.put_nowait)
    host, _, port = listener.address.removeprefix("tcp://").rpartition(":")
    client = socket.socket()
    client.setblocking(False)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
        for _ in range(20):
            await asyncio.sleep(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    link = await accepted.get()
    for end in (link, listener, client):
        end.close()


# --------------------------------------------------------------------------------------------------------------- uvloop


@pytest.fixture(scope="module")
def uvloop_started() -> None:
    """uvloop opens a pipe for signals when it is first used, and keeps it."""
    uvloop.new_event_loop().close()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))


@pytest.mark.parametrize(
    "behaviour",
    [
        test_frames_arrive_in_order_both_ways,
        test_bulk_goes_both_ways_from_and_into_many_buffers,
        test_receiver_without_room_stops_the_sender_and_loses_nothing,
        test_nothing_is_handed_over_while_paused_not_even_what_has_come,
        test_done_is_called_exactly_once_whatever_happens,
        test_withdrawn_bytes_are_not_looked_at_again,
    ],
)
def test_the_same_on_uvloop(behaviour: Callable[[Pair], Awaitable[None]], uvloop_started: None) -> None:
    async def run() -> None:
        async with connector("tcp://127.0.0.1:0") as make:
            pair = await make()
            pair.start()
            await behaviour(pair)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
