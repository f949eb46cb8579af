"""One suite over all kinds of archives."""

import errno
import os
from collections.abc import AsyncGenerator
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from nacrefs.common.wire import ArchiveSpec
from nacrefs.oss.store.classes import PART_BYTES, ranges
from nacrefs.oss.store.opening import Archives, open_archive
from nacrefs.oss.store.protocol import ArchiveStore, abort_uploads, is_transient
from nacrefs.oss.store.s3 import S3Store
from tests.s3 import S3Server


@pytest.fixture(params=["dir", "s3", "moto"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, s3_archive: ArchiveSpec, cold_archive: ArchiveSpec
) -> AsyncGenerator[ArchiveStore]:
    if request.param == "dir":
        (tmp_path / "archive").mkdir()
        spec = ArchiveSpec(1, "cold", "dir", f"file://{tmp_path}/archive")
    elif request.param == "s3":
        spec = s3_archive
    else:
        spec = replace(cold_archive, storage_class="")
    made = open_archive(spec)
    yield made
    await made.close()


async def errno_of(coming: object) -> int | None:
    try:
        await coming  # type: ignore[misc]
    except OSError as error:
        return error.errno
    return None


async def test_what_was_put_comes_back_with_its_metadata(store: ArchiveStore) -> None:
    body = os.urandom(300_000)
    view = memoryview(body)
    etag = await store.put("a/b c~00ff%41ä", [view[:1000], view[1000:]], {"file-owner": "7", "nacre-fid": "ff"})
    about = await store.head("a/b c~00ff%41ä")
    assert (about.size, about.etag) == (300_000, etag)
    assert about.meta == (("file-owner", "7"), ("nacre-fid", "ff"))
    assert await store.get("a/b c~00ff%41ä", 0, 300_000, 300_000, etag) == body
    assert await store.get("a/b c~00ff%41ä", 299_999, 300_000) == body[-1:]


async def test_an_empty_object_and_a_directory(store: ArchiveStore) -> None:
    await store.put("dir/empty", [], {"nacre-fid": "1"})
    await store.put("dir/", [], {"nacre-fid": "2"})
    assert (await store.head("dir/empty")).size == 0
    assert not len(await store.get("dir/empty", 0, 0, 0))
    assert [entry.key for entry in (await store.page("", "", 10)).entries] == ["dir/", "dir/empty"]
    await store.delete(["dir/empty", "dir/"])
    assert (await store.page("", "", 10)).entries == []


async def test_a_symbolic_link_in_a_directory_is_none_if_somebody_has_written_there(tmp_path: Path) -> None:
    store = open_archive(ArchiveSpec(1, "cold", "dir", f"file://{tmp_path}"))
    meta = {"file-permissions": "0120777", "file-owner": "7"}
    await store.put("link", [memoryview(b"target")], meta)
    assert dict((await store.head("link")).meta) == meta
    os.utime(tmp_path / "link", ns=(1, 1))  # as after a copy of the directory
    assert dict((await store.head("link")).meta) == meta
    for data in (b"another", b"x" * 10_000):
        (tmp_path / "link").write_bytes(data)
        assert dict((await store.head("link")).meta) == {"file-owner": "7"}
    await store.close()


async def test_an_object_comes_to_where_the_last_other_one_is_being_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory, which goes with its last object. (OSSes put and delete without knowing of each other.)"""
    store = open_archive(ArchiveSpec(1, "cold", "dir", f"file://{tmp_path}"))
    real, removed = os.replace, False

    def late(source: Path, target: Path) -> None:
        nonlocal removed
        if target == tmp_path / "data" / "new" and not removed:
            target.parent.rmdir()
            removed = True
        real(source, target)

    monkeypatch.setattr(os, "replace", late)
    await store.put("data/new", [memoryview(b"bytes")], {})
    assert removed
    assert bytes(await store.get("data/new", 0, 5)) == b"bytes"
    await store.close()


async def test_what_is_not_there(store: ArchiveStore) -> None:
    assert await errno_of(store.head("nothing")) == errno.ENOENT
    assert await errno_of(store.get("nothing", 0, 1)) == errno.ENOENT
    await store.delete(["nothing"])


async def test_another_object_under_the_key_is_noticed(store: ArchiveStore) -> None:
    first = await store.put("k", [memoryview(b"one")], {})
    await store.put("k", [memoryview(b"two")], {})
    assert await errno_of(store.get("k", 0, 3, 3, first)) == errno.ESTALE
    await store.put("k", [memoryview(b"longer")], {})
    assert await errno_of(store.get("k", 0, 3, 3)) == errno.ESTALE
    await store.put("k", [memoryview(b"1")], {})
    assert await errno_of(store.get("k", 0, 3)) == errno.EBADMSG


async def test_parts_become_one_object(store: ArchiveStore) -> None:
    parts = [bytearray(os.urandom(5 << 20)), bytearray(os.urandom(100))]
    upload = await store.begin("big", {"nacre-fid": "3"})
    tags = [await store.part("big", upload, n, memoryview(part)) for n, part in reversed(list(enumerate(parts, 1)))]
    assert await errno_of(store.head("big")) == errno.ENOENT
    etag = await store.complete("big", upload, tags[::-1])
    about = await store.head("big")
    assert (about.size, about.etag, about.meta) == ((5 << 20) + 100, etag, (("nacre-fid", "3"),))
    assert await store.get("big", (5 << 20) - 1, (5 << 20) + 1) == parts[0][-1:] + parts[1][:1]
    assert await store.complete("big", upload, tags[::-1]) == etag


async def test_an_aborted_upload_leaves_nothing(store: ArchiveStore) -> None:
    upload = await store.begin("x/y", {})
    await store.part("x/y", upload, 1, memoryview(b"part"))
    longer = await store.begin("x/y/z", {})
    assert await store.uploads("x/y/") == [("x/y/z", longer)]
    await abort_uploads(store, "x/y/z")
    assert await store.uploads("z") == []
    assert await store.uploads() == [("x/y", upload)]
    await store.abort("x/y", upload)
    await store.abort("x/y", upload)
    assert await store.uploads() == []
    assert (await store.page("", "", 10)).entries == []


async def test_listing_goes_page_by_page(store: ArchiveStore) -> None:
    keys = sorted(f"{directory}/{name}" for directory in "abc" for name in range(4))
    for key in keys:
        await store.put(key, [memoryview(b"1")], {})
    found: list[str] = []
    after = ""
    while True:
        page = await store.page("", after, 5)
        assert len(page.entries) <= 5
        found += [entry.key for entry in page.entries]
        after = page.after
        if not after:
            break
    assert found == keys
    assert [entry.key for entry in (await store.page("b/", "b/1", 10)).entries] == ["b/2", "b/3"]


@pytest.mark.parametrize("key", ["", "/a", "a//b", "a/../b", "./a", "a" * 1100])
async def test_keys_that_cannot_be(store: ArchiveStore, key: str) -> None:
    assert await errno_of(store.put(key, [], {})) in (errno.EINVAL, errno.ENAMETOOLONG)


async def test_probe_says_what_it_can_do_and_leaves_nothing(store: ArchiveStore) -> None:
    found = await store.probe()
    assert found["write"] and found["read"] and found["list"] and found["delete"] and found["metadata"]
    assert (await store.page("", "", 10)).entries == []


@pytest.mark.parametrize("kind", ["s3", "moto"])
async def test_a_large_object_changes_its_class_in_parts(
    kind: str, s3_archive: ArchiveSpec, cold_archive: ArchiveSpec
) -> None:
    part = 5 << 20
    store = S3Store(s3_archive if kind == "s3" else replace(cold_archive, storage_class=""))
    try:
        data = os.urandom(2 * part + 12_345)
        await store.put("k", [memoryview(data)], {"nacre-fid": "7", "file-owner": "8"})
        left, other = await store.begin("k", {}), await store.begin("kk", {})
        assert left != other
        moved = await store.set_class("k", "STANDARD_IA", len(data), copy_max=part, part_bytes=part)
        about = await store.head("k")
        assert (about.size, about.etag, about.storage_class) == (len(data), moved.etag, "STANDARD_IA")
        assert about.etag.endswith("-3"), "it was not made of parts"
        assert about.meta == (("file-owner", "8"), ("nacre-fid", "7"))
        assert bytes(await store.get("k", 0, len(data), len(data), moved.etag)) == data
        assert await store.uploads() == [("kk", other)], "what an earlier attempt has left"
        with pytest.raises(OSError, match="archive cold|archive frozen") as caught:  # no part but the last is so small
            await store.set_class("k", "STANDARD_IA", len(data), copy_max=part, part_bytes=1 << 20)
        assert caught.value.errno == errno.EINVAL
        assert await store.uploads() == [("kk", other)]
        assert (await store.head("k")).etag == moved.etag
        await store.abort("kk", other)
    finally:
        await store.close()


def test_parts_of_a_copy_cover_the_object_and_are_not_too_many() -> None:
    assert ranges(10, 4) == [(0, 4), (4, 8), (8, 10)]
    largest = ranges(5 << 40, PART_BYTES)
    assert len(largest) <= 10_000
    assert (largest[0][0], largest[-1][1]) == (0, 5 << 40)
    assert all(before[1] == after[0] for before, after in pairwise(largest))


async def test_cold_objects_must_be_thawed(cold_archive: ArchiveSpec) -> None:
    store = open_archive(cold_archive)
    try:
        await store.put("k", [memoryview(b"ice")], {})
        assert (await store.head("k")).storage_class == "GLACIER"
        assert await errno_of(store.get("k", 0, 3)) == errno.ENODATA
        assert await store.thaw("k", 0, "") == "frozen"
        assert await store.thaw("k", 1, "Standard") in ("thawing", "ready")
        while await store.thaw("k", 0, "") != "ready":
            pass
        assert bytes(await store.get("k", 0, 3)) == b"ice"
    finally:
        await store.close()


async def test_wrong_keys_are_refused_without_being_named(s3: S3Server, tmp_path: Path) -> None:
    secret = "this-is-a-secret-0123456789"
    path = tmp_path / "credentials"
    path.touch(0o600)
    path.write_text(f"[default]\naws_access_key_id = {s3.access}\naws_secret_access_key = {secret}\n")
    store = open_archive(
        ArchiveSpec(1, "cold", "s3", f"s3://{s3.bucket()}", endpoint=s3.endpoint, credentials=str(path))
    )
    try:
        for attempt in (store.put("k", [memoryview(b"1")], {}), store.head("k"), store.page("", "", 1)):
            with pytest.raises(OSError, match="archive cold") as caught:
                await attempt
            assert caught.value.errno == errno.EACCES
            assert secret not in str(caught.value) and s3.access not in str(caught.value)
    finally:
        await store.close()


async def test_a_server_that_is_away_is_worth_another_try(s3: S3Server) -> None:
    store = open_archive(
        ArchiveSpec(1, "cold", "s3", "s3://bucket", endpoint="http://127.0.0.1:9", credentials=s3.credentials)
    )
    try:
        for attempt in (store.put("k", [memoryview(b"1")], {}), store.head("k")):
            with pytest.raises(OSError, match="cannot be reached") as caught:
                await attempt
            assert is_transient(caught.value)
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("mode", "text", "says"),
    [
        (0o644, "[default]\naws_access_key_id = a\naws_secret_access_key = hush\n", "chmod 600"),
        (0o600, "[default]\naws_access_key_id = a\n", "aws_secret_access_key"),
        (0o600, "hush = hush", "is not in the form"),
    ],
)
def test_credentials_files_that_cannot_be_used(tmp_path: Path, mode: int, text: str, says: str) -> None:
    path = tmp_path / "credentials"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(OSError, match=says) as caught:
        open_archive(ArchiveSpec(1, "cold", "s3", "s3://bucket", credentials=str(path)))
    assert caught.value.errno == errno.EACCES
    assert "hush" not in str(caught.value)


async def test_a_changed_spec_opens_the_archive_anew(tmp_path: Path) -> None:
    archives = Archives()
    one = await archives.of(ArchiveSpec(1, "cold", "dir", f"file://{tmp_path}"))
    assert await archives.of(ArchiveSpec(1, "cold", "dir", f"file://{tmp_path}")) is one
    assert await archives.of(ArchiveSpec(1, "cold", "dir", f"file://{tmp_path}/other")) is not one
    await archives.close()
