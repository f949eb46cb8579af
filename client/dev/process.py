"""Processes that outlive whoever started them: starting, recognising and ending them by what `DIR/run` remembers.

A process is remembered as its id and its start time, since ids are used again. It says on its standard output that it
is ready, with one line; what it says before it dies is the end of its log.
"""

import contextlib
import errno
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_START_TIME: Final = 19
"""Field `starttime` of /proc/PID/stat, counted from the state, which comes after the command's name."""


def start_time(pid: int) -> str | None:
    """When a process began, in ticks since boot; None if it is not there (or is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZXx" else fields[_START_TIME]


@dataclass(frozen=True)
class Process:
    """One process of a cluster: `name` is unique, `role` is mds, oss or mount; the files are where it is remembered and
    where it logs."""

    name: str
    role: str
    command: tuple[str, ...]
    pid_file: Path
    log: Path

    @property
    def pid(self) -> int:
        """Its process id if it is alive, else 0."""
        try:
            pid, began = self.pid_file.read_text().split()
        except (FileNotFoundError, ValueError):
            return 0
        return int(pid) if start_time(int(pid)) == began else 0

    def start(self) -> "Starting":
        """Start it in a session of its own; it is not ready yet."""
        self.log.parent.mkdir(exist_ok=True)
        self.pid_file.parent.mkdir(exist_ok=True)
        with open(self.log, "ab") as log:
            began_at = log.tell()
            child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd=self.pid_file.parent,
            )
        self.pid_file.write_text(f"{child.pid} {start_time(child.pid)}\n")
        return Starting(self, child, began_at)

    def stop(self, grace_s: float, number: signal.Signals = signal.SIGTERM) -> bool:
        """End it and wait until it has ended; False if it had to be killed after `grace_s`."""
        pid = self.pid
        ended = True
        if pid:
            try:
                watch = os.pidfd_open(pid)
            except ProcessLookupError:
                watch = -1
            if watch >= 0:
                try:
                    ended = _end(watch, grace_s, number)
                finally:
                    os.close(watch)
        self.pid_file.unlink(missing_ok=True)
        return ended


def _end(watch: int, grace_s: float, number: signal.Signals) -> bool:
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    signal.pidfd_send_signal(watch, number)
    if poll.poll(grace_s * 1000):
        return True
    signal.pidfd_send_signal(watch, signal.SIGKILL)
    poll.poll(5000)
    return False


class Starting:
    """A process that has not said yet that it is ready."""

    def __init__(self, process: Process, child: "subprocess.Popen[bytes]", log_from: int) -> None:
        self.process = process
        self.child = child
        self._log_from = log_from
        assert child.stdout is not None
        self.stdout = child.stdout

    def complaint(self) -> str:
        """The last thing that the process logged, without `nacre:`."""
        with open(self.process.log, "rb") as log:
            log.seek(self._log_from)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("nacre: ").removeprefix("nacre oss: ") if lines else "it said nothing"

    def forget(self) -> None:
        """Let it live on by itself."""
        self.stdout.close()
        self.child.returncode = 0  # so that its end, of which we shall not hear, is no ResourceWarning


def wait_ready(starting: Sequence[Starting], timeout_s: float) -> None:
    """Wait until all are ready. OSError that says why one of them died, or (ETIMEDOUT) which is not ready in time."""
    deadline_s = time.monotonic() + timeout_s
    poll = select.poll()
    waiting = {one.stdout.fileno(): one for one in starting}
    for number in waiting:
        poll.register(number, select.POLLIN)
    while waiting:
        ready = poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000)
        if not ready:
            names = ", ".join(f"{one.process.name} (log: {one.process.log})" for one in waiting.values())
            raise OSError(errno.ETIMEDOUT, f"not ready after {timeout_s:.0f} s: {names}")
        for number, _ in ready:
            one = waiting.pop(number)
            poll.unregister(number)
            if not os.read(number, 4096):
                one.child.wait()
                raise OSError(
                    errno.EIO, f"{one.process.name} did not start: {one.complaint()} (log: {one.process.log})"
                )


def in_thread(work: Any, timeout_s: float) -> Any:
    """What `work()` returns (True for None), the OSError that it raised, or None if it is not done in time.

    A call into a mount that hangs cannot be given up otherwise: its thread is left to itself.
    """
    answer: list[Any] = []

    def run() -> None:
        try:
            result = work()
            answer.append(True if result is None else result)
        except OSError as error:
            answer.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, timeout_s))
    return answer[0] if answer else None


def wait_end(pid: int, timeout_s: float) -> None:
    """Wait until a process has ended, or for `timeout_s`."""
    with contextlib.suppress(OSError):
        watch = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(watch, select.POLLIN)
            poll.poll(timeout_s * 1000)
        finally:
            os.close(watch)
