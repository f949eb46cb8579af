"""A mount in a process of its own: `python -m tests.fuse.daemon DIRECTORY` says `mounted` and serves it."""

import asyncio
import sys

from nacrefs.client.fuse.session import Session
from tests.client.fuse.memory import MemoryFilesystem


async def main() -> None:
    async with Session(MemoryFilesystem(), "memory", sys.argv[1]) as session:
        print("mounted", flush=True)  # noqa: T201
        await session.unmounted()


if __name__ == "__main__":
    asyncio.run(main())
