"""TLS 1.3 over TCP: the same links, through a socket that encrypts. The handshake over keys happens inside.

The certificate says which machine answers, the key says who asks. What a side needs for that stands in its keyring:

    [tls]
    ca = "/etc/nacre/ca.pem"                # who signs certificates; a client checks servers with it
    certificate = "/etc/nacre/host.pem"     # a server's own; a client's, where servers ask for one
    key = "/etc/nacre/host.key"             # mode 0600
    client_certificates = false             # servers: clients must show a certificate, too
    server_name = ""                        # clients: the name in the server's certificate, if not the address's host

Plain TCP (`common.transport.tcp`) knows nothing of this: its links are the same as before, system call for system call.
"""

import asyncio
import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import Iterable
from typing import Any, Final

from nacrefs.common.tlsfiles import Tls
from nacrefs.common.transport import tcp
from nacrefs.common.transport.link import Accept, Link, Listener

log = logging.getLogger("nacre.rpc")

HANDSHAKE_S: Final = 10.0
HANDSHAKES_MAX: Final = 1024
"""Strangers that may be in their TLS handshake at a time."""
_RECORDS_BYTES: Final = 128 * 1024
"""So much is encrypted with one call: eight records."""


class TlsSocket(ssl.SSLSocket):
    """A socket that has the methods which links use, and their errors."""

    def sendmsg(self, buffers: Iterable[Any], *_: Any) -> int:  # type: ignore[override]
        """Encrypt and send the first bytes of some buffers."""
        parts: list[Any] = []
        size = 0
        for buffer in buffers:
            parts.append(buffer)
            size += len(buffer)
            if size >= _RECORDS_BYTES:
                break
        return self.send(parts[0] if len(parts) == 1 else b"".join(parts)[:_RECORDS_BYTES])

    def send(self, data: Any, flags: int = 0) -> int:
        """Encrypt and send; BlockingIOError if the socket takes nothing now."""
        try:
            return super().send(memoryview(data)[:_RECORDS_BYTES], flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError(errno.EAGAIN, "later") from None
        except ssl.SSLError as error:
            raise ConnectionResetError(errno.ECONNRESET, _words(error)) from None

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive and decrypt, as many records as are there and have room; BlockingIOError if there is nothing now, 0
        at the end."""
        view = memoryview(buffer)[:_RECORDS_BYTES]
        total = 0
        try:
            while total < len(view):
                count = super().recv_into(view[total:])
                if not count:
                    break
                total += count
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not total:
                raise BlockingIOError(errno.EAGAIN, "later") from None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return total
        except ssl.SSLError as error:
            raise ConnectionResetError(errno.ECONNRESET, _words(error)) from None
        return total

    def hang_up(self, words: bytes = b"") -> None:
        """Close, having said this as it is. The other side gets it: closing with bytes unread would take it back."""
        try:
            socket.socket.send(self, words)
            while socket.socket.recv(self, _RECORDS_BYTES):
                pass
        except OSError:
            pass
        self.close()

    def recvmsg_into(  # type: ignore[override]
        self, buffers: Iterable[Any], *_: Any
    ) -> tuple[int, list[Any], int, Any]:
        """Receive into the first buffer."""
        return self.recv_into(next(iter(buffers))), [], 0, None


class TlsLink(tcp.TcpLink):
    """A link whose socket may have decrypted bytes that no event announces."""

    def __init__(self, sock: TlsSocket, peername: str) -> None:
        super().__init__(sock, peername)
        self._decrypted = sock

    def resume(self) -> None:
        super().resume()
        self._loop.call_soon(self._readable_again)

    def _readable(self) -> None:
        super()._readable()
        if self._reading and self._closed is None and self._decrypted.pending():
            self._loop.call_soon(self._readable_again)

    def _readable_again(self) -> None:
        if self._reading and self._closed is None and self._decrypted.pending():
            self._readable()


class TlsListener(tcp.TcpListener):
    """Accepts connections, and hands those on that have come through their TLS handshake."""

    scheme = "tls"

    def __init__(self, sock: socket.socket, accept: Accept, tls: Tls) -> None:
        self._tls = tls
        self._handshakes: set[asyncio.Task[None]] = set()
        super().__init__(sock, accept)

    def took(self, sock: socket.socket, peername: str) -> None:
        if len(self._handshakes) >= HANDSHAKES_MAX:
            log.warning("refused a connection from %s: %d others are in their handshake", peername, HANDSHAKES_MAX)
            sock.close()
            return
        task = self._loop.create_task(self._greet(sock, peername))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _greet(self, sock: socket.socket, peername: str) -> None:
        try:
            secured = await _secured(sock, server_context(self._tls), None)
        except (OSError, ValueError) as error:
            log.warning("refused a connection from %s: %s", peername, _refusal(error))
            return
        self._accept(TlsLink(secured, peername))

    def close(self) -> None:
        super().close()
        for task in self._handshakes:
            task.cancel()


async def connect(place: str, tls: Tls | None) -> Link:
    """A link to `HOST:PORT`, whose certificate is checked; OSError that says what is wrong with it."""
    if tls is None or not tls.ca:
        raise OSError(
            errno.EINVAL, f"tls://{place} needs to know who signs its certificate: put `ca` under [tls] in the keyring"
        )
    context = client_context(tls)
    host = tcp.host_of(place, "tls")
    sock = await tcp.connected(place, "tls")
    try:
        secured = await _secured(sock, context, tls.server_name or host)
    except OSError as error:
        raise OSError(_number(error), f"tls://{place}: {_refusal(error)}") from None
    return TlsLink(secured, place)


async def listen(place: str, accept: Accept, tls: Tls | None) -> Listener:
    """Accept links at `HOST:PORT`; OSError that says what is missing."""
    if tls is None or not (tls.certificate and tls.key):
        raise OSError(errno.EINVAL, f"tls://{place} needs `certificate` and `key` under [tls] in the keyring")
    server_context(tls)  # says at once what is wrong
    return TlsListener(await tcp.listening(place, "tls"), accept, tls)


# ------------------------------------------------------------------------------------------------------------- contexts


def client_context(tls: Tls) -> ssl.SSLContext:
    """What a connecting side goes by; OSError naming the file that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _prepare(context, tls, tls.ca)
    return context


def server_context(tls: Tls) -> ssl.SSLContext:
    """What an accepting side goes by; OSError naming the file that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _prepare(context, tls, tls.ca if tls.client_certificates else "")
    if tls.client_certificates:
        if not tls.ca:
            raise OSError(errno.EINVAL, "[tls] client_certificates needs `ca`, which signs them")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _prepare(context: ssl.SSLContext, tls: Tls, ca: str) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.sslsocket_class = TlsSocket
    try:
        if ca:
            context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise OSError(errno.EINVAL, f"[tls] ca = {ca!r} cannot be used: {_words(error)}") from None
    if not tls.certificate:
        return
    try:
        mode = stat.S_IMODE(os.stat(tls.key).st_mode)
        if mode & 0o077:
            raise PermissionError(errno.EACCES, f"others can read it (mode {mode:04o}); run: chmod 600 {tls.key}")
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise OSError(
            errno.EINVAL, f"[tls] certificate = {tls.certificate!r}, key = {tls.key!r} cannot be used: {_words(error)}"
        ) from None


# ------------------------------------------------------------------------------------------------------------ handshake


async def _secured(sock: socket.socket, context: ssl.SSLContext, server_name: str | None) -> TlsSocket:
    """A connected socket after its TLS handshake, as which side `server_name` says (None: the server's)."""
    sock.setblocking(False)
    secured = context.wrap_socket(
        sock, server_side=server_name is None, server_hostname=server_name, do_handshake_on_connect=False
    )
    assert isinstance(secured, TlsSocket)
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            await _handshake(secured)
    except BaseException as error:
        plain = isinstance(error, ssl.SSLError) and (error.reason or "") in _NOT_TLS
        secured.hang_up(_ALERT if plain else b"")
        raise
    return secured


async def _handshake(secured: TlsSocket) -> None:
    while True:
        try:
            secured.do_handshake()
            return
        except ssl.SSLWantReadError:
            await _ready(secured, reading=True)
        except ssl.SSLWantWriteError:
            await _ready(secured, reading=False)


async def _ready(sock: socket.socket, reading: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_reader, loop.remove_reader) if reading else (loop.add_writer, loop.remove_writer)
    number = sock.fileno()
    add(number, _once, ready)
    try:
        await ready
    finally:
        remove(number)


def _once(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


# ---------------------------------------------------------------------------------------------------------------- words

_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
_ALERT: Final = b"\x15\x03\x03\x00\x02\x02\x46"
"""A fatal alert, protocol_version (RFC 8446, 6): tells who speaks frames that TLS is spoken here."""
_REASONS: Final = {
    **dict.fromkeys(_NOT_TLS, "it does not speak TLS (write tcp:// if it is a plain port)"),
    "HTTP_REQUEST": "it speaks HTTP",
    "UNSUPPORTED_PROTOCOL": "it speaks an older TLS than 1.3",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it speaks no TLS 1.3",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know who signed our certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate of ours: put `certificate` and `key` under [tls] in "
    "the keyring",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate, and client_certificates are asked for",
}


def _words(error: BaseException) -> str:
    """What is wrong, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not good: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "the connection ended"
        return _REASONS.get(reason, reason.lower().replace("_", " "))
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def _refusal(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no TLS handshake in {HANDSHAKE_S:g} s"
    if isinstance(error, ssl.SSLEOFError | ConnectionResetError):
        return "it hung up in the TLS handshake (is it a plain port, or does it refuse our certificate?)"
    return _words(error)


def _number(error: OSError) -> int:
    if isinstance(error, ssl.SSLCertVerificationError):
        return errno.EKEYREJECTED
    if isinstance(error, ssl.SSLError):
        return errno.EPROTO
    return error.errno or errno.ETIMEDOUT
