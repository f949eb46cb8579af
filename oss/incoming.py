"""The bytes of a `Write`, checked against their sums before anything else is done with them."""

import errno
from typing import Final

from nacrefs.common.checksum import SUM_BYTES, block_sums, first_mismatch
from nacrefs.common.fid import format_fid
from nacrefs.common.layout import BLOCK_BYTES, block_count
from nacrefs.common.wire import Write
from nacrefs.oss.admission import invalid
from nacrefs.oss.object import Segment

_MASK: Final = BLOCK_BYTES - 1


def segments(request: Write, bulk: memoryview, where: str, check: bool = True) -> list[list[Segment]]:
    """The extents with their bytes, verified (unless `check` is False: the sums were made of them here); neighbours
    joined, in batches that ascend without overlap.

    EBADMSG, naming OST (`where`), object and offset, if bytes and sums do not match; EINVAL if there are too few or too
    many sums.
    """
    if len(request.extents) == 1 and _is_right(bulk, *request.extents[0], request.sums):
        return [[Segment(request.extents[0][0], bulk, request.sums)]]
    batches: list[list[Segment]] = []
    at = sums_at = 0
    sums = request.sums
    end = -1
    for offset, length in request.extents:
        if not length:
            continue
        data = bulk[at : at + length]
        wanted = block_count(offset, offset + length) * SUM_BYTES
        part = sums[sums_at : sums_at + wanted]
        if len(part) != wanted:
            raise invalid(f"sums: {len(sums)} bytes are too few for these extents")
        wrong = first_mismatch(data, offset, part) if check else None
        if wrong is not None:
            raise OSError(
                errno.EBADMSG,
                f"checksum mismatch on the way to {where}, object {format_fid(request.fid)}.{request.number}, offset "
                f"{wrong}: the bytes were damaged between client and server",
            )
        if offset == end:  # the bytes lie one after the other in `bulk`, too
            last = batches[-1][-1]
            joined = bulk[at - len(last.data) : at + length]
            # Where they meet within a block, its sum is neither's; it is made once all that belongs to it is there.
            known = last.sums and not offset & _MASK
            batches[-1][-1] = Segment(last.offset, joined, last.sums + part if known else b"")
        elif offset > end and batches:
            batches[-1].append(Segment(offset, data, part))
        else:
            batches.append([Segment(offset, data, part)])
        end = offset + length
        at += length
        sums_at += wanted
    if sums_at != len(sums):
        raise invalid(f"sums: {len(sums)} bytes, these extents need {sums_at}")
    return [
        [part if part.sums else part._replace(sums=block_sums(part.data, part.offset)) for part in batch]
        for batch in batches
    ]


def _is_right(data: memoryview, start: int, size: int, sums: bytes) -> bool:
    """Whether an extent is one that there is nothing to say about."""
    wanted = block_count(start, start + size) * SUM_BYTES
    return size > 0 and len(sums) == wanted and first_mismatch(data, start, sums) is None
