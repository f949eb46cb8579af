"""The path of a fid in a tree that may be damaged."""

from nacrefs.common.fid import ROOT
from nacrefs.mds.engine import Store


def path_if_any(store: Store, fid: int) -> bytes:
    """The path of a fid, the first in order if it has several; empty if it has none, or no way leads to the root."""
    parts, seen = list[bytes](), set[int]()
    while fid != ROOT:
        names = store.fetchall(store.statements.names, (fid,))
        if not names or fid in seen:
            return b""
        seen.add(fid)
        fid, name = min(names)
        parts.append(name)
    return b"/" + b"/".join(reversed(parts))
