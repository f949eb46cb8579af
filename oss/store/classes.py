"""Moving an S3 object to another storage class: the server copies it onto itself, in parts if it is too large for one
CopyObject."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

PART_BYTES: Final = 512 << 20
"""Parts are larger where more than 10,000 of these would be needed (5 TiB: 10,240)."""
_PARTS_MAX: Final = 10_000
_AT_A_TIME: Final = 4

Call = Callable[..., Coroutine[Any, Any, Any]]
"""Asks the server for an operation on the bucket: its name, and arguments by name."""


def ranges(size: int, part_bytes: int) -> list[tuple[int, int]]:
    """The parts `[start, end)` of an object of so many bytes."""
    unit = max(part_bytes, -(-size // _PARTS_MAX))
    return [(start, min(size, start + unit)) for start in range(0, size, unit)]


async def copy_in_parts(call: Call, source: dict[str, str], storage_class: str, part_bytes: int) -> None:
    """Copy an object (`Bucket`, `Key`) onto itself in another class. What it leaves if it fails or is cancelled is
    dropped. OSError as `call` raises it; ESTALE if the object is replaced meanwhile."""
    key = source["Key"]
    about = await call("head_object", Key=key)
    begun = await call(
        "create_multipart_upload",
        Key=key,
        StorageClass=storage_class,
        Metadata=about.get("Metadata", {}),
        ContentType=about.get("ContentType", "application/octet-stream"),
    )
    upload = begun["UploadId"]
    limit = asyncio.Semaphore(_AT_A_TIME)

    async def copy(number: int, start: int, end: int) -> dict[str, Any]:
        async with limit:
            answer = await call(
                "upload_part_copy",
                Key=key,
                UploadId=upload,
                PartNumber=number,
                CopySource=source,
                CopySourceIfMatch=about["ETag"],
                CopySourceRange=f"bytes={start}-{end - 1}",
            )
        return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

    try:
        async with asyncio.TaskGroup() as group:
            copies = [
                group.create_task(copy(number, start, end))
                for number, (start, end) in enumerate(ranges(about["ContentLength"], part_bytes), 1)
            ]
        parts = [one.result() for one in copies]
        await call("complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
    except BaseException as error:
        await asyncio.shield(call("abort_multipart_upload", Key=key, UploadId=upload))
        raise _first(error) from None


def _first(error: BaseException) -> BaseException:
    """The error, or the first one of a group."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    return cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
