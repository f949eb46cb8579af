"""The crash rig on a disk that loses what was not synced: SQLite, LMDB and objects lie on `tests/faults/powercut.py`.

    python -m tests.faults.power [--rounds 50] [--seed N] [--dir DIR]

In each round everything is killed at once, servers and mounts, the disk forgets, and the machine is said to have been
started again (`NACRE_BOOT_ID`). What was promised must be there all the same.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final

from tests.faults.crash import DEV_TOML, TERM_S, CrashRig
from tests.harness.process import process_cluster

EVERYTHING: Final = ("mds", "oss0", "oss1", "mount", "two")


class PowerDisk:
    """A mounted disk, served by a process of its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.lost = 0
        """Blocks and names that cuts have lost."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.powercut", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._said() == ["mounted"]

    def _said(self) -> list[str]:
        assert self._process.stdout is not None
        return self._process.stdout.readline().split()

    def cut(self, seed: int, kept: float = 0.0) -> int:
        """The power is gone, and back: what was not synced is lost, but for the share `kept`. How much that was."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"cut {seed} {kept}\n")
        self._process.stdin.flush()
        word, lost = self._said()
        assert word == "cut"
        self.lost += int(lost)
        return int(lost)

    def sync_directory(self, name: str = "") -> None:
        """Make the names in a directory durable."""
        descriptor = os.open(self.directory / name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Take it away."""
        self._process.communicate(timeout=30)
        subprocess.run(["umount", "-l", self.directory], check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def power_rig(base: Path, seed: int) -> Generator[tuple[CrashRig, PowerDisk]]:
    """A rig whose servers keep their data on a disk whose power is cut when everybody is killed."""
    disk = PowerDisk(base / "disk")
    try:
        place = base / "rig" / "cluster"
        place.mkdir(parents=True)
        (place / "dev.toml").write_text(f"{DEV_TOML}term_s = {TERM_S}\n")
        for name in ("mdt", "ost0", "ost1"):
            (disk.directory / name).mkdir()
            (place / name).symlink_to(disk.directory / name)
        disk.sync_directory()
        with process_cluster(base / "rig") as cluster:
            rig = CrashRig(cluster, seed)
            boots = iter(range(1 << 30))
            rig.environment["NACRE_BOOT_ID"] = "before"

            def cut(group: tuple[str, ...]) -> None:
                if set(group) == set(EVERYTHING):
                    disk.cut(rig.random.getrandbits(32), rig.random.choice((0.0, 0.0, 0.5, 0.9)))
                    rig.environment["NACRE_BOOT_ID"] = f"{next(boots)}"

            rig.on_killed = cut
            try:
                yield rig, disk
            finally:
                rig.close()
    finally:
        disk.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Cut the power and compare what was promised with what is there.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--dir", type=Path, default=None, help="where the cluster is made (default: a new directory)")
    options = parser.parse_args()
    base = options.dir or Path(tempfile.mkdtemp(prefix="nacre-power-", dir="/var/tmp"))
    base.mkdir(exist_ok=True)
    with power_rig(base, options.seed) as (rig, disk):
        for number in range(options.rounds):
            before = len(rig.report.violations)
            rig.round([EVERYTHING])
            for text in rig.report.violations[before:]:
                print(f"round {number}: {text}", flush=True)  # noqa: T201
            print(f"{rig.report.line()}; lost {disk.lost} blocks and names", flush=True)  # noqa: T201
        return 1 if rig.report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
