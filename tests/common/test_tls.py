"""Connections under TLS: they carry all that plain ones carry, and say clearly what is wrong with a certificate."""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from nacrefs.common.auth import load_keyring, new_keyring, save_keyring
from nacrefs.common.buffers import BufferPool
from nacrefs.common.keyedit import only
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote, Server
from nacrefs.common.tlsfiles import Tls
from nacrefs.common.transport.tls import client_context
from nacrefs.common.wire import BULK_BYTES_MAX, Inspect, Lookup
from tests.client.world import World, cluster, read_file, write_file
from tests.common.certificates import Authority
from tests.common.endpoints import HANDLERS, read, results, until, write

KEYRING = new_keyring("test-cluster")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ca")


@pytest.fixture(scope="module")
def tls(authority: Authority) -> Tls:
    return authority.sign("host")


@asynccontextmanager
async def served(tls: Tls | None, scheme: str = "tls") -> AsyncGenerator[tuple[Server, str]]:
    pool = BufferPool(32 << 20)
    server = Server(HANDLERS, replace(KEYRING, tls=tls), "server-1", Meter(), pool, 5.0)
    url = await server.listen(f"{scheme}://127.0.0.1:0")
    try:
        yield server, url
    finally:
        await server.close()
        await asyncio.sleep(0.01)
    assert pool.used_bytes == 0


def client_of(url: str, tls: Tls | None) -> Remote:
    return Remote(url, replace(KEYRING, tls=tls).best_credentials(), "c", {}, Meter(), handshake_s=5)


async def refusal(url: str, tls: Tls | None) -> OSError:
    remote = client_of(url, tls)

    async def ask() -> None:
        await remote.open()
        await remote.call(Inspect("x"))

    with pytest.raises(OSError, match=r".") as caught:
        await asyncio.wait_for(ask(), 10)
    await remote.aclose()
    return caught.value


