"""The crash rig: programs on two mounts write down what they are promised, processes are killed, promises are compared.

    python -m tests.faults.crash [--rounds 200] [--seed N] [--dir DIR]

Each round starts programs (`tests/faults/workload.py`), kills -9 some of the servers and mount daemons once or more,
at a random moment or at a fault point (`nacrefs.common.faults`), restarts them, stops the programs, and compares what
each was promised with what the *other* mount shows. A program whose own mount was killed may miss what it had not
synced; every other one must find everything, and have seen no error.
"""

import argparse
import contextlib
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nacrefs.client.mount import daemon as mounts
from tests.faults.promises import Outcome, Tree, read_manifest
from tests.harness.process import ProcessCluster, nacre, process_cluster, succeed

SERVERS: Final = ("mds", "oss0", "oss1")
VICTIMS: Final[tuple[tuple[str, ...], ...]] = (
    ("mds",), ("oss0",), ("oss1",), ("mount",), ("two",), ("oss0", "oss1"), ("mds", "oss0"), ("mds", "mount"),
    ("mount", "two"), ("mds", "oss0", "oss1"), ("oss1", "two"), ("mds", "oss0", "oss1", "mount", "two"),
)  # fmt: skip
POINTS: Final = {
    "mds": ("mds.commit.before", "mds.commit.after"),
    "oss0": ("oss.change.before", "oss.change.after", "oss.index.before", "oss.index.after", "oss.sync"),
    "mount": ("client.commit.before", "client.commit.after", "client.recall.begin", "client.recall.answer"),
}
"""Where processes are made to kill themselves."""
KEPT: Final = 6
"""So many of the directories of earlier rounds are compared again."""
DEV_TOML: Final = "osts = 2\nosts_per_oss = 1\nheartbeat_s = 0.5\n"
TERM_S: Final = 2.0
HANG_S: Final = 60.0
PROMISED: Final = 3000
"""Killing begins when each program's log is so long (bytes): about 40 operations."""


@dataclass
class Report:
    """What a run has done, and what it has found."""

    rounds: int = 0
    answered: int = 0
    synced: int = 0
    cut_short: int = 0
    """Operations that were under way when their client died."""
    kills: Counter[str] = field(default_factory=Counter[str])
    violations: list[str] = field(default_factory=list[str])

    def line(self) -> str:
        kills = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        return (
            f"{self.rounds} rounds, {self.answered} operations answered ({self.synced} fsyncs), {self.cut_short} cut "
            f"short; killed: {kills}; broken promises: {len(self.violations)}"
        )


@dataclass
class Program:
    """A workload that runs: on which mount, and where."""

    mount: str
    name: str
    manifest: Path
    process: "subprocess.Popen[bytes]"


