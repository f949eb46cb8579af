"""Worker processes of a benchmark: forked, prepared, started together on a pipe, timed by one clock.

A worker calls the kernel directly (`os.open`, `os.write`, …) in a loop that is the same for every filesystem, so that
its own cost (about 1 µs a call, reported with each row) never decides a comparison.
"""

import errno
import gc
import json
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

Run = Callable[[], int]
"""The timed loop: does its operations and returns how many bytes it moved."""

Prepare = Callable[[int], Run]
"""Takes the worker's index, does what is not to be timed, returns the timed loop."""


@dataclass(frozen=True)
class Burst:
    """What the workers did together. `seconds` runs from the first that began to the last that ended."""

    seconds: float
    bytes: int
    worker_cpu_seconds: float


def run_together(
    processes: int,
    prepare: Prepare,
    *,
    at_start: Callable[[], None] = lambda: None,
    at_end: Callable[[], None] = lambda: None,
    deadline_seconds: float = 300.0,
) -> Burst:
    """Fork `processes` workers, start them at the same moment, wait for all of them.

    `at_start` is called when every worker is ready and none has begun, `at_end` when all have ended. A worker's
    `OSError` is raised here; ETIMEDOUT if they are not done in time. No worker outlives the call.
    """
    gun_read, gun_write = os.pipe()
    workers: dict[int, int] = {}  # the descriptor that a worker answers on: its process id
    try:
        for index in range(processes):
            answer_read, answer_write = os.pipe()
            process_id = os.fork()
            if process_id == 0:
                os.close(gun_write)  # the gun is the end of file: no worker may hold the other end
                _work(index, prepare, gun_read, answer_write)
            os.close(answer_write)
            workers[answer_read] = process_id
        deadline = time.monotonic() + deadline_seconds
        for answer_read in workers:
            if (first := _read(answer_read, 1, deadline)) != b"\n":
                raise _failure(first + _read_all(answer_read, deadline))
        at_start()
        os.close(gun_write)
        gun_write = -1
        answers = [_result(_read_all(answer_read, deadline)) for answer_read in workers]
        at_end()
    finally:
        for descriptor in (gun_read, gun_write, *workers):
            if descriptor >= 0:
                os.close(descriptor)
        for process_id in workers.values():
            os.kill(process_id, signal.SIGKILL)  # a zombie if it has ended: nothing happens
            os.waitpid(process_id, 0)
    begin = min(answer["begin_ns"] for answer in answers)
    end = max(answer["end_ns"] for answer in answers)
    return Burst(
        seconds=max(end - begin, 1) / 1e9,
        bytes=sum(answer["bytes"] for answer in answers),
        worker_cpu_seconds=sum(answer["cpu_ns"] for answer in answers) / 1e9,
    )


def _work(index: int, prepare: Prepare, gun_read: int, answer_write: int) -> NoReturn:
    """The life of one worker. Leaves by `_exit`: the parent's buffers and exit handlers are not ours to run."""
    answer: dict[str, int | str | None]
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run = prepare(index)
        gc.disable()
        os.write(answer_write, b"\n")
        os.read(gun_read, 1)
        cpu_ns = time.process_time_ns()
        begin_ns = time.monotonic_ns()
        moved = run()
        end_ns = time.monotonic_ns()
        cpu_ns = time.process_time_ns() - cpu_ns
        answer = {"begin_ns": begin_ns, "end_ns": end_ns, "bytes": moved, "cpu_ns": cpu_ns}
    except OSError as error:
        answer = {"errno": error.errno or errno.EIO, "text": error.strerror or str(error), "path": error.filename}
        if isinstance(error.filename, bytes):
            answer["path"] = os.fsdecode(error.filename)
    except BaseException as error:
        answer = {"errno": errno.EIO, "text": f"{type(error).__name__}: {error}", "path": None}
    try:
        os.write(answer_write, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _read(descriptor: int, size: int, deadline: float) -> bytes:
    """At most `size` bytes; empty at the end of file; ETIMEDOUT if none come before `deadline`."""
    ready, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0.0))
    if not ready:
        raise OSError(errno.ETIMEDOUT, "the benchmark's workers did not finish in time: the filesystem hangs or crawls")
    return os.read(descriptor, size)


def _read_all(descriptor: int, deadline: float) -> bytes:
    """Everything that a worker still has to say."""
    parts: list[bytes] = []
    while part := _read(descriptor, 65536, deadline):
        parts.append(part)
    return b"".join(parts)


def _result(text: bytes) -> dict[str, int]:
    """A worker's figures; raises what the worker met instead."""
    answer: dict[str, Any] = json.loads(text) if text else {}
    if "end_ns" not in answer:
        raise _failure(text)
    return answer


def _failure(text: bytes) -> OSError:
    """The error in a worker's answer."""
    if not text:
        return OSError(errno.EIO, "a benchmark worker died without a word: was it killed, or is the memory full?")
    answer: dict[str, Any] = json.loads(text)
    return OSError(answer["errno"], answer["text"], answer["path"])
