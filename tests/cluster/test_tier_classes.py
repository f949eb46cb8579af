"""Cold storage classes: copies move to them by rules, and are made readable before they come back. And rates."""

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from msgspec.structs import replace

from nacrefs.common.config import Duration
from nacrefs.common.wire import ArchiveSpec, AskLifecycle, HsmAction, HsmFlag, RunRule, SetArchive, SetLifecycle
from nacrefs.mds.config import LayoutConfig, TierConfig
from nacrefs.mds.hsm import steps as hsm_steps
from nacrefs.mds.hsm.rows import CANCELED, STARTED, ActionRow
from tests.client.world import World, read_file, write_file
from tests.s3 import boto3_client

ROOT = 1


class Cold(World):
    """A cluster that asks cold archives often whether they are ready."""

    spec: ArchiveSpec

    async def add(self, spec: ArchiveSpec) -> None:
        answer = await self.clients[0].session.mds.call(SetArchive(replace(spec, id=0)))
        self.spec = replace(spec, id=json.loads(answer.report)["id"])

    async def act(self, kind: HsmAction, fid: int) -> Any:
        await self.mds.mds.hsm.request(kind, fid, 0, 0)
        return await self.over(fid)

    async def over(self, fid: int) -> Any:
        async with asyncio.timeout(50):
            while fid in self.mds.mds.hsm.active:
                await asyncio.sleep(0.01)
        return self.mds.mds.hsm.state(fid)

    async def released(self, name: bytes, data: bytes) -> int:
        fid = await write_file(self.clients[0], ROOT, name, data)
        assert (await self.act(HsmAction.ARCHIVE, fid)).flags & HsmFlag.ARCHIVED
        assert (await self.act(HsmAction.RELEASE, fid)).flags & HsmFlag.RELEASED
        return fid

    async def run_rule(self, rule: str) -> Any:
        mds = self.clients[0].session.mds
        await mds.call(RunRule(rule))
        async with asyncio.timeout(50):
            while rule in self.mds.mds.lifecycle.runs:
                await asyncio.sleep(0.01)
        (one,) = json.loads((await mds.call(AskLifecycle("status"))).report)["rules"]
        return one["last"]

    def bucket(self) -> Any:
        """Somebody else's client, and the arguments that name the bucket's only object."""
        client = boto3_client(
            "s3",
            endpoint_url=self.spec.endpoint,
            aws_access_key_id="a",
            aws_secret_access_key="b",
            region_name="us-east-1",
        )
        return client, urlsplit(self.spec.url).netloc


@pytest.fixture
async def cold(tmp_path: Path, mdt_url: str | None) -> AsyncGenerator[Cold]:
    tier = TierConfig(thaw_poll_s=Duration(0.1), access_s=Duration(0))
    made = Cold(tmp_path, layout=LayoutConfig(), tier=tier, database=mdt_url)
    async with made:
        await made.vfs()
        yield made


async def test_a_file_in_a_cold_class_is_asked_for_and_comes_back_by_being_read(
    cold: Cold, cold_archive: ArchiveSpec
) -> None:
    await cold.add(cold_archive)
    data = os.urandom(200_000)
    fid = await cold.released(b"file", data)
    client, bucket = cold.bucket()
    try:
        (entry,) = client.list_objects_v2(Bucket=bucket)["Contents"]
        assert entry["StorageClass"] == "GLACIER"
        assert "Restore" not in client.head_object(Bucket=bucket, Key=entry["Key"])
        assert await read_file(await cold.vfs(), ROOT, b"file") == data
        assert "Restore" in client.head_object(Bucket=bucket, Key=entry["Key"])
    finally:
        client.close()
    assert not (await cold.over(fid)).flags & HsmFlag.RELEASED


@pytest.fixture
def slow_thaw(cold_s3: str) -> Generator[None]:
    """moto looks as if it were at it, the first times that it is asked."""

    def say(path: str, **what: Any) -> None:
        order = Request(f"{cold_s3}/moto-api/state-manager/{path}", json.dumps(what).encode())
        urlopen(order).close()

    say("set-transition", model_name="s3::keyrestore", transition={"progression": "manual", "times": 4})
    try:
        yield
    finally:
        say("unset-transition", model_name="s3::keyrestore")


async def test_who_reads_waits_while_the_archive_is_at_it_and_sees_why(
    cold: Cold, cold_archive: ArchiveSpec, slow_thaw: None
) -> None:
    await cold.add(cold_archive)
    data = os.urandom(200_000)
    fid = await cold.released(b"file", data)
    reading = asyncio.get_running_loop().create_task(read_file(await cold.vfs(), ROOT, b"file"))
    async with asyncio.timeout(30):
        while (seen := cold.mds.mds.hsm.state(fid)).reason == "":
            await asyncio.sleep(0.01)
    assert (seen.state, seen.attempts) == ("WAITING", 0)
    assert "the archive makes it readable (GLACIER, Standard)" in seen.reason
    assert await reading == data
    await cold.over(fid)


