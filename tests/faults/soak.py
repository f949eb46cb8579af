"""Chaos: many programs do anything to the same few names on two mounts while servers and mounts are killed.

    python -m tests.faults.soak [--minutes M] [--seed N] [--dir DIR]

In the end nothing may hang, both mounts must show the same, and `nacre fsck` must find nothing; the same again after
all servers have been killed and started once more.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.faults.crash import HANG_S, SERVERS, CrashRig, crash_rig
from tests.harness.process import nacre

RACERS: Final = 4
"""So many on each mount."""
VICTIMS: Final[tuple[tuple[str, ...], ...]] = (
    ("mds",), ("oss0",), ("oss1",), ("mds", "oss1"), SERVERS, ("two",), ("mount", "mds"),
)  # fmt: skip
SOAK_TERM_S: Final = 6.0
_SETTLE_S: Final = 2 * HANG_S


class Soak:
    """The racers of a rig."""

    def __init__(self, rig: CrashRig) -> None:
        self.rig = rig
        self.wrong: list[str] = []
        self.started = 0
        for mount in ("mount", "two"):
            (rig.place(mount) / "race").mkdir(exist_ok=True)
        self._racers: list[tuple[str, subprocess.Popen[str]]] = []

    def run(self, seconds: float) -> None:
        """Race, kill and revive for so long, then compare."""
        end_s = time.monotonic() + seconds
        try:
            while time.monotonic() < end_s:
                self._fill()
                time.sleep(self.rig.random.uniform(1, 4))
                group = self.rig.random.choice(VICTIMS)
                self.rig.kill(group)
                time.sleep(self.rig.random.choice((0, 0, 0.5, 3)))
                self.rig.revive()
                self._collect(only_ended=True)
        finally:
            self._collect(only_ended=False)
        self.compare("after the race")
        self.rig.kill(SERVERS)
        self.rig.revive()
        self.compare("after a restart of all servers")

    def _fill(self) -> None:
        for mount in ("mount", "two"):
            for _ in range(RACERS - sum(where == mount for where, _ in self._racers)):
                words = [str(self.rig.place(mount) / "race"), str(self.rig.random.getrandbits(32))]
                command = [sys.executable, "-m", "tests.faults.racer", *words]
                racer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
                self._racers.append((mount, racer))
                self.started += 1

    def _collect(self, only_ended: bool) -> None:
        for item in list(self._racers):
            mount, racer = item
            if only_ended and racer.poll() is None:
                continue
            racer.terminate()
            try:
                said, _ = racer.communicate(timeout=HANG_S)
            except subprocess.TimeoutExpired:
                self.wrong.append(f"a program on {mount} hangs")
                racer.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    racer.communicate(timeout=5)
                said = ""
            lines = said.splitlines()
            if self._was_evicted(mount):  # what was asked then fails with EIO: nobody knows whether it happened
                lines = [line for line in lines if "[Errno 5]" not in line]
            self.wrong += [f"on {mount}: {line}" for line in lines]
            if racer.returncode not in (0, None, -9):
                self.wrong.append(f"a program on {mount} ended with {racer.returncode}")
            self._racers.remove(item)

    def _was_evicted(self, mount: str) -> bool:
        """Whether a mount has lost a session, because the machine is slow (or a server was away for long)."""
        return "has ended our session" in (self.rig.cluster.directory / "log" / f"{mount}.log").read_text()

    def compare(self, when: str) -> None:
        """Both mounts show the same, and all is whole."""
        one, two = (listing(self.rig.place(mount) / "race") for mount in ("mount", "two"))
        for path in sorted(one.keys() | two.keys()):
            if one.get(path) != two.get(path):
                self.wrong.append(f"{when}: {path} is {one.get(path)} on one mount, {two.get(path)} on the other")
        deadline_s = time.monotonic() + _SETTLE_S
        while True:  # a file counts as in use until the session of a killed mount is over
            done = nacre("fsck", self.rig.cluster.mount, "--grace", "0s", "--json")
            if done.returncode != 8 or time.monotonic() > deadline_s:
                break
            time.sleep(0.5)
        if done.returncode:
            self.wrong.append(f"{when}: nacre fsck ended with {done.returncode}: {done.stdout[-2000:]} {done.stderr}")


def listing(directory: Path) -> dict[str, object]:
    """Everything below a directory by its path: what `stat` says, and what is in it."""
    found: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        contents: object = None
        if kind == stat.S_IFREG:
            contents = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
        elif kind == stat.S_IFLNK:
            contents = os.readlink(path)
        size = status.st_size if kind == stat.S_IFREG else 0
        found[str(path.relative_to(directory))] = (
            status.st_ino, oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, size,
            status.st_mtime_ns, contents,
        )  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Race on two mounts while everything is killed; then check.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--dir", type=Path, default=None, help="where the cluster is made (default: a new directory)")
    parser.add_argument("--logs", type=Path, default=None, help="where logs go when something was wrong")
    options = parser.parse_args()
    base = options.dir or Path(tempfile.mkdtemp(prefix="nacre-soak-", dir="/var/tmp"))
    base.mkdir(exist_ok=True)
    with crash_rig(base, options.seed, SOAK_TERM_S) as rig:
        soak = Soak(rig)
        soak.run(options.minutes * 60)
        if soak.wrong and options.logs:
            shutil.copytree(rig.cluster.directory / "log", options.logs, dirs_exist_ok=True)
        kills = dict(sorted(rig.report.kills.items()))
    print(json.dumps({"seed": options.seed, "programs": soak.started, "killed": kills, "wrong": soak.wrong}, indent=1))  # noqa: T201
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
