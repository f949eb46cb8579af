"""Handshakes, and connections that are lost and made again."""

import asyncio
import errno
import logging
import random
import socket
from typing import Any

import msgspec
import pytest

from nacrefs.common.auth import Key, Keyring, new_keyring
from nacrefs.common.codec import decode_failure, encode
from nacrefs.common.framing import HEADER_BYTES, Frame, Kind, encode_frame
from nacrefs.common.handshake import Refused
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote, Server
from nacrefs.common.rpc import LATER, Call
from nacrefs.common.transport import address
from nacrefs.common.transport.link import Link
from nacrefs.common.wire import (
    PROTOCOL_VERSION,
    Attach,
    Challenge,
    Done,
    Evicted,
    Hello,
    Inspect,
    Inspection,
    Keepalive,
    Message,
    Proof,
    Recall,
    Recalled,
    Role,
    SetPool,
)
from tests.common.endpoints import HANDLERS, KEYRING, Ends, Handlers, ends, results, until, write


@pytest.fixture(params=["mem", "tcp", "rdma"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Recorder:
    """Answers `SetPool` and notes how each request came; may lose the connection before or after."""

    def __init__(self) -> None:
        self.came: list[tuple[str, int, bool, int]] = []
        self.cut = ""

    def handle(self, request: SetPool, call: Call) -> Any:
        self.came.append((request.pool, call.xid, call.resent, call.oldest))
        cut, self.cut = self.cut, ""
        if cut == "before":
            call.peer.close("test")
            return LATER
        if cut == "after":
            link = call.peer.link
            assert link is not None
            link.close("test")
        return Done()


def pools(number: int) -> list[SetPool]:
    return [SetPool(str(index), ()) for index in range(number)]


# ------------------------------------------------------------------------------------------------------------ handshake


async def test_both_sides_learn_who_the_other_is(scheme: str) -> None:
    async with ends(scheme) as both:
        remote = await both.connected()
        assert (remote.server, remote.role, remote.connected) == ("server-1", Role.ADMIN, True)
        assert (both.peer.name, both.peer.role) == ("client-1", Role.ADMIN)
        server = Remote(both.url, KEYRING.credentials(Role.SERVER), "oss-1", {}, Meter())
        await server.open()
        assert server.role is Role.SERVER
        assert {peer.role for peer in both.server.peers} == {Role.ADMIN, Role.SERVER}
        await server.aclose()


@pytest.mark.parametrize(
    ("keyring", "text", "logged"),
    [
        (new_keyring("test-cluster"), "does not have our key 'admin'", "key 'admin' is unknown or wrong"),
        (new_keyring("elsewhere"), "belongs to cluster test-cluster, not to 'elsewhere'", "belongs to cluster"),
        (
            Keyring("test-cluster", {"nobody": Key("client", "ab" * 32)}),
            "does not have our key 'nobody'",
            "key 'nobody' is unknown or wrong",
        ),
    ],
    ids=["wrong key", "wrong cluster", "unknown key"],
)
async def test_strangers_are_refused_on_both_sides_with_the_reason(
    scheme: str, keyring: Keyring, text: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ends(scheme) as both:
        remote = both.remote(keyring=keyring)
        with pytest.raises(Refused, match=text) as caught:
            await remote.open()
        assert caught.value.errno == errno.EACCES
        await until(lambda: both.server.refused)
        (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert record.getMessage().startswith("refused a connection from ")
        assert logged in record.getMessage()
        assert all(key.secret not in caplog.text for key in (*KEYRING.keys.values(), *keyring.keys.values()))
        assert not both.server.peers
        await both.connected()


class Stranger:
    """Plays any part of a handshake by hand."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.frames: asyncio.Queue[tuple[Kind, bytes]] = asyncio.Queue()
        link.start(self)

    def sink(self, frame: Frame) -> list[memoryview]:
        return [memoryview(bytearray(frame.bulk_bytes))]

    def frame(self, frame: Frame) -> None:
        self.frames.put_nowait((frame.kind, bytes(frame.body)))

    def closed(self, link: Link, error: OSError) -> None:
        self.frames.put_nowait((Kind.HELLO, b""))

    def send(self, kind: Kind, message: Message) -> None:
        self.link.send(kind, 0, 0, encode(message))

    async def refusal(self) -> OSError:
        """The failure that comes, and then the end."""
        kind, body = await self.frames.get()
        assert kind is Kind.FAILURE
        assert await self.frames.get() == (Kind.HELLO, b"")
        return decode_failure(body)


HELLO = Hello(PROTOCOL_VERSION, "test-cluster", "client", "stranger", bytes(32))


async def test_an_unknown_key_is_answered_just_as_a_wrong_one(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    async with ends(scheme) as both:
        texts: list[str] = []
        for key in ("client", "no-such"):
            stranger = Stranger(await address.connect(both.url))
            stranger.send(Kind.HELLO, msgspec.structs.replace(HELLO, key=key))
            kind, body = await stranger.frames.get()
            assert kind is Kind.CHALLENGE
            challenge = msgspec.msgpack.decode(body, type=Challenge)
            assert (len(challenge.nonce), len(challenge.proof)) == (32, 32)
            stranger.send(Kind.PROOF, Proof(bytes(32)))
            texts.append(str(await stranger.refusal()).replace(key, "KEY"))
        assert texts == ["[Errno 13] key 'KEY' is unknown or wrong"] * 2
        assert both.server.refused == 2


async def test_the_servers_own_proof_does_not_pass_for_the_clients(scheme: str) -> None:
    async with ends(scheme) as both:
        stranger = Stranger(await address.connect(both.url))
        stranger.send(Kind.HELLO, HELLO)
        _, body = await stranger.frames.get()
        stranger.send(Kind.PROOF, Proof(msgspec.msgpack.decode(body, type=Challenge).proof))
        assert (await stranger.refusal()).errno == errno.EACCES


@pytest.mark.parametrize(
    "changes",
    [
        {"version": PROTOCOL_VERSION + 1},
        {"nonce": b"short"},
        {"client": ""},
        {"client": "x" * 129},
        {"client": "two\nlines"},
        {"key": "a\0b"},
    ],
)
async def test_a_hello_that_is_not_right_is_refused(scheme: str, changes: dict[str, Any]) -> None:
    async with ends(scheme) as both:
        stranger = Stranger(await address.connect(both.url))
        stranger.send(Kind.HELLO, msgspec.structs.replace(HELLO, **changes))
        assert (await stranger.refusal()).errno == errno.EPROTO
        await both.connected()


async def test_a_request_before_the_handshake_is_not_read(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    async with ends(scheme) as both:
        stranger = Stranger(await address.connect(both.url))
        stranger.send(Kind.REQUEST, Inspection(b""))
        assert await stranger.frames.get() == (Kind.HELLO, b"")
        await until(lambda: "no proper HELLO in its handshake" in caplog.text)
        stranger = Stranger(await address.connect(both.url))
        stranger.link.send(Kind.HELLO, 0, 0, encode(HELLO), [memoryview(b"with bulk")])
        assert await stranger.frames.get() == (Kind.HELLO, b"")
        await until(lambda: "nobody wants 9 bytes of bulk" in caplog.text)
        assert not both.pool.used_bytes


@pytest.mark.parametrize(
    ("sent", "logged"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not a nacrefs frame"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "not a nacrefs frame"),
        (bytes(1 << 16), "not a nacrefs frame"),
        (encode_frame(Kind.HELLO, 0, 0, b"not msgpack"), "no proper HELLO"),
        (encode_frame(Kind.HELLO, 0, 0, bytes(1 << 20))[:HEADER_BYTES], "above the limit of 4096"),
        (encode_frame(Kind.HELLO, 0, 0, b"cut off", 5)[:-1], "closed by peer"),
        (b"", "closed by peer"),
    ],
    ids=["HTTP", "TLS", "zeros", "rubbish", "oversize", "truncated", "nothing"],
)
async def test_garbage_on_the_port_is_refused_in_one_line_and_the_server_lives(
    sent: bytes, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ends("tcp") as both:
        host, _, port = both.url.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            await until(lambda: both.server.refused)
        (record,) = caplog.records
        line = record.getMessage()
        assert line.startswith("refused a connection from 127.0.0.1:")
        assert logged in line
        assert "\n" not in line
        remote = await both.connected()
        await remote.call(Inspect(""))


@pytest.mark.parametrize("first", [b"", b"NF", encode_frame(Kind.HELLO, 0, 0, encode(HELLO))])
async def test_a_slow_handshake_is_cut_off(first: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with ends("tcp", handshake_s=0.02) as both:
        host, _, port = both.url.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(first)
            await until(lambda: both.server.refused)
        assert "in 0.02 s" in caplog.text


async def test_a_server_that_does_not_answer_is_given_up_in_time(scheme: str) -> None:
    accepted: list[Link] = []
    listener = await address.listen("tcp://127.0.0.1:0", accepted.append)
    remote = Remote(listener.address, KEYRING.credentials(Role.CLIENT), "c", {}, Meter(), handshake_s=0.02)
    with pytest.raises(OSError, match=r"no CHALLENGE in 0\.02 s") as caught:
        await remote.open()
    assert caught.value.errno == errno.ETIMEDOUT
    await remote.aclose()
    listener.close()
    for link in accepted:
        link.close()


async def refused_again(both: Ends) -> None:
    before = both.server.refused
    await until(lambda: both.server.refused > before)


async def test_random_bytes_at_random_places_never_hurt_the_server(caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(11)
    good = encode_frame(Kind.HELLO, 0, 0, encode(HELLO))
    async with ends("tcp") as both:
        host, _, port = both.url.removeprefix("tcp://").rpartition(":")
        for _ in range(100):
            sent = bytearray(good * 2 if chance.random() < 0.7 else chance.randbytes(chance.randrange(200)))
            for _ in range(chance.randrange(1, 5)):
                if sent:
                    sent[chance.randrange(len(sent))] = chance.randrange(256)
            with socket.create_connection((host, int(port))) as sock:
                sock.sendall(sent)
                sock.shutdown(socket.SHUT_WR)
                await refused_again(both)
        assert len(caplog.records) == 100
        await both.connected()


async def test_closing_a_server_ends_handshakes_even_those_that_have_not_begun(scheme: str) -> None:
    async with ends(scheme) as both:
        strangers = [Stranger(await address.connect(both.url)) for _ in range(3)]
        await both.server.close()
        for stranger in strangers:
            assert await stranger.frames.get() == (Kind.HELLO, b"")


async def test_what_the_server_sends_right_behind_welcome_is_not_lost(scheme: str) -> None:
    async with ends(scheme) as both:
        told: list[Any] = []
        both.server.on_peer = lambda peer: told.append(peer.call(Evicted("at once")))
        await both.connected({Evicted: lambda request, call: Done()})
        await until(lambda: told)
        assert await told[0] == Done()


async def test_garbage_after_the_handshake_is_logged_and_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with ends("tcp") as both:
        remote = await both.connected()
        link: Any = remote.link
        link._sock.send(b"garbage")
        await until(lambda: "not a nacrefs frame" in caplog.text)
        await until(lambda: remote.generation == 2)


# ------------------------------------------------------------------------------------------------------ losing and back


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_what_had_no_reply_is_sent_again_under_its_number_and_marked(scheme: str, cut: str) -> None:
    recorder = Recorder()
    async with ends(scheme, {SetPool: recorder.handle}) as both:
        remote = await both.connected()
        await remote.call(SetPool("first", ()))
        recorder.cut = cut
        assert await remote.call(SetPool("second", ())) == Done()
        await remote.call(SetPool("third", ()))
        assert [came[:3] for came in recorder.came] == [
            ("first", 1, False),
            ("second", 2, False),
            ("second", 2, True),
            ("third", 3, False),
        ]
        assert [oldest for *_, oldest in recorder.came] == [1, 2, 2, 3]
        assert remote.generation == 2


async def test_requests_made_while_disconnected_wait_and_are_not_marked(scheme: str) -> None:
    recorder = Recorder()
    async with ends(scheme, {SetPool: recorder.handle}) as both:
        remote = await both.connected()
        recorder.cut = "before"
        later: list[asyncio.Future[Done]] = []

        def lost(error: OSError) -> None:
            assert not remote.connected
            later.extend(remote.call(request) for request in pools(3))
            remote.call(SetPool("cancelled", ())).cancel()

        remote.on_lost = lost
        await remote.call(SetPool("sent", ()))
        await asyncio.gather(*later)
        assert [came[:3] for came in recorder.came[1:]] == [
            ("sent", 1, True),
            ("0", 2, False),
            ("1", 3, False),
            ("2", 4, False),
        ]
        assert {oldest for *_, oldest in recorder.came} == {1}
        assert remote.outstanding == 0


async def test_the_greeting_goes_first_on_each_connection(scheme: str) -> None:
    order: list[str] = []
    recorder = Recorder()

    def attached(request: Attach, call: Call) -> Any:
        order.append(f"greet {call.resent}")
        raise OSError(errno.EAGAIN, "never mind")

    def handle(request: SetPool, call: Call) -> Any:
        order.append(request.pool)
        return recorder.handle(request, call)

    async with ends(scheme, {Attach: attached, SetPool: handle}) as both:
        remote = both.remote()

        async def greet() -> None:
            await results([remote.ask_now(Attach("c", "h"))])
            order.append("greeted")

        remote.greet = greet
        await remote.open()
        recorder.cut = "after"
        await asyncio.gather(*map(remote.call, pools(2)))
        assert order == ["greet False", "greeted", "0", "greet False", "greeted", "0", "1"] or order == [
            "greet False", "greeted", "0", "1", "greet False", "greeted", "0", "1",
        ]  # fmt: skip
        assert remote.generation == 2


async def test_a_greeting_that_is_cut_off_is_made_anew_and_not_sent_again(scheme: str) -> None:
    came: list[tuple[int, bool]] = []

    def attached(request: Attach, call: Call) -> Any:
        came.append((call.xid, call.resent))
        if len(came) < 4:
            call.peer.close("test")
            return LATER
        raise OSError(errno.EAGAIN, "never mind")

    async with ends(scheme, {Attach: attached, **HANDLERS}) as both:
        remote = both.remote()
        greeted: list[list[Any]] = []

        async def greet() -> None:
            greeted.append(await results([remote.ask_now(Attach("c", "h"))]))
            if isinstance(greeted[-1][0], ConnectionError):
                raise greeted[-1][0]

        remote.greet = greet
        with pytest.raises(ConnectionResetError):
            await remote.open()
        assert remote.outstanding == 0
        remote.open_later()
        assert (await remote.call(Inspect("later"))).report == b"later"
        assert [resent for _, resent in came] == [False] * 4
        assert len({xid for xid, _ in came}) == 4
        assert len(greeted) == 4


async def test_a_greeting_that_fails_by_itself_leaves_nothing_to_be_sent_again(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    handlers: Handlers = {**HANDLERS, Keepalive: lambda request, call: LATER}
    async with ends(scheme, handlers) as both:
        remote = both.remote()
        asked: list[Any] = []

        async def greet() -> None:
            if not asked:
                asked.append(remote.ask_now(Keepalive()))
                raise ValueError("a bug in the greeting")

        remote.greet = greet
        remote.open_later()
        await remote.call(Inspect(""))
        assert isinstance((await results(asked))[0], ConnectionAbortedError)
        assert "greeting" in caplog.text
        assert remote.generation == 1


async def test_a_server_may_call_while_it_is_greeted_and_with_bulk(scheme: str) -> None:
    asked: list[Any] = []

    def attached(request: Attach, call: Call) -> Any:
        async def answer() -> Any:
            peer = call.peer
            asked.append(await peer.call(Recall(())))
            asked.append(await peer.call(write(100_000), data=[memoryview(bytes(100_000))]))
            raise OSError(errno.EAGAIN, "never mind")

        return answer()

    async with ends(scheme, {Attach: attached}, pool_bytes=1 << 17) as both:
        remote = both.remote({Recall: lambda request, call: Recalled(()), **HANDLERS})
        blocking = both.pool.take(1 << 16)
        assert blocking is not None
        asyncio.get_running_loop().call_later(0.05, both.pool.give, blocking)

        async def greet() -> None:
            await results([remote.ask_now(Attach("c", "h"))])

        remote.greet = greet
        await remote.open()
        assert [type(reply).__name__ for reply in asked] == ["Recalled", "Written"]


async def test_an_answer_never_goes_out_on_a_later_connection(scheme: str) -> None:
    """The server's numbers begin anew on each connection: an old answer would pass for that of a new request."""
    go = asyncio.Event()

    async def recalled(request: Recall, call: Call) -> Recalled:
        await go.wait()
        return Recalled(())

    async with ends(scheme) as both:
        remote = await both.connected({Recall: recalled, Evicted: lambda request, call: LATER})
        first = both.peer.call(Recall(()))
        await asyncio.sleep(0.005)
        both.peer.close("test")
        await until(lambda: remote.generation == 2)
        second = both.peer.call(Evicted(""))
        go.set()
        await remote.call(Inspect(""))
        assert not second.done()
        (error,) = await results([first])
        assert isinstance(error, ConnectionResetError)
        second.cancel()


async def test_refusal_and_absence_are_errors_at_first_and_waited_for_later(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ends(scheme) as both:
        remote = await both.connected()
        await both.server.close()
        with pytest.raises(OSError, match=both.url) as caught:
            await both.remote().open()
        assert caught.value.errno == errno.ECONNREFUSED
        waiting = remote.call(Inspect("waited"))
        await until(lambda: "cannot reach" in caplog.text)
        revived = Server(HANDLERS, KEYRING, "server-2", Meter())
        await revived.listen(both.url)
        assert (await waiting).report == b"waited"
        assert remote.server == "server-2"
        assert sum("cannot reach" in record.getMessage() for record in caplog.records) == 1
        await remote.aclose()
        await revived.close()


async def test_a_deadline_also_counts_while_disconnected(scheme: str) -> None:
    async with ends(scheme) as both:
        remote = await both.connected()
        await both.server.close()
        await until(lambda: not remote.connected)
        (error,) = await results([remote.call(Inspect(""), deadline_s=0.0)])
        assert error.errno == errno.ETIMEDOUT
        assert remote.outstanding == 0


async def test_after_aclose_everything_fails_at_once(scheme: str) -> None:
    handlers: Handlers = {**HANDLERS, Keepalive: lambda request, call: LATER}
    async with ends(scheme, handlers) as both:
        remote = await both.connected()
        waiting: asyncio.Future[Any] = remote.call(Keepalive())
        await remote.aclose()
        for future in (waiting, remote.call(Inspect(""))):
            (error,) = await results([future])
            assert isinstance(error, ConnectionError)
        remote.open_later()
        assert not remote.connected
        await remote.aclose()


async def test_a_server_that_closes_waits_for_what_it_does_for_peers_that_have_gone(scheme: str) -> None:
    begun, ended = asyncio.Event(), False

    async def inspected(request: Inspect, call: Call) -> Inspection:
        nonlocal ended
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended = True
        return Inspection(b"")

    async with ends(scheme, {**HANDLERS, Inspect: inspected}) as both:
        remote = await both.connected()
        waiting: asyncio.Future[Any] = remote.call(Inspect(""))
        await begun.wait()
        await remote.aclose()
        await results([waiting])
        await until(lambda: not both.server.peers)
        assert not ended  # what was asked is done all the same: its answer may be asked for again
        await both.server.close()
        assert ended


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 20])
async def test_aclose_at_any_moment_of_connecting_leaves_nothing(scheme: str, turns: int) -> None:
    async with ends(scheme) as both:
        remote = both.remote()
        remote.open_later()
        call: asyncio.Future[Any] = remote.call(Inspect(""))
        for _ in range(turns):
            await asyncio.sleep(0)
        await remote.aclose()
        await results([call])
        await until(lambda: not both.server.peers)


async def test_connections_lost_at_random_lose_and_double_nothing(scheme: str) -> None:
    """Many calls while the connection is cut again and again: each is answered, with its own answer."""
    seen: dict[int, int] = {}
    wrong: list[int] = []

    def handle(request: SetPool, call: Call) -> Any:
        if call.xid in seen and not call.resent:
            wrong.append(call.xid)
        seen[call.xid] = seen.get(call.xid, 0) + 1
        if len(seen) % 37 == 0 and seen[call.xid] == 1:
            link = call.peer.link
            assert link is not None
            asyncio.get_running_loop().call_soon(link.close)
        return Done()

    def echo(request: Inspect, call: Call) -> Inspection:
        return Inspection(request.what.encode())

    async with ends(scheme, {SetPool: handle, Inspect: echo}) as both:
        remote = await both.connected()

        async def work(number: int) -> None:
            for step in range(20):
                assert await remote.call(SetPool(f"{number}", ())) == Done()
                what = f"{number}.{step}"
                assert (await remote.call(Inspect(what))).report == what.encode()

        await asyncio.gather(*map(work, range(10)))
        assert not wrong
        assert len(seen) == 200
        assert remote.generation > 3
        assert remote.outstanding == 0


async def test_peers_come_and_go(scheme: str) -> None:
    events: list[str] = []
    async with ends(scheme) as both:
        both.server.on_peer = lambda peer: events.append(f"+{peer.name}")
        both.server.on_gone = lambda peer: events.append(f"-{peer.name}")
        for name in ("one", "two"):
            remote = await both.connected(name=name)
            await remote.aclose()
            await until(lambda: not both.server.peers)
    assert events == ["+one", "-one", "+two", "-two"]
