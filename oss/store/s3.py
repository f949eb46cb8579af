"""An archive in an S3 bucket.

`obstore` carries small objects, both ways: it works outside the GIL and costs a quarter of the CPU of other clients.
Large ranges come back by plain HTTP (`largeget`). `botocore`, in threads, does what obstore cannot: parts that several
servers send, listings with storage classes, keys that end in `/`, restoring from cold classes. Measured:
docs/tiering.md.

Bodies travel with a checksum (SHA-256 by obstore, CRC-32 with parts) that the server verifies; their signature does not
cover them a second time.
"""

import asyncio
import base64
import errno
import uuid
import zlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import obstore

from nacrefs.common.wire import CLASS_COPY_MAX, ArchiveEntry, ArchiveSpec
from nacrefs.oss.store.classes import PART_BYTES, copy_in_parts
from nacrefs.oss.store.clients import botocore_client, obstore_bucket
from nacrefs.oss.store.credentials import Secret, read_credentials
from nacrefs.oss.store.etags import EtagSums
from nacrefs.oss.store.failures import of_botocore, of_obstore
from nacrefs.oss.store.largeget import SIGNED_S, LargeGets
from nacrefs.oss.store.protocol import Page, abort_uploads, check_key

T = TypeVar("T")
# It has no types, and its own are partly wrong.
_botocore: Final[Any] = import_module("botocore.session")
_THREADS: Final = 8
_COLD: Final = frozenset({"GLACIER", "DEEP_ARCHIVE"})
DELETE_MAX: Final = 1000
_INLINE_BYTES: Final = 128 << 10
"""What has no more is summed at once, not in a thread."""


