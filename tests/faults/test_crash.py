"""Processes are killed at any moment, and what was promised is there (CONTRACT 4, 5, 6): a short run of the rig in
`tests/faults/crash.py`, and proof that it would notice a promise that is not kept."""

from pathlib import Path

import pytest

from tests.faults.crash import VICTIMS, crash_rig
from tests.faults.promises import File, Manifest, Tree, contents, read_manifest
from tests.harness.process import need_mounts

SHORT: tuple[list[tuple[str, ...]], ...] = (
    [("mds",)],
    [("mount",)],
    [("oss0",), ("mds", "two")],
    [("mds", "oss0", "oss1", "mount", "two")],
)
BUSY_TERM_S = 5.0
"""Programs on a mount that was not killed see no error, also if the machine stands still for a second or two."""


@pytest.fixture(autouse=True)
def can_mount() -> None:
    need_mounts()


@pytest.mark.timeout(240)
def test_what_was_promised_survives_kills(tmp_path: Path) -> None:
    with crash_rig(tmp_path, seed=20, term_s=BUSY_TERM_S) as rig:
        for victims in SHORT:
            rig.round(victims)
        rig.round([], "mds=mds.commit.after")
        rig.round([], "oss0=oss.change.after")
    report = rig.report
    assert report.violations == []
    killed = {name for victims in SHORT for group in victims for name in group}
    assert killed <= report.kills.keys(), "not everybody was killed: this shows little"
    assert report.answered > 100, report.line()
    assert report.synced > 10, report.line()


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_rig_notices_an_fsync_that_does_nothing(tmp_path: Path) -> None:
    with crash_rig(tmp_path, seed=21) as rig:
        rig.faults = "client.sync=skip times=1000000"
        rig.kill(("mount", "two"))
        rig.revive()
        for _ in range(8):
            rig.round([("mount", "two")])
            if any("crashed" in text and "bytes" in text for text in rig.report.violations):
                break
        else:
            pytest.fail(f"nothing was noticed: {rig.report.line()}")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_was_promised_survives_many_kills(tmp_path: Path) -> None:
    with crash_rig(tmp_path, seed=22) as rig:
        for _ in range(3):
            for group in VICTIMS:
                rig.round([group, rig.random.choice(VICTIMS)])
    assert rig.report.violations == []


# ------------------------------------------------------------------------------------------------------- the comparison


def test_a_file_may_miss_what_was_written_since_fsync_and_nothing_else() -> None:
    file = File()
    file.write(0, b"a" * 100)
    file.fsync()
    file.write(50, b"b" * 100)
    for found in (b"a" * 100, b"a" * 50 + b"b" * 100, b"a" * 60 + b"b" * 20 + b"a" * 20, b"a" * 50 + b"b" * 70):
        assert file.broken(found, crashed=True) == ""
    assert file.broken(b"a" * 100 + b"\0" * 20 + b"b" * 10, crashed=True) == ""
    assert "bytes long" in file.broken(b"a" * 99, crashed=True)
    assert "byte 10" in file.broken(b"a" * 10 + b"b" * 40 + b"b" * 50, crashed=True)
    assert "byte 3" in file.broken(b"a" * 3 + b"\0" * 97, crashed=True)
    assert "bytes wrong" in file.broken(b"a" * 100, crashed=False)
    assert file.broken(b"a" * 50 + b"b" * 100, crashed=False) == ""


def test_a_set_size_is_promised() -> None:
    file = File()
    file.write(0, b"a" * 100)
    file.truncate(200)
    assert file.broken(b"a" * 100 + bytes(100), crashed=True) == ""
    assert file.broken(bytes(200), crashed=True) == ""
    assert "bytes long" in file.broken(b"a" * 100, crashed=True)
    file.truncate(10)
    assert "bytes long" in file.broken(b"a" * 100, crashed=True)


def test_what_was_cut_short_may_have_happened(tmp_path: Path) -> None:
    log = Manifest(tmp_path / "log")
    for operation in (["create", "a"], ["write", "a", 0, 10, 7], ["fsync", "a"]):
        log.begin(operation)
        log.end()
    log.begin(["rename", "a", "b"])
    log.end(107)
    log.close()
    outcome = read_manifest(tmp_path / "log")
    assert outcome.open == ["rename", "a", "b"]
    assert (outcome.answered, outcome.synced) == (3, 1)
    assert bytes(outcome.tree.file("a").synced) == contents(7, 10)


def test_names_and_attributes_are_compared(tmp_path: Path) -> None:
    tree = Tree()
    for operation in (
        ["mkdir", "d"],
        ["create", "d/f"],
        ["symlink", "x", "l"],
        ["link", "d/f", "g"],
        ["chmod", "g", 0o600],
    ):
        tree.apply(operation)
    (tmp_path / "d").mkdir(0o755)
    (tmp_path / "d/f").touch(0o600)
    (tmp_path / "l").symlink_to("x")
    assert tree.broken(tmp_path, crashed=True) == ["g: is gone", "d/f: 1 links, expected 2"]
    (tmp_path / "g").hardlink_to(tmp_path / "d/f")
    (tmp_path / "l").unlink()
    (tmp_path / "l").symlink_to("y")
    (tmp_path / "d").chmod(0o700)
    (tmp_path / "more").touch()
    assert tree.broken(tmp_path, crashed=True) == [
        "more: should not be there", "d: mode 700, expected 755", "l: points to y, expected x",
    ]  # fmt: skip