async def test_all_sizes_go_both_ways(tls: Tls) -> None:
    async with served(tls) as (_, url):
        assert url.startswith("tls://127.0.0.1:")
        remote = client_of(url, tls)
        await remote.open()
        for size in (1, 100, 16 << 10, (16 << 10) + 1, 300_001, 1 << 20, BULK_BYTES_MAX):
            data = memoryview((bytes(range(256)) * (size // 256 + 1))[:size])
            written = await remote.call(write(size), data=[data[: size // 2], data[size // 2 :]])
            assert (written.size, written.version) == (size, sum(data))
            into = memoryview(bytearray(size))
            await remote.call(read(size), into=[into[: size // 3], into[size // 3 :]])
            assert into == data
        text = "x" * 100_000
        assert (await remote.call(Inspect(text))).report == text.encode()
        await remote.aclose()


async def test_many_at_once_lose_nothing(tls: Tls) -> None:
    async with served(tls) as (_, url):
        remote = client_of(url, tls)
        await remote.open()
        size = 200_000
        data = memoryview(bytes(size))
        rooms = [memoryview(bytearray(size)) for _ in range(40)]
        calls: list[Any] = [remote.call(read(size), into=[room]) for room in rooms]
        calls += [remote.call(write(size), data=[data]) for _ in rooms]
        calls += [remote.call(Lookup(1, b"n%d" % number)) for number in range(500)]
        assert not [result for result in await results(calls) if isinstance(result, BaseException)]
        assert all(room[:256] == bytes(range(256)) for room in rooms)
        await remote.aclose()


async def test_a_connection_that_is_paused_goes_on_with_what_was_decrypted_before(tls: Tls) -> None:
    async with served(tls) as (server, url):
        remote = client_of(url, tls)
        await remote.open()
        (peer,) = server.peers
        assert peer.link is not None
        for _ in range(20):
            calls = [remote.call(Lookup(1, b"x" * 200)) for _ in range(100)]
            await asyncio.sleep(0)
            peer.link.pause()
            await asyncio.sleep(0.001)
            peer.link.resume()
            assert not [result for result in await results(calls) if isinstance(result, BaseException)]
        await remote.aclose()


async def test_it_connects_again(tls: Tls) -> None:
    async with served(tls) as (server, url):
        remote = client_of(url, tls)
        await remote.open()
        for generation in (1, 2, 3):
            await remote.call(Inspect("x"))
            assert remote.generation == generation
            for peer in list(server.peers):
                peer.close("cut by the test")
        await remote.call(Inspect("x"))
        await remote.aclose()


# ----------------------------------------------------------------------------------------------------- what is refused


async def test_a_server_whose_certificate_somebody_else_signed_is_refused(
    tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Authority(tmp_path, "other")
    async with served(tls) as (server, url):
        error = await refusal(url, replace(tls, ca=str(other.ca)))
        assert error.errno == errno.EKEYREJECTED
        assert "its certificate is not good: unable to get local issuer certificate" in str(error)
        await until(lambda: "it does not know who signed our certificate" in caplog.text)
        assert not server.peers


async def test_a_certificate_for_another_host_or_another_time_is_refused(authority: Authority) -> None:
    for certificate, words in (
        (authority.sign("elsewhere", host="192.0.2.7"), "IP address mismatch"),
        (authority.sign("old", days=-1), "certificate has expired"),
    ):
        async with served(certificate) as (_, url):
            assert words in str(await refusal(url, certificate))
    async with served(authority.sign("moved", host="192.0.2.7")) as (_, url):
        remote = client_of(url, Tls(ca=str(authority.ca), server_name="192.0.2.7"))
        await remote.open()
        await remote.aclose()


async def test_a_client_without_certificate_is_refused_where_one_is_wanted(
    tls: Tls, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Authority(tmp_path, "other").sign("stranger")
    async with served(replace(tls, client_certificates=True)) as (server, url):
        bare = await refusal(url, Tls(ca=tls.ca))
        assert "it wants a certificate of ours" in str(bare) or "closed by peer" in str(bare)
        await refusal(url, replace(stranger, ca=tls.ca))
        await until(lambda: "shows no certificate" in caplog.text)
        await until(lambda: "its certificate is not good" in caplog.text)
        assert not server.peers
        remote = client_of(url, authority.sign("client"))
        await remote.open()
        await remote.aclose()


async def test_plain_and_tls_say_so_when_they_meet(tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tls) as (_, url):
        error = await refusal(url.replace("tls://", "tcp://"), tls)
        assert "speaks TLS" in str(error)
        await until(lambda: "it does not speak TLS" in caplog.text)
    async with served(None, "tcp") as (_, url):
        error = await refusal(url.replace("tcp://", "tls://"), tls)
        assert "TLS handshake" in str(error) or "does not speak TLS" in str(error)
        await until(lambda: "the other side speaks TLS" in caplog.text)


async def test_what_is_missing_is_named(tls: Tls, tmp_path: Path) -> None:
    loose = tmp_path / "loose.key"
    loose.write_bytes(Path(tls.key).read_bytes())
    loose.chmod(0o640)
    for bad, words in (
        (None, "needs `certificate` and `key` under"),
        (Tls(ca=tls.ca), "needs `certificate` and `key` under"),
        (replace(tls, certificate="/none"), "No such file"),
        (replace(tls, key=str(loose)), f"others can read it .mode 0640.; run: chmod 600 {loose}"),
        (replace(tls, client_certificates=True, ca=""), "client_certificates needs `ca`"),
        (replace(tls, client_certificates=True, ca="/none"), "ca = '/none' cannot be used"),
    ):
        with pytest.raises(OSError, match=words):
            await Server(HANDLERS, replace(KEYRING, tls=bad), "s", Meter()).listen("tls://127.0.0.1:0")
    async with served(tls) as (_, url):
        assert "who signs its certificate" in str(await refusal(url, None))


async def test_older_tls_is_refused(tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
    """The other side cannot talk us down to TLS 1.2."""
    context = client_context(tls)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with served(tls) as (_, url):
        host, port = url.removeprefix("tls://").split(":")

        def connect() -> None:
            with socket.create_connection((host, int(port))) as sock, pytest.raises(ssl.SSLError, match="VERSION"):
                context.wrap_socket(sock, server_hostname=host)

        await asyncio.to_thread(connect)
        await until(lambda: "older TLS" in caplog.text)


async def test_garbage_and_silence_on_a_tls_port_hold_up_nobody(tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with served(tls) as (_, url):
        host, port = url.removeprefix("tls://").split(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), bytes(1000)):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(garbage)
            with contextlib.suppress(ConnectionResetError):
                while await reader.read(1000):
                    pass
            writer.close()
        remote = client_of(url, tls)
        await remote.open()
        assert (await remote.call(Inspect("x"))).report == b"x"
        await remote.aclose()
        assert "it speaks HTTP" in caplog.text
        for _, writer in silent:
            writer.close()


# ------------------------------------------------------------------------------------------------------------- in files


def test_a_keyring_says_where_certificates_are(tls: Tls, tmp_path: Path) -> None:
    keyring = replace(KEYRING, tls=replace(tls, client_certificates=True, server_name="mds"))
    save_keyring(tmp_path / "keyring", keyring)
    assert load_keyring(tmp_path / "keyring") == keyring
    assert only(keyring, ["client"]).tls == Tls(ca=tls.ca)


async def test_a_whole_cluster_under_tls(tls: Tls, tmp_path: Path) -> None:
    async with encrypted(tmp_path, tls) as world:
        one, two = await world.vfs(), await world.vfs()
        data = bytes(range(251)) * 8000
        await write_file(one, one.root, b"file", data)
        assert await read_file(two, two.root, b"file") == data
        assert all(ost.address.startswith("tls://") for ost in one.session.osts.values())


def encrypted(directory: Path, tls: Tls) -> World:
    world = cluster(directory, scheme="tls")
    world.keyring = replace(world.keyring, tls=tls)
    return world