class S3Store:
    """The archive at a URL `s3://BUCKET/PREFIX`. OSError (EACCES) if its credentials cannot be had."""

    def __init__(self, spec: ArchiveSpec) -> None:
        self.spec = spec
        url = urlsplit(spec.url)
        self._bucket = url.netloc
        prefix = url.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="archive-s3")
        self._session: Any = _botocore.get_session()
        secret = read_credentials(spec.credentials) if spec.credentials else self._chain()
        self._region = spec.region or str(self._session.get_config_variable("region") or "us-east-1")
        self._data = obstore_bucket(self._bucket, spec, self._region, secret)
        self.large = LargeGets(self._threads, self._signed)
        self._sums = EtagSums()
        self._clients: dict[int, Any] = {}
        """By how often they try."""
        self._secret = secret

    def _chain(self) -> Secret:
        try:
            found = self._session.get_credentials()
            frozen = None if found is None else found.get_frozen_credentials()
        except Exception as error:
            raise self._named(of_botocore(error), "") from None
        if frozen is None or not frozen.access_key:
            raise OSError(
                errno.EACCES,
                f"archive {self.spec.name}: there are no credentials: name a file with --credentials-file, or set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the OSSes",
            )
        return Secret(frozen.access_key, frozen.secret_key, frozen.token or "")

    # -------------------------------------------------------------------------------------------------------- requests

    def _named(self, error: OSError, key: str) -> OSError:
        about = f"archive {self.spec.name}" + (f", object {key!r}" if key else "")
        return OSError(error.errno, f"{about}: {error.strerror}")

    async def _ask(self, key: str, coming: Awaitable[T]) -> T:
        """The answer of obstore."""
        try:
            return await coming
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise self._named(of_obstore(error), key) from None

    async def _call(self, key: str, operation: str, attempts: int = 2, **arguments: Any) -> Any:
        """The answer of botocore to an operation on the bucket, asked in a thread."""
        return await self._run(key, lambda: getattr(self._made(attempts), operation)(Bucket=self._bucket, **arguments))

    async def _run(self, key: str, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except asyncio.CancelledError:
            raise
        except OSError:
            raise
        except Exception as error:
            raise self._named(of_botocore(error), key) from None

    def _made(self, attempts: int = 2) -> Any:
        if attempts not in self._clients:
            self._clients[attempts] = botocore_client(
                self._session, self.spec, self._region, self._secret, attempts, _THREADS
            )
        return self._clients[attempts]

    def _full(self, key: str) -> str:
        check_key(key)
        return self._prefix + key

    # --------------------------------------------------------------------------------------------------------- objects

    async def put(self, key: str, body: Sequence[memoryview], meta: dict[str, str], match: str | None = None) -> str:
        full = self._full(key)
        if key.endswith("/"):
            answer = await self._call(key, "put_object", Key=full, Body=b"", Metadata=meta)
            return str(answer["ETag"]).strip('"')
        attributes: dict[str, str] = {"Content-Type": "application/octet-stream", **meta}
        if self.spec.storage_class:
            attributes["StorageClass"] = self.spec.storage_class
        data: Any = body[0] if len(body) == 1 else list(body)
        if not body:
            data = b""
        mode: Any = "overwrite" if match is None else {"e_tag": f'"{match}"'} if match else "create"
        put: Any = obstore.put_async
        sent = partial(put, self._data, full, data, use_multipart=False, attributes=attributes)
        try:
            answer = await self._ask(key, sent(mode=mode))
        except OSError as error:
            if match is None or error.errno != errno.EOPNOTSUPP:
                raise
            answer = await self._ask(key, sent())  # it knows no conditions
        return str(answer["e_tag"] or "").strip('"')

    def _signed(self, full: str) -> str:
        sign: Any = obstore.sign
        return str(sign(self._data, "GET", full, timedelta(seconds=SIGNED_S)))

    async def get(
        self, key: str, start: int, end: int, size: int = -1, etag: str = "", into: memoryview | None = None
    ) -> memoryview:
        full = self._full(key)
        if into is not None and self.large.takes(end - start):
            found = await self.large.get(full, start, into[: end - start])
            if found is not None:
                self._check_same(key, found.size, found.etag, size, etag)
                return into[: end - start]

        if end > start and size < 0 and not etag:  # nothing is asked about the object: one step instead of two
            part: Any = obstore.get_range_async
            data = memoryview(await self._ask(key, part(self._data, full, start=start, end=end)))
            return self._complete(key, data, end - start)

        async def fetch() -> tuple[memoryview, dict[str, Any]]:
            get: Any = obstore.get_async
            if end > start:
                answer = await get(self._data, full, options={"range": (start, end)})
            else:
                answer = await get(self._data, full, options={"head": True})
                return memoryview(b""), answer.meta
            return memoryview(await answer.bytes_async()), answer.meta

        data, about = await self._ask(key, fetch())
        self._check_same(key, about["size"], str(about["e_tag"] or "").strip('"'), size, etag)
        return self._complete(key, data, end - start)

    async def check_whole(self, key: str, data: memoryview, etag: str) -> None:
        if self._sums.says_something(etag):
            work = partial(self._sums.fits, key, data, etag)
            if not (await self._run(key, work) if len(data) > _INLINE_BYTES else work()):
                raise self._named(OSError(errno.EBADMSG, "the bytes that came are not those of its ETag"), key)

    def _complete(self, key: str, data: memoryview, wanted: int) -> memoryview:
        """Bytes that came; OSError (EBADMSG) unless they are so many."""
        if len(data) != wanted:
            raise self._named(OSError(errno.EBADMSG, f"{len(data)} bytes came, not {wanted}"), key)
        return data

    def _check_same(self, key: str, size: int, etag: str, wanted_size: int, wanted_etag: str) -> None:
        """OSError (ESTALE) if an object is not the one that it was."""
        if wanted_size >= 0 and size != wanted_size:
            raise self._named(OSError(errno.ESTALE, f"it has {size} bytes, not {wanted_size}: it was replaced"), key)
        if wanted_etag and etag and etag != wanted_etag:
            raise self._named(OSError(errno.ESTALE, f"its ETag is {etag}, not {wanted_etag}: it was replaced"), key)

    async def head(self, key: str) -> ArchiveEntry:
        answer = await self._call(key, "head_object", Key=self._full(key))
        return ArchiveEntry(
            key,
            int(answer["ContentLength"]),
            str(answer.get("ETag", "")).strip('"'),
            round(answer["LastModified"].timestamp() * 1e9),
            str(answer.get("StorageClass", "STANDARD")),
            tuple(sorted((str(name).lower(), str(value)) for name, value in answer.get("Metadata", {}).items())),
        )

    async def describe(self, entry: ArchiveEntry) -> ArchiveEntry:
        """A listed object with its metadata, which obstore asks for more cheaply than `head`."""
        if entry.key.endswith("/"):
            return await self.head(entry.key)
        get: Any = obstore.get_async
        answer = await self._ask(entry.key, get(self._data, self._prefix + entry.key, options={"head": True}))
        meta = tuple(sorted((name.lower(), value) for name, value in answer.attributes.items() if name.islower()))
        return ArchiveEntry(entry.key, entry.size, entry.etag, entry.mtime_ns, entry.storage_class, meta)

    async def delete(self, keys: Sequence[str]) -> None:
        if len(keys) == 1 and not keys[0].endswith("/"):
            remove: Any = obstore.delete_async
            try:
                await self._ask(keys[0], remove(self._data, self._full(keys[0])))
            except OSError as error:
                if error.errno != errno.ENOENT or "bucket" in (error.strerror or ""):
                    raise
            return
        for at in range(0, len(keys), DELETE_MAX):
            some = [{"Key": self._full(key)} for key in keys[at : at + DELETE_MAX]]
            answer = await self._call("", "delete_objects", Delete={"Objects": some, "Quiet": True})
            for failure in answer.get("Errors", ()):
                if failure.get("Code") != "NoSuchKey":
                    key = str(failure.get("Key", ""))
                    raise self._named(OSError(errno.EIO, f"was not deleted ({failure.get('Code')})"), key)

    async def page(self, prefix: str, after: str, limit: int) -> Page:
        place: dict[str, Any] = {"StartAfter": self._prefix + after} if after else {}
        while True:
            answer = await self._call(
                prefix, "list_objects_v2", Prefix=self._prefix + prefix, MaxKeys=min(limit, 1000), **place
            )
            entries = self._listed(prefix, answer)
            if entries or not answer["IsTruncated"]:
                return Page(entries, entries[-1].key if answer["IsTruncated"] else "")
            token = str(answer.get("NextContinuationToken", ""))  # a page of which nothing is to be seen
            if token == place.get("ContinuationToken", ""):
                raise self._named(OSError(errno.EBADMSG, "there are more keys, and none of them came"), prefix)
            place = {"ContinuationToken": token}

    def _listed(self, prefix: str, answer: dict[str, Any]) -> list[ArchiveEntry]:
        """The objects of a listing. OSError (EBADMSG) if it is none: an answer that is empty, or that somebody between
        us and the server has made, would mean that all objects are gone."""
        keys = [str(item["Key"]) for item in answer.get("Contents", ())]
        if "IsTruncated" not in answer or not all(key.startswith(self._prefix) for key in keys):
            raise self._named(OSError(errno.EBADMSG, "what came is not a listing of its keys"), prefix)
        cut = len(self._prefix)
        return [
            ArchiveEntry(
                key[cut:],
                int(item["Size"]),
                str(item.get("ETag", "")).strip('"'),
                round(item["LastModified"].timestamp() * 1e9),
                str(item.get("StorageClass", "STANDARD")),
            )
            for key, item in zip(keys, answer.get("Contents", ()), strict=True)
        ]

    # --------------------------------------------------------------------------------------------------------- uploads

    async def begin(self, key: str, meta: dict[str, str]) -> str:
        arguments: dict[str, Any] = {"StorageClass": self.spec.storage_class} if self.spec.storage_class else {}
        answer = await self._call(
            key,
            "create_multipart_upload",
            1,  # a second one, if an answer was lost, would leave the first without an owner
            Key=self._full(key),
            Metadata=meta,
            ChecksumAlgorithm="CRC32",
            ContentType="application/octet-stream",
            **arguments,
        )
        return str(answer["UploadId"])

    async def part(self, key: str, upload: str, number: int, body: memoryview) -> str:
        whole = body.obj
        data = whole if isinstance(whole, bytearray) and len(whole) == len(body) else bytes(body)
        work = partial(self._send_part, self._full(key), upload, number, data)
        return await self._run(key, work)

    def _send_part(self, full: str, upload: str, number: int, data: bytes | bytearray) -> str:
        crc = _crc(data)
        answer = self._made().upload_part(
            Bucket=self._bucket, Key=full, UploadId=upload, PartNumber=number, Body=data, ChecksumCRC32=crc
        )
        # The tag of a part is what `complete` must be told; the checksum goes with it.
        return f"{str(answer['ETag']).strip(chr(34))} {crc}"

    async def complete(self, key: str, upload: str, tags: Sequence[str]) -> str:
        parts = [
            {"PartNumber": number, "ETag": f'"{tag.split()[0]}"', "ChecksumCRC32": tag.split()[1]}
            for number, tag in enumerate(tags, 1)
        ]
        answer = await self._call(
            key,
            "complete_multipart_upload",
            Key=self._full(key),
            UploadId=upload,
            MultipartUpload={"Parts": parts},
        )
        return str(answer.get("ETag", "")).strip('"')

    async def abort(self, key: str, upload: str) -> None:
        try:
            await self._call(key, "abort_multipart_upload", Key=self._full(key), UploadId=upload)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    async def uploads(self, prefix: str = "") -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        cut, request = len(self._prefix), dict[str, Any](Prefix=self._prefix + prefix)
        while True:
            answer = await self._call("", "list_multipart_uploads", 2, **request)
            some = [(str(item["Key"])[cut:], str(item["UploadId"])) for item in answer.get("Uploads", ())]
            found += some
            if not answer.get("IsTruncated") or not some:
                return found
            request |= {"KeyMarker": self._prefix + some[-1][0], "UploadIdMarker": some[-1][1]}

    # ---------------------------------------------------------------------------------------------------- cold classes

    async def thaw(self, key: str, days: int, tier: str) -> str:
        full = self._full(key)
        if days > 0:
            request: dict[str, Any] = {"Days": days}
            if tier:
                request["GlacierJobParameters"] = {"Tier": tier}
            try:
                await self._call(key, "restore_object", Key=full, RestoreRequest=request)
            except OSError as error:
                if error.errno not in (errno.EINPROGRESS, errno.EOPNOTSUPP, errno.ENODATA):
                    raise
        answer = await self._call(key, "head_object", Key=full)
        state = str(answer.get("Restore", ""))
        if 'ongoing-request="true"' in state:
            return "thawing"
        if 'ongoing-request="false"' in state or answer.get("StorageClass", "STANDARD") not in _COLD:
            return "ready"
        return "frozen"

    async def set_class(
        self, key: str, storage_class: str, size: int = 0, copy_max: int = CLASS_COPY_MAX, part_bytes: int = PART_BYTES
    ) -> ArchiveEntry:
        full = self._full(key)
        source = {"Bucket": self._bucket, "Key": full}
        if size > copy_max:
            await abort_uploads(self, key)  # what earlier attempts have left
            await copy_in_parts(partial(self._call, key), source, storage_class, part_bytes)
            return await self.head(key)
        await self._call(
            key, "copy_object", Key=full, CopySource=source, StorageClass=storage_class, MetadataDirective="COPY"
        )
        return await self.head(key)

    # ----------------------------------------------------------------------------------------------------------- probe

    async def probe(self) -> dict[str, bool | str]:
        key = f"nacre-probe-{uuid.uuid4().hex}"
        found: dict[str, bool | str] = {"write": False, "read": False, "list": False, "delete": False}
        await self.put(key, [memoryview(b"probe")], {"nacre-fid": "probe"})
        found["write"] = True
        try:
            found["read"] = await self._can_read(key)
            about = await self.head(key)
            found["metadata"] = ("nacre-fid", "probe") in about.meta
            wanted = self.spec.storage_class or "STANDARD"
            found["storage_class"] = about.storage_class == wanted
            found["list"] = any(entry.key == key for entry in (await self.page(key, "", 2)).entries)
            found["checksum"] = await self._refuses_damage(key)
            found["parts"] = await self._can(self._try_parts(key))
            found["restore"] = await self._can(self._try_restore(key))
            found["class_change"] = await self._can(self.set_class(key, "STANDARD_IA"))
        finally:
            await self.delete([key])
        found["delete"] = True
        return found

    async def _can(self, attempt: Awaitable[Any]) -> bool:
        try:
            await attempt
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                raise
            return False
        return True

    async def _can_read(self, key: str) -> bool:
        try:
            return bytes(await self.get(key, 0, 5)) == b"probe"
        except OSError as error:
            if error.errno != errno.ENODATA or self.spec.storage_class not in _COLD:
                raise
            return True  # it would have to be thawed first, which takes hours

    async def _refuses_damage(self, key: str) -> bool:
        full = self._full(f"{key}-damaged")
        try:
            await self._call(key, "put_object", Key=full, Body=b"abc", ChecksumCRC32=_crc(b"abd"))
        except OSError as error:
            return error.errno == errno.EBADMSG
        await self.delete([f"{key}-damaged"])
        return False

    async def _try_parts(self, key: str) -> None:
        upload = await self.begin(key, {})
        try:
            await self.part(key, upload, 1, memoryview(b"x"))
        finally:
            await self.abort(key, upload)

    async def _try_restore(self, key: str) -> None:
        """ENODATA (it is in no cold class) is an answer of a server that knows restoring."""
        try:
            await self._call(key, "restore_object", Key=self._full(key), RestoreRequest={"Days": 1})
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EINPROGRESS):
                raise

    async def close(self) -> None:
        """Let go of connections and threads."""
        await asyncio.to_thread(self._threads.shutdown)
        self.large.close()
        self._data = None
        for client in self._clients.values():
            client.close()


def _crc(data: bytes | bytearray) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
