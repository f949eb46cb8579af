"""Asking an MDS directly, with a key: what administrators' commands do when no mount is at hand."""

import asyncio
import errno
import json
import os
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from nacrefs.client.control import ost_report
from nacrefs.client.mount.spec import find_keyring, parse_source
from nacrefs.common.auth import load_keyring
from nacrefs.common.handshake import Refused
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.wire import (
    Attach,
    Detach,
    GetOsts,
    Inspect,
    Keepalive,
    Reclaim,
    Statfs,
)

T = TypeVar("T")
DEADLINE_S: Final = 10.0
KEEPALIVE_S: Final = 2.0


def ask(url: str, keyring: str | None, work: Callable[[Remote], Awaitable[T]]) -> T:
    """What `work` learns from the MDS at `url`.

    OSError: ECONNREFUSED and the like if it cannot be reached, EACCES if it refuses our key; ConfigError for a URL or
    keyring that is none.
    """
    address, _ = parse_source(url)
    path = find_keyring(keyring)
    credentials = load_keyring(path).best_credentials()

    async def connected() -> T:
        mds = Remote(address, credentials, f"admin-{uuid.uuid4().hex}", {}, Meter())
        try:
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await mds.open()
            except Refused as error:
                raise OSError(errno.EACCES, f"{address} refuses us ({path}): {error.strerror}") from None
            except TimeoutError:
                raise OSError(errno.ETIMEDOUT, f"cannot reach {address}: no answer") from None
            except OSError as error:
                reason = error.strerror or os.strerror(error.errno or 0)
                raise OSError(error.errno or errno.EIO, f"cannot reach {address}: {reason}") from None
            return await work(mds)
        finally:
            await mds.aclose()

    return asyncio.run(connected())


def ask_attached(where: str, keyring: str | None, work: Callable[[Remote], Awaitable[T]]) -> T:
    """The same with a session, which what changes something needs; `where` may be a mount too, whose MDS and key it
    is then."""
    if "://" in where:
        url = where
    else:
        from nacrefs.client.mount import daemon as mount

        mounted = mount.ask_json(where, "mount")
        url, keyring = mounted["url"], keyring or mounted["keyring"]

    async def attached(mds: Remote) -> T:
        client, host = f"admin-{uuid.uuid4().hex}", os.uname().nodename
        session = await mds.call(Attach(client, host), deadline_s=DEADLINE_S)

        async def greet() -> None:
            """Take the session up again on a new connection, so that what was asked is answered once."""
            nonlocal session
            session = await mds.ask_now(Attach(client, host, session.session))
            if session.grace:
                await mds.ask_now(Reclaim(()))

        mds.greet = greet
        alive = asyncio.get_running_loop().create_task(_stay(mds))
        try:
            return await work(mds)
        finally:
            alive.cancel()
            await asyncio.gather(alive, return_exceptions=True)
            await mds.call(Detach(), deadline_s=DEADLINE_S)

    return ask(url, keyring, attached)


async def _stay(mds: Remote) -> None:
    """Keep the session, however long the work takes."""
    while True:
        await asyncio.sleep(KEEPALIVE_S)
        await mds.call(Keepalive())


async def inspect(mds: Remote, what: str) -> Any:
    """A server's report: `status` or `stats`."""
    return json.loads((await mds.call(Inspect(what), deadline_s=DEADLINE_S)).report)


async def space(mds: Remote) -> dict[str, Any]:
    """The same as a mount's `nacre.df`."""
    table = await mds.call(GetOsts(), deadline_s=DEADLINE_S)
    total = await mds.call(Statfs(), deadline_s=DEADLINE_S)
    return {
        "total_bytes": total.total_bytes,
        "free_bytes": total.free_bytes,
        "used_bytes": total.total_bytes - total.free_bytes,
        "files": total.files,
        "files_free": total.files_free,
        "osts": [ost_report(ost) for ost in table.osts],
    }