class CrashRig:
    """A cluster of two OSSes with two mounts, `mount` and `two`."""

    def __init__(self, cluster: ProcessCluster, seed: int) -> None:
        self.cluster = cluster
        self.random = random.Random(seed)
        self.report = Report()
        self.faults = ""
        """What is armed in every process that is started anew."""
        self.environment: dict[str, str] = {}
        """And what else is in its environment."""
        self.on_killed: Callable[[tuple[str, ...]], None] = lambda group: None
        """Told when these have been killed and nobody has been started again."""
        self._two = cluster.mount.parent / "two"
        self._two.mkdir(exist_ok=True)
        self._two_pid = 0
        self._logs = cluster.mount.parent / "manifests"
        self._logs.mkdir(exist_ok=True)
        self._kept: list[tuple[str, Tree]] = []
        self._mount_two()
        succeed("setstripe", "-c", "2", "-S", "64K", cluster.mount)

    # --------------------------------------------------------------------------------------------------------- cluster

    def place(self, mount: str) -> Path:
        """Where a mount is."""
        return self._two if mount == "two" else self.cluster.mount

    def _mount_two(self) -> None:
        log = self.cluster.directory / "log" / "two.log"
        succeed("mount", self.cluster.url, self._two, "--keyring", self.cluster.keyring, "-o", f"log={log}")
        self._two_pid = int(mounts.ask_json(str(self._two), "mount")["pid"])

    def _pid(self, name: str) -> int:
        return self._two_pid if name == "two" else self.cluster.pid(name)

    def is_alive(self, name: str) -> bool:
        """Whether a process runs."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self._pid(name)}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    def kill(self, names: tuple[str, ...]) -> None:
        """kill -9, all at once, and wait until they are gone."""
        for name in names:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid(name), signal.SIGKILL)
                self.report.kills[name] += 1
        deadline_s = time.monotonic() + HANG_S
        while any(self.is_alive(name) or self._has_threads(name) for name in names):
            assert time.monotonic() < deadline_s, f"{names} are not gone {HANG_S:.0f} s after kill -9"
            time.sleep(0.01)

    def _has_threads(self, name: str) -> bool:
        """Whether threads are left of a process whose main thread is dead: they wait in the kernel, for the guard."""
        pid = self._pid(name)
        with contextlib.suppress(OSError):
            return set(os.listdir(f"/proc/{pid}/task")) > {str(pid)}
        return False

    def revive(self, faults: str = "") -> None:
        """Start what does not run; what is started has these faults armed."""
        for attempt in range(3):
            if not (trouble := self._up(faults or self.faults)):
                break
            assert faults or attempt < 2, trouble  # one that is killed while it starts is started again
            faults = ""
        if not self.is_alive("two"):
            self._mount_two()

    def _up(self, faults: str) -> str:
        """Start what does not run; what went wrong with that. It waits for the mount, and so for ever for servers that
        have killed themselves meanwhile."""
        arguments = ("dev", "up", "--dir", self.cluster.directory, "--mount", self.cluster.mount)
        try:
            done = nacre(*arguments, cwd=None, NACRE_FAULTS=faults, **self.environment)
        except subprocess.TimeoutExpired as error:
            return str(error)
        return f"{done.stdout}\n{done.stderr}" if done.returncode else ""

    # ---------------------------------------------------------------------------------------------------------- rounds

    def start(self, mount: str) -> Program:
        """A program on a mount, in a new directory."""
        name = f"{self.report.rounds}-{mount}-{self.random.getrandbits(20):05x}"
        (self.place(mount) / name).mkdir()
        manifest = self._logs / name
        manifest.touch()
        words = (self.place(mount) / name, manifest, self.random.getrandbits(32))
        command = [sys.executable, "-m", "tests.faults.workload", *map(str, words)]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        return Program(mount, name, manifest, process)

    def round(self, victims: Sequence[tuple[str, ...]], point: str = "") -> None:
        """One round in which these are killed, group after group; or whoever passes `point` (`process=POINT`) kills
        itself there."""
        self.report.rounds += 1
        killed: set[str] = set()
        programs: list[Program] = []
        if point:
            process, _, where = point.partition("=")
            self.kill((process,))
            self.revive(f"{where}=kill after={self.random.randrange(1, 40)}")
        try:
            programs += [self.start("mount"), self.start("mount"), self.start("two")]
            self._await_progress(programs)
            if point:
                killed.add(self._await_suicide(point.partition("=")[0]))
            for group in victims:
                time.sleep(self.random.uniform(0.1, 0.9))
                self.kill(group)
                self.on_killed(group)
                killed.update(group)
                self.revive()
            time.sleep(self.random.uniform(0.05, 0.5))
        finally:
            self._stop(programs)
        for program in programs:
            self._judge(program, program.mount in killed)
        self._look_again()

    def _await_progress(self, programs: list[Program]) -> None:
        """Wait until something has been promised to each program (or its mount has killed itself)."""
        deadline_s = time.monotonic() + HANG_S
        for program in programs:
            while program.manifest.stat().st_size < PROMISED and program.process.poll() is None:
                if not self.is_alive(program.mount) or not all(map(self.is_alive, SERVERS)):
                    return
                assert time.monotonic() < deadline_s, f"{program.name} does not begin"
                time.sleep(0.01)

    def _await_suicide(self, process: str) -> str:
        """Wait until it has killed itself; one that does not come to its point is killed."""
        deadline_s = time.monotonic() + 4
        while self.is_alive(process) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        if self.is_alive(process):
            self.kill((process,))
        else:
            self.report.kills[f"{process} at a point"] += 1
        self.revive()
        return process

    def _stop(self, programs: list[Program]) -> None:
        for program in programs:
            program.process.terminate()
        for program in programs:
            try:
                program.process.wait(HANG_S)
            except subprocess.TimeoutExpired:
                program.process.kill()
                self.report.violations.append(f"{program.name}: hangs ({program.manifest.read_text()[-300:]})")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.process.wait(5)

    def _judge(self, program: Program, crashed: bool) -> None:
        outcome = read_manifest(program.manifest)
        report = self.report
        report.answered += outcome.answered
        report.synced += outcome.synced
        wrong = list(outcome.wrong)
        if not crashed:
            wrong += [f"{operation} failed: {os.strerror(error)}" for operation, error in outcome.errors]
        other = self.place("mount" if program.mount == "two" else "two")
        tree, broken = self._compare(outcome, other / program.name, crashed)
        wrong += broken
        if outcome.open is not None:
            report.cut_short += 1
        report.violations += [f"{program.name} ({'crashed' if crashed else 'alive'}): {text}" for text in wrong]
        if not broken:
            tree.rebase(other / program.name)
            self._kept.append((program.name, tree))
            program.manifest.unlink()

    def _compare(self, outcome: Outcome, directory: Path, crashed: bool) -> tuple[Tree, list[str]]:
        """What is not there of what was promised. The operation that was cut short has happened or not."""
        broken = outcome.tree.broken(directory, crashed)
        if broken and outcome.open is not None:
            happened = copy.deepcopy(outcome.tree)
            happened.apply(outcome.open)
            if not happened.broken(directory, crashed):
                return happened, []
        return outcome.tree, broken

    def _look_again(self) -> None:
        """What earlier rounds have left is as it was."""
        for name, tree in self._kept:
            mount = self.random.choice(("mount", "two"))
            wrong = tree.broken(self.place(mount) / name, crashed=False)
            self.report.violations += [f"{name} (later, on {mount}): {text}" for text in wrong]
        while len(self._kept) > KEPT:
            name, _ = self._kept.pop(0)
            shutil.rmtree(self.place(self.random.choice(("mount", "two"))) / name)

    def close(self) -> None:
        """Take the second mount away."""
        if self.is_alive("two"):
            nacre("umount", self._two)
        subprocess.run(["umount", "-l", self._two], check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def crash_rig(base: Path, seed: int, term_s: float = TERM_S) -> Generator[CrashRig]:
    """A rig with a new cluster below `base`; afterwards nothing of it is left."""
    (base / "cluster").mkdir()
    (base / "cluster" / "dev.toml").write_text(f"{DEV_TOML}term_s = {term_s:.1f}\n")
    with process_cluster(base) as cluster:
        rig = CrashRig(cluster, seed)
        try:
            yield rig
        finally:
            rig.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill processes and compare what was promised with what is there.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--dir", type=Path, default=None, help="where the cluster is made (default: a new directory)")
    parser.add_argument("--logs", type=Path, default=None, help="where logs go when a promise has been broken")
    options = parser.parse_args()
    base = options.dir or Path(tempfile.mkdtemp(prefix="nacre-crash-", dir="/var/tmp"))
    base.mkdir(exist_ok=True)
    (base / "mnt").mkdir(exist_ok=True)
    with crash_rig(base, options.seed) as rig:
        chance = rig.random
        for number in range(options.rounds):
            point = ""
            victims: list[tuple[str, ...]] = [chance.choice(VICTIMS) for _ in range(chance.choice((1, 1, 2)))]
            if chance.random() < 0.35:
                process = chance.choice(list(POINTS))
                point, victims = f"{process}={chance.choice(POINTS[process])}", victims[:1] if number % 3 == 0 else []
            before = len(rig.report.violations)
            try:
                rig.round(victims, point)
            finally:
                if options.logs and (sys.exc_info()[0] or len(rig.report.violations) > before):
                    shutil.copytree(rig.cluster.directory / "log", options.logs / str(number))
                    shutil.copytree(base / "manifests", options.logs / str(number) / "manifests")
            for text in rig.report.violations[before:]:
                print(json.dumps({"round": number, "victims": victims, "point": point, "broken": text}), flush=True)  # noqa: T201
            if number % 10 == 9:
                print(rig.report.line(), flush=True)  # noqa: T201
        print(rig.report.line())  # noqa: T201
        return 1 if rig.report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
