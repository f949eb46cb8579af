"""A client that does not keep its promises: it opens a file, and writes to it when told, whatever has happened since.

    python -m tests.faults.rogue MDS_URL KEYRING NAME

It says `ready ADDRESS` (of the OSS that has the file's first stripe). For each line on its standard input it sends one
write of 4 KiB of `o`, and says `sent`, then `accepted` or the name of the error when it is answered.
"""

import asyncio
import errno
import sys
from pathlib import Path

from nacrefs.common.auth import load_keyring
from nacrefs.common.checksum import block_sums
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from nacrefs.common.wire import Attach, GetAttr, Lookup, Mode, Open, Role, Want, Write

BYTES = b"o" * 4096


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def main(url: str, keyring: str, name: str) -> None:
    credentials = load_keyring(Path(keyring)).credentials(Role.CLIENT)
    mds = Remote(url, credentials, "rogue", {}, Meter())
    await mds.open()
    session = await mds.call(Attach("rogue", "rogue"))
    found = await mds.call(Lookup(session.root, name.encode()))
    assert found.node is not None
    fid = found.node.attr.fid
    await mds.call(Open(fid, Mode.READ | Mode.WRITE))
    node = await mds.call(GetAttr(fid, Want.LEASE | Want.LAYOUT))
    layout, capability = node.layout, node.capability
    assert layout is not None
    assert capability is not None
    address = next(ost.address for ost in session.osts if ost.index == layout.osts[0])
    oss = Remote(address, credentials, f"{session.session}.rogue", {}, Meter())
    await oss.open()
    say(f"ready {address}")
    view = memoryview(BYTES)
    request = Write(
        layout.osts[0], fid, 0, layout.generation, capability, ((0, len(view)),), block_sums(view, 0), sync=True
    )
    while await asyncio.to_thread(sys.stdin.readline):
        answer = asyncio.ensure_future(oss.call(request, data=[view]))
        await asyncio.sleep(0)
        say("sent")
        try:
            await answer
            say("accepted")
        except OSError as error:
            say(errno.errorcode.get(error.errno or 0, "?"))
    await oss.aclose()
    await mds.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
