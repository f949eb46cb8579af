"""Write-behind: how what a file has pending gets to the OSTs.

Hazard: an extent may be overwritten while it flies. The newer one then waits for the older (`Pending.board`), so that
they cannot arrive in the wrong order.
"""

import asyncio
from typing import TYPE_CHECKING

from nacrefs.client.data.pending import Flight

if TYPE_CHECKING:
    from nacrefs.client.data.file import File


def launch(file: "File", everything: bool = False) -> None:
    """Send what is pending, as far as flights may be under way and enough has gathered; with `everything`, all that can
    fly."""
    store, pending = file.store, file.pending
    write = store.config.write
    layout = file.inode.layout
    most = write.request_bytes * (layout.stripe_count if layout is not None else 1)
    most = min(most, max(write.request_bytes, store.memory.limit_bytes // 8))
    while pending.extents and (everything or len(pending.flights) < write.in_flight):
        if not everything and pending.extents.bytes < write.behind_bytes and not store.memory.short:
            return
        if len(pending.flights) >= 4 * write.in_flight:
            return
        flight = pending.board(most)
        if flight is None:
            return
        flight.task = store.session.spawn(_fly(file, flight))


async def _fly(file: "File", flight: Flight) -> None:
    store = file.store
    landed = False
    try:
        if not store.session.live:
            await store.session.wait_live()
        if flight.dropped:
            return  # the session ended meanwhile: somebody else may have written there since
        written = await store.objects.write(file.inode, list(flight.extents), mtime_ns=file.written_ns)
        landed = True
        file.stored.wrote(written)
        if file.error is not None and not file.inode.gone:
            file.recovered()
    except OSError as error:
        if not flight.dropped:
            file.failed(error)
    finally:
        file.pending.ended(flight, landed)
    if landed and file.pending.extents:
        launch(file, everything=store.memory.short)


def press(file: "File") -> None:
    """Memory is short, or the file was closed: send what is pending."""
    if not file.inline and file.pending.extents and file.error is None:
        launch(file, everything=True)


async def land(file: "File") -> None:
    """Wait until nothing is under way."""
    flights = file.pending.flights
    while flights:
        await asyncio.wait([flight.task for flight in flights if flight.task is not None])


async def write_out(file: "File") -> None:
    """Send all that is pending now and wait for it; OSError if it did not get there."""
    pending, most = file.pending, 4 * file.store.config.write.in_flight
    for _ in range(2):  # the second time for extents that had to wait for older bytes of the same place
        while pending.extents:
            before = len(pending.flights)
            launch(file, everything=True)
            if not pending.extents or len(pending.flights) < most:
                if len(pending.flights) == before:
                    break
                continue
            await land(file)
            if file.error is not None:
                raise file.take_error()
        await land(file)
        if file.error is not None:
            raise file.take_error()
