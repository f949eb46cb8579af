"""Calls between two connected sides."""

import asyncio
import errno
import logging
import random
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from nacrefs.common.codec import decode_failure, encode, request_types
from nacrefs.common.framing import Frame, Kind
from nacrefs.common.rpc import BACKLOG_BYTES_MAX, IN_SERVICE_MAX, LATER, Call, check_service
from nacrefs.common.wire import (
    BODY_BYTES_MAX,
    Attr,
    Data,
    Done,
    Evicted,
    GetXattr,
    Inspect,
    Inspection,
    Keepalive,
    Lookup,
    Recall,
    Recalled,
    SetPool,
    Statfs,
    XattrValue,
)
from tests.common.endpoints import HANDLERS, Ends, Handlers, ends, read, results, until, write


@pytest.fixture(params=["mem", "tcp", "rdma"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def both(scheme: str) -> AsyncGenerator[Ends]:
    async with ends(scheme) as both:
        yield both


async def raised(future: "asyncio.Future[Any]") -> OSError:
    with pytest.raises(OSError) as caught:  # noqa: PT011  (looked at by the caller)
        await future
    return caught.value


# --------------------------------------------------------------------------------------------------------------- asking


async def test_a_reply_has_the_type_that_its_request_names(both: Ends) -> None:
    remote = await both.connected()
    entry = await remote.call(Lookup(1, b"name"))
    assert entry.node is not None
    assert (entry.node.attr, (await remote.call(Lookup(1, b"absent"))).node) == (Attr(*range(12)), None)
    assert (await remote.call(Inspect("status"))).report == b"status"


async def test_many_calls_at_once_get_their_own_replies(both: Ends) -> None:
    remote = await both.connected()
    replies = await asyncio.gather(*(remote.call(Inspect(str(number))) for number in range(1000)))
    assert [reply.report for reply in replies] == [b"%d" % number for number in range(1000)]
    assert remote.outstanding == 0


async def test_bulk_comes_into_the_callers_buffers(both: Ends) -> None:
    remote = await both.connected()
    buffers = [memoryview(bytearray(size)) for size in (100, 1 << 20, 5000)]
    size = sum(map(len, buffers))
    data = await remote.call(read(size), into=buffers)
    assert data.lengths == (size,)
    whole = b"".join(buffers)
    assert whole == (bytes(range(256)) * (size // 256 + 1))[:size]


async def test_less_bulk_than_asked_for_fills_the_first_buffers(both: Ends) -> None:
    remote = await both.connected()
    buffers = [memoryview(bytearray(b"-" * 10)) for _ in range(3)]
    await remote.call(read(15), into=buffers)
    assert b"".join(buffers) == bytes(range(15)) + b"-" * 15


async def test_more_bulk_than_asked_for_fails_that_call_only(both: Ends) -> None:
    remote = await both.connected()
    mine = memoryview(bytearray(10))
    assert (await raised(remote.call(read(100_000), into=[mine]))).errno == errno.EPROTO
    assert not any(mine)
    await remote.call(read(100_000))
    await remote.call(Inspect("still there"))
    assert remote.generation == 1


async def test_bulk_goes_with_a_request(both: Ends) -> None:
    remote = await both.connected()
    data = random.Random(1).randbytes(3 << 20)
    view = memoryview(data)
    written = await remote.call(write(len(data)), data=[view[:7], view[7:7], view[7:]])
    assert (written.size, written.version) == (len(data), sum(data))
    assert (await remote.call(write(0))).size == 0


async def test_more_bulk_than_the_pool_has_waits_its_turn(scheme: str) -> None:
    async with ends(scheme, pool_bytes=2 << 20) as both:
        remote = await both.connected()
        other = await both.connected(name="client-2")
        data = memoryview(bytes(1 << 20))
        calls = [which.call(write(1 << 20), data=[data]) for _ in range(20) for which in (remote, other)]
        assert {reply.size for reply in await asyncio.gather(*calls)} == {1 << 20}


async def test_absorb_sees_each_reply_before_the_next_frame_is_handled(both: Ends) -> None:
    order: list[str] = []

    def recalled(request: Recall, call: Call) -> Recalled:
        order.append("recall")
        return Recalled(())

    remote = await both.connected({Recall: recalled})
    remote.absorb = lambda request, reply: order.append(type(reply).__name__)
    peer = both.peer

    def answer(request: Inspect, call: Call) -> Any:
        call.reply(Inspection(b""))
        peer.call(Recall(()))
        return LATER

    peer.service = {**HANDLERS, Inspect: answer}
    await remote.call(Inspect(""))
    await until(lambda: len(order) == 2)
    assert order == ["Inspection", "recall"]


async def test_an_absorb_that_fails_fails_its_call_and_nothing_else(both: Ends) -> None:
    remote = await both.connected()

    def absorb(request: Any, reply: Any) -> None:
        raise ValueError("cannot take it in")

    remote.absorb = absorb
    with pytest.raises(ValueError, match="cannot take it in"):
        await remote.call(Inspect(""))
    remote.absorb = None
    await remote.call(Inspect(""))


async def test_the_server_calls_its_client(both: Ends) -> None:
    remote = await both.connected({Evicted: lambda request, call: Done()})
    assert await both.peer.call(Evicted("test")) == Done()
    assert (await raised(both.peer.call(Recall(())))).errno == errno.ENOSYS
    await remote.call(Inspect(""))


# ------------------------------------------------------------------------------------------------------------- failures


async def test_an_errno_is_an_errno_at_the_other_end(scheme: str) -> None:
    async def later(request: Keepalive, call: Call) -> Done:
        raise OSError(errno.EDQUOT, "quota of user 7 is used up")

    def now(request: SetPool, call: Call) -> Done:
        raise FileExistsError(errno.EEXIST, "there is one already")

    async with ends(scheme, {Keepalive: later, SetPool: now}) as both:
        remote = await both.connected()
        error = await raised(remote.call(Keepalive()))
        assert (error.errno, error.strerror) == (errno.EDQUOT, "quota of user 7 is used up")
        error = await raised(remote.call(SetPool("p", ())))
        assert (type(error), error.strerror) == (FileExistsError, "there is one already")


async def test_anything_unexpected_is_eio_and_one_log_record_with_the_requests_number(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def later(request: Keepalive, call: Call) -> Done:
        raise RuntimeError("secret detail")

    def now(request: SetPool, call: Call) -> Done:
        raise OSError("without a number")

    def unencodable(request: Inspect, call: Call) -> Any:
        call.push([memoryview(b"never sent")], lambda: released.append(1))
        return Inspection(1 << 80)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    released: list[int] = []
    async with ends(scheme, {Keepalive: later, SetPool: now, Inspect: unencodable}) as both:
        remote = await both.connected()
        for request in (Keepalive(), SetPool("p", ()), Inspect("")):
            caplog.clear()
            error = await raised(remote.call(request))
            assert error.errno == errno.EIO
            assert "secret" not in str(error)
            (record,) = caplog.records
            name = f"{type(request).__name__} client-1/"
            assert record.getMessage().startswith(name)
            assert record.getMessage().removeprefix(name).split()[0] in str(error)
            assert record.exc_info is not None
        assert released == [1]


class Raw:
    """Sends frames of any content as an authenticated client, and keeps what comes back."""

    def __init__(self, both: Ends) -> None:
        self.remote = both.remote()
        self.frames: asyncio.Queue[tuple[Kind, int, bytes]] = asyncio.Queue()

    async def open(self) -> None:
        await self.remote.open()
        assert self.remote.link is not None
        self.link = self.remote.link
        self.link.start(self)

    def sink(self, frame: Frame) -> list[memoryview]:
        return [memoryview(bytearray(frame.bulk_bytes))]

    def frame(self, frame: Frame) -> None:
        self.frames.put_nowait((frame.kind, frame.xid, bytes(frame.body)))

    def closed(self, link: Any, error: OSError) -> None:
        self.frames.put_nowait((Kind.FAILURE, -1, b""))
        self.remote.closed(link, error)

    async def ask(self, body: bytes, bulk: bytes = b"") -> OSError:
        self.link.send(Kind.REQUEST, 77, 77, body, [memoryview(bulk)] if bulk else [])
        kind, xid, answer = await self.frames.get()
        assert (kind, xid) == (Kind.FAILURE, 77)
        return decode_failure(answer)


async def test_unknown_and_malformed_requests_are_refused_and_the_server_lives(both: Ends) -> None:
    raw = Raw(both)
    await raw.open()
    for body in (msgspec.msgpack.encode([12345, "what"]), msgspec.msgpack.encode([0])):
        error = await raw.ask(body, b"some bulk")
        assert (error.errno, "unknown here" in str(error)) == (errno.ENOSYS, True)
    good = encode(Lookup(1, b"name"))
    deep = b"\x91" * 100_000 + b"\xc0"
    bad_text = msgspec.msgpack.encode([38, ""])[:-1] + b"\xa2\xff\xfe"
    for body in (
        b"",
        good[:-1],
        good + b"x",
        b"\xc1",
        encode(Done()),
        deep,
        bad_text,
        msgspec.msgpack.encode([16, -1]),
    ):
        assert (await raw.ask(body, b"some bulk")).errno == errno.EPROTO
    assert (await raw.ask(encode(Statfs()))).errno == errno.ENOSYS
    assert both.pool.used_bytes == 0
    raw.link.send(Kind.REQUEST, 78, 78, encode(Inspect("well")))
    assert (await raw.frames.get())[:2] == (Kind.REPLY, 78)


async def test_a_frame_out_of_place_ends_the_connection(both: Ends, caplog: pytest.LogCaptureFixture) -> None:
    raw = Raw(both)
    await raw.open()
    raw.link.send(Kind.HELLO, 0, 0, b"", [memoryview(b"with bulk")])
    assert (await raw.frames.get())[1] == -1
    assert "client-1 sent a HELLO frame out of place" in caplog.text


async def test_replies_that_nobody_waits_for_are_ignored(both: Ends) -> None:
    raw = Raw(both)
    await raw.open()
    for kind in (Kind.REPLY, Kind.FAILURE):
        raw.link.send(kind, 12345, 0, b"rubbish", [memoryview(bytes(100_000))])
    raw.link.send(Kind.REQUEST, 1, 1, encode(Inspect("")))
    assert (await raw.frames.get())[0] is Kind.REPLY


async def test_a_malformed_reply_fails_its_call(both: Ends) -> None:
    remote = await both.connected()
    raw = Raw(both)
    both.peer.service = {}
    link = both.peer.link
    assert link is not None
    link.start(raw)
    for kind in (Kind.REPLY, Kind.FAILURE):
        future = remote.call(Inspect(""))
        _, xid, _ = await raw.frames.get()
        link.send(kind, xid, 0, b"\xc1")
        assert (await raised(future)).errno == errno.EPROTO
    link.start(both.peer)


async def test_random_requests_never_hurt_the_server(both: Ends) -> None:
    chance = random.Random(7)
    raw = Raw(both)
    await raw.open()
    samples = [encode(Lookup(1, b"name")), encode(read(10)), encode(write(4)), encode(Recall(()))]
    for _ in range(500):
        body = bytearray(chance.choice(samples) if chance.random() < 0.8 else chance.randbytes(chance.randrange(40)))
        for _ in range(chance.randrange(4)):
            if body:
                body[chance.randrange(len(body))] = chance.randrange(256)
        raw.link.send(Kind.REQUEST, 5, 5, bytes(body), [memoryview(bytes(chance.randrange(3) * 50))])
        await raw.frames.get()
    assert len(both.server.peers) == 1


# ---------------------------------------------------------------------------------------------------- later and bounded


async def test_an_answer_may_come_later_and_out_of_order(scheme: str) -> None:
    waiting: list[Call] = []

    def keep(request: Inspect, call: Call) -> Any:
        waiting.append(call)
        return LATER

    async with ends(scheme, {Inspect: keep}) as both:
        remote = await both.connected()
        futures = [remote.call(Inspect(str(number))) for number in range(3)]
        await until(lambda: len(waiting) == 3)
        waiting[2].reply(Inspection(b"2"))
        assert (await futures[2]).report == b"2"
        waiting[0].fail(OSError(errno.ENOENT, "no"))
        assert (await raised(futures[0])).errno == errno.ENOENT
        waiting[1].reply(waiting[1].decode_reply(encode(Inspection(b"1"))))
        assert (await futures[1]).report == b"1"


async def test_nothing_that_is_asked_after_a_handler_returns_overtakes_its_answer(both: Ends) -> None:
    order: list[str] = []

    async def recalled(request: Recall, call: Call) -> Recalled:
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(remote.call, Inspect(""))
        return Recalled(())

    def inspected(request: Inspect, call: Call) -> Inspection:
        order.append("asked later")
        return Inspection(b"")

    remote = await both.connected({Recall: recalled})
    peer = both.peer
    peer.service = {**HANDLERS, Inspect: inspected}
    peer.absorb = lambda request, reply: order.append("answer")
    await peer.call(Recall(()))
    await until(lambda: len(order) == 2)
    assert order == ["answer", "asked later"]


async def test_a_second_answer_is_logged_and_dropped(both: Ends, caplog: pytest.LogCaptureFixture) -> None:
    released: list[int] = []

    def twice(request: Inspect, call: Call) -> Inspection:
        call.reply(Inspection(b"first"))
        call.push([memoryview(b"x")], lambda: released.append(1))
        return Inspection(b"second")

    remote = await both.connected()
    both.peer.service = {**HANDLERS, Inspect: twice}
    assert (await remote.call(Inspect(""))).report == b"first"
    assert "answered twice" in caplog.text
    assert released == [1]
    both.peer.service = HANDLERS
    assert (await remote.call(Inspect("third"))).report == b"third"


async def test_a_client_with_too_much_in_service_is_not_read_from_until_half_is_answered(scheme: str) -> None:
    waiting: list[Call] = []

    def keep(request: Inspect, call: Call) -> Any:
        waiting.append(call)
        return LATER

    async with ends(scheme, {Inspect: keep}) as both:
        remote = await both.connected()
        futures = [remote.call(Inspect(str(number))) for number in range(3 * IN_SERVICE_MAX)]
        await until(lambda: len(waiting) >= IN_SERVICE_MAX)
        await asyncio.sleep(0.01)
        assert len(waiting) == IN_SERVICE_MAX
        for call in waiting[: IN_SERVICE_MAX // 2 - 1]:
            call.reply(Inspection(b""))
        await asyncio.sleep(0.01)
        assert len(waiting) == IN_SERVICE_MAX
        waiting[-1].reply(Inspection(b""))
        await until(lambda: len(waiting) > IN_SERVICE_MAX)
        answered = IN_SERVICE_MAX // 2 - 1
        while answered < 3 * IN_SERVICE_MAX:
            if answered == len(waiting):
                await asyncio.sleep(0)
                continue
            if not waiting[answered].answered:
                waiting[answered].reply(Inspection(b""))
            answered += 1
        assert len(await asyncio.gather(*futures)) == 3 * IN_SERVICE_MAX


async def test_a_client_that_does_not_fetch_its_answers_is_not_read_from(scheme: str) -> None:
    served = 0
    large = bytes(1 << 20)

    def value(request: GetXattr, call: Call) -> XattrValue:
        nonlocal served
        served += 1
        return XattrValue(large)

    async with ends(scheme, {GetXattr: value, **HANDLERS}) as both:
        remote = await both.connected()
        assert remote.link is not None
        remote.link.pause()
        futures = [remote.call(GetXattr(1, b"")) for _ in range(10)]
        for _ in range(20):
            await asyncio.sleep(0.001)
            futures += [remote.call(GetXattr(1, b"")) for _ in range(5)]
        at_most = (BACKLOG_BYTES_MAX >> 20) + 20
        assert served < at_most
        remote.link.resume()
        replies = await asyncio.gather(*futures)
        assert served == len(replies) == 110


async def test_handlers_that_run_when_their_client_goes_lose_their_answer_and_nothing_else(scheme: str) -> None:
    go = asyncio.Event()
    released: list[int] = []

    async def slow(request: Any, call: Call) -> Data:
        assert len(call.pull()) == 100_000
        await go.wait()
        call.push([memoryview(b"data")], lambda: released.append(1))
        return Data((4,), b"", 1)

    async with ends(scheme, {type(write(0)): slow}) as both:
        remote = await both.connected()
        peer = both.peer
        remote.call(write(100_000), data=[memoryview(bytes(100_000))])
        await until(lambda: both.pool.used_bytes)
        await remote.aclose()
        await until(lambda: not both.server.peers)
        assert both.pool.used_bytes
        go.set()
        await peer.drain()
        assert released == [1]
        assert both.pool.used_bytes == 0


async def test_closing_a_server_ends_handlers_even_those_that_have_not_begun(scheme: str) -> None:
    begun: list[int] = []

    async def slow(request: Any, call: Call) -> Data:
        begun.append(1)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    def close_at_once(request: Inspect, call: Call) -> Inspection:
        call.peer.close("test")
        return Inspection(b"")

    async with ends(scheme, {type(write(0)): slow, Inspect: close_at_once}) as both:
        remote = await both.connected()
        lost: list[OSError] = []
        remote.on_lost = lost.append
        calls = [remote.call(write(10), data=[memoryview(bytes(10))]), remote.call(Inspect(""))]
        await until(lambda: lost)
        await until(lambda: both.pool.used_bytes == 0)
        await remote.aclose()
        assert all(isinstance(result, OSError) for result in await results(calls))
        assert not begun


async def test_bulk_cut_off_in_the_middle_gives_its_buffer_back() -> None:
    async with ends("tcp") as both:
        raw = Raw(both)
        await raw.open()
        raw.link.send(Kind.REQUEST, 1, 1, encode(write(8 << 20)), [memoryview(bytes(8 << 20))])
        for _ in range(1000):
            if both.pool.used_bytes:
                break
            await asyncio.sleep(0)
        assert both.pool.used_bytes
        await raw.remote.aclose()
        await until(lambda: not both.server.peers)
        assert both.pool.used_bytes == 0


# ------------------------------------------------------------------------------------------- deadlines and cancellation


async def test_a_deadline_fails_the_call_and_a_late_reply_is_recognised(scheme: str) -> None:
    waiting: list[Call] = []

    def keep(request: Any, call: Call) -> Any:
        waiting.append(call)
        return LATER

    async with ends(scheme, {type(read(0)): keep, Inspect: HANDLERS[Inspect]}) as both:
        remote = await both.connected()
        mine = memoryview(bytearray(10))
        error = await raised(remote.call(read(10), into=[mine], deadline_s=0.0))
        assert (error.errno, "no reply to Read in time" in str(error)) == (errno.ETIMEDOUT, True)
        assert remote.outstanding == 1
        await until(lambda: waiting)
        waiting[0].push([memoryview(b"0123456789")])
        waiting[0].reply(Data((10,), b"", 1))
        await remote.call(Inspect(""), deadline_s=60)
        assert remote.outstanding == 0
        assert not any(mine)


async def test_a_cancelled_call_gets_nothing_into_its_buffers(both: Ends) -> None:
    remote = await both.connected()
    mine = memoryview(bytearray(8 << 20))
    future = remote.call(read(8 << 20), into=[mine])
    assert remote.link is not None
    for _ in range(100):
        await asyncio.sleep(0)
        if any(mine[:1000]):
            break
    future.cancel()
    await results([future])
    seen = bytes(mine)
    await remote.call(Inspect(""))
    assert mine == seen
    assert remote.outstanding == 0


async def test_a_cancelled_call_does_not_look_at_its_data_again(both: Ends) -> None:
    remote = await both.connected()
    got: list[int] = []

    def written(request: Any, call: Call) -> Any:
        got.append(sum(call.pull()))
        return HANDLERS[type(request)](request, call)

    both.peer.service = {**HANDLERS, type(write(0)): written}
    first = remote.call(write(8 << 20), data=[memoryview(b"\1" * (8 << 20))])
    mine = bytearray(b"\1" * 1000)
    second = remote.call(write(1000), data=[memoryview(mine)])
    second.cancel()
    await results([second])
    mine[:] = b"\2" * 1000
    await first
    await remote.call(Inspect(""))
    assert got == [8 << 20, 1000]


# -------------------------------------------------------------------------------------------------------------- service


def test_a_service_handles_exactly_what_it_is_meant_to() -> None:
    check_service(HANDLERS, list(HANDLERS))
    with pytest.raises(RuntimeError, match=r"lacks \['Statfs'\]"):
        check_service(HANDLERS, [*HANDLERS, Statfs])
    with pytest.raises(RuntimeError, match=r"no business with \['Inspect'\]"):
        check_service(HANDLERS, [kind for kind in HANDLERS if kind is not Inspect])


def test_every_request_has_a_decoder_for_its_reply() -> None:
    assert len(request_types()) > 40
    assert len(encode(Inspection(bytes(100)))) < BODY_BYTES_MAX


async def test_requests_are_counted_on_both_sides(both: Ends) -> None:
    handlers: Handlers = dict(HANDLERS)

    def failing(request: Statfs, call: Call) -> Any:
        raise OSError(errno.EIO, "disk")

    handlers[Statfs] = failing
    remote = await both.connected()
    both.peer.service = handlers
    logging.getLogger("nacre.rpc").debug("counted")
    await results([remote.call(Inspect("")), remote.call(Statfs()), remote.call(Statfs())])
    for meter in (remote.meter, both.server.meter):
        assert (meter.tallies["Inspect"].count, meter.tallies["Statfs"].failed) == (1, 2)