@pytest.mark.both_engines
async def test_rules_move_copies_to_colder_classes_step_by_step(cold: Cold, cold_archive: ArchiveSpec) -> None:
    await cold.add(replace(cold_archive, storage_class=""))
    fid = await write_file(cold.clients[0], ROOT, b"file", b"x" * 100_000)
    await (await cold.vfs()).session.mds.call(AskLifecycle("status"))
    steps = [
        {"DaysAfterModification": "0s", "Archive": "frozen", "StorageClass": "STANDARD_IA"},
        {"DaysAfterModification": "1d", "StorageClass": "GLACIER"},
    ]
    rule: dict[str, Any] = {"ID": "cool", "Directory": "/", "Transitions": steps}
    mds = cold.clients[0].session.mds
    await mds.call(SetLifecycle(json.dumps({"Rules": [rule]})))
    assert (await cold.run_rule("cool"))["archived"]["files"] == 1
    client, bucket = cold.bucket()
    try:
        (entry,) = client.list_objects_v2(Bucket=bucket)["Contents"]
        assert entry["StorageClass"] == "STANDARD_IA"
        assert (await cold.run_rule("cool"))["matched"] == 0
        steps[1]["DaysAfterModification"] = "0s"
        await mds.call(SetLifecycle(json.dumps({"Rules": [rule]})))
        assert (await cold.run_rule("cool"))["transitioned"]["files"] == 1
        (entry,) = client.list_objects_v2(Bucket=bucket)["Contents"]
        assert entry["StorageClass"] == "GLACIER"
        steps.append({"DaysAfterModification": "0s", "StorageClass": "DEEP_ARCHIVE"})
        await mds.call(SetLifecycle(json.dumps({"Rules": [rule]})))
        assert (await cold.run_rule("cool"))["transitioned"]["files"] == 1
        (entry,) = client.list_objects_v2(Bucket=bucket)["Contents"]
        assert entry["StorageClass"] == "DEEP_ARCHIVE"
    finally:
        client.close()
    assert (await cold.run_rule("cool"))["matched"] == 0
    (place,) = json.loads((await mds.call(AskLifecycle("report"))).report)["places"]
    assert (place["storage_class"], place["files"]) == ("DEEP_ARCHIVE", 1)
    await cold.act(HsmAction.RELEASE, fid)
    assert await read_file(await cold.vfs(), ROOT, b"file") == b"x" * 100_000


async def test_parts_of_a_move_that_was_given_up_go_and_the_object_stays(cold: Cold, cold_archive: ArchiveSpec) -> None:
    await cold.add(replace(cold_archive, storage_class=""))
    fid = await write_file(cold.clients[0], ROOT, b"file", b"x" * 100_000)
    await cold.act(HsmAction.ARCHIVE, fid)
    mds = cold.mds.mds
    copy = await mds.journal.submit_own(lambda step: hsm_steps.good_copy(step, fid))
    store = await cold.oss[0].mover.archives.of(cold.spec)
    await store.begin(copy.key, {})
    row = ActionRow(
        99, fid, HsmAction.TRANSITION, copy.archive, 0, "", STARTED, 1, 0, 0, 0, key=copy.key, upload="?"
    )  # fmt: skip
    ended = row._replace(state=CANCELED, key="", upload="")
    await mds.journal.submit_own(lambda step: hsm_steps.end_action(step, row, ended))
    async with asyncio.timeout(30):
        while await store.uploads() or mds.mdt.store.fetchall("SELECT key FROM hsm_gone"):
            await asyncio.sleep(0.01)
    assert (await store.head(copy.key)).size == 100_000


async def test_an_archive_without_classes_is_left_out_and_that_is_said(cold: Cold, tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    await cold.add(ArchiveSpec(0, "plain", "dir", f"file://{tmp_path}/archive"))
    await write_file(cold.clients[0], ROOT, b"file", b"x" * 100_000)
    steps = [
        {"DaysAfterModification": "0s", "Archive": "plain"},
        {"DaysAfterModification": "0s", "StorageClass": "GLACIER"},
    ]
    await cold.clients[0].session.mds.call(
        SetLifecycle(json.dumps({"Rules": [{"ID": "cool", "Directory": "/", "Transitions": steps}]}))
    )
    last = await cold.run_rule("cool")
    assert last["reasons"] == {"archive plain cannot change storage classes": 1}


async def test_an_archive_with_a_rate_takes_no_more(cold: Cold, tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    await cold.add(ArchiveSpec(0, "slow", "dir", f"file://{tmp_path}/archive", rate_mibps=2.0))
    fids = [await write_file(cold.clients[0], ROOT, b"%d" % number, os.urandom(1 << 20)) for number in range(6)]
    begun_s = time.monotonic()
    await asyncio.gather(*(cold.act(HsmAction.ARCHIVE, fid) for fid in fids))
    # 6 MiB at 2 MiB/s: the first two may go at once, the last waits for the three before it.
    assert time.monotonic() - begun_s >= 1.4
    assert all(cold.mds.mds.hsm.state(fid).flags & HsmFlag.ARCHIVED for fid in fids)
