"""Named points at which a process can be made to fail, for tests: a message lost, a connection cut, a kill, a delay.

Off by default. A point in the code is `if faults.on and faults.hit(POINT, subject): …`: while nothing is armed that
costs the look at one global, about 10 ns. Faults are armed in the process itself (`armed`), or in a process that is
started, by `NACRE_FAULTS` in its environment (whoever can set that can also kill the process):

    NACRE_FAULTS="mds.commit.before=kill after=3; rpc.reply.send=drop match=Write times=2"

Actions: `drop` (the message is lost, and with it the connection: no transport of ours loses one frame alone), `cut`
(the connection ends in the middle of the frame), `kill` (SIGKILL to the process itself), `fail` (EIO), `delay` (`s=`
seconds, in which the process does nothing), `skip` (what is about to be done is left out, and said to be done:
for tests of tests, at the points that end in `sync`). `match` is the subject (usually the request's name); for
`after` passes nothing happens, then `times` times (1 unless said) the action.
"""

import enum
import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

log = logging.getLogger("nacre.faults")

POINTS: Final[dict[str, str]] = {
    "rpc.request.send": "a request is about to go out; subject: its name",
    "rpc.request.receive": "a request has arrived and is about to be served; subject: its name",
    "rpc.reply.send": "an answer is about to go out; subject: the request's name",
    "rpc.reply.receive": "an answer has arrived and nobody has seen it; subject: the request's name",
    "rpc.frame.send": "a frame is about to go out; subject: its kind",
    "keyring.replace.before": "another keyring is on disk and about to take the place of the file",
    "keyring.replace.after": "it has, durably, and nobody has been told",
    "rdma.offer": "a client has a queue pair and is about to offer it",
    "rdma.answer": "a server has connected its queue pair to a client's and is about to say so",
    "rdma.switch": "both have agreed on RDMA and nobody has used it",
    "rdma.read": "the device is reading a request's bulk out of the other side's memory",
    "rdma.write": "the device is writing an answer's bulk into the other side's memory, and the answer is not sent",
    "mds.commit.before": "a batch is in SQL and is about to be committed; subject: what it does in the lifecycle tier "
    "(put_action, or the first of put_hsm, put_gone, put_archive, put_link_object, put_warmup …)",
    "mds.commit.after": "a batch has been committed and nobody knows; subject: the same",
    "mds.archive.begun": "an upload in parts has begun and is known durably",
    "mds.archive.part": "a part of a file is in the archive",
    "mds.archive.put": "a file's object is complete in the archive, and the MDS has not noted it",
    "mds.restore.part": "a part of a file is back",
    "mds.restore.synced": "all of a file is back, durably, and the MDS has not noted it",
    "oss.move.collected": "bytes for the archive are in memory",
    "oss.move.stored": "the archive has them and nobody knows",
    "oss.move.fetched": "bytes from the archive are in memory, and right",
    "oss.move.written": "they are on the OSTs and nobody knows",
    "oss.change.before": "an object file is about to be written, cut or punched",
    "oss.change.after": "an object file has been written, cut or punched, and nothing else has been done about it",
    "oss.index.before": "a transaction of an OST's index is about to begin",
    "oss.index.after": "a transaction of an OST's index is durable and nobody knows",
    "oss.sync": "an object file is about to be made durable; can be skipped",
    "client.sync": "a program's fsync is about to be served; can be skipped",
    "client.commit.before": "a client is about to report what it has written",
    "client.commit.after": "the MDS has taken a client's report and the client has not noticed",
    "client.recall.begin": "a client has been asked to give a lease back",
    "client.recall.answer": "a client is about to answer a recall",
}
"""Every point, and what has and has not happened when it is passed."""


class Outcome(enum.IntEnum):
    """What whoever passes a point has to do."""

    PASS = 0
    DROP = 1
    CUT = 2
    SKIP = 3


PASS: Final = Outcome.PASS
DROP: Final = Outcome.DROP
CUT: Final = Outcome.CUT
SKIP: Final = Outcome.SKIP
Action = Callable[[], Outcome | None]

on: bool = False
"""Whether anything is armed."""


class Fault:
    """An armed fault. `fired` counts how often it has happened: a test in which it did not has shown nothing."""

    def __init__(self, point: str, action: Action, match: str, after: int, times: int) -> None:
        self.point = point
        self.match = match
        self.fired = 0
        self._action = action
        self._passes_left = after
        self._times_left = times

    def passes(self, subject: str) -> bool:
        """Whether the action is due at this pass."""
        if self.match and self.match != subject:
            return False
        if self._passes_left:
            self._passes_left -= 1
            return False
        if not self._times_left:
            return False
        self._times_left -= 1
        self.fired += 1
        return True

    def act(self) -> Outcome:
        """Do it."""
        return self._action() or PASS

    def __repr__(self) -> str:
        return f"<Fault {self.point} {self.match} fired {self.fired} times>"


_armed: dict[str, list[Fault]] = {}
_lock: Final = threading.Lock()


def hit(point: str, subject: str = "") -> Outcome:
    """A point is passed (only called while `on`); what is to be done about it."""
    with _lock:
        due = [fault for fault in _armed.get(point, ()) if fault.passes(subject)]
    outcome = PASS
    for fault in due:
        log.warning("fault at %s (%s)", point, subject)
        outcome = max(outcome, fault.act())
    return outcome


def arm(point: str, action: Action, *, match: str = "", after: int = 0, times: int = 1) -> Fault:
    """Arm a fault until `disarm`; ValueError if there is no such point."""
    global on  # noqa: PLW0603 - one global is what makes a point cheap
    if point not in POINTS:
        raise ValueError(f"there is no fault point {point!r}; there are: {', '.join(POINTS)}")
    fault = Fault(point, action, match, after, times)
    with _lock:
        _armed.setdefault(point, []).append(fault)
        on = True
    return fault


def disarm(fault: Fault) -> None:
    """Take a fault back."""
    global on  # noqa: PLW0603 - one global is what makes a point cheap
    with _lock:
        left = _armed.get(fault.point, [])
        if fault in left:
            left.remove(fault)
        if not left:
            _armed.pop(fault.point, None)
        on = bool(_armed)


@contextmanager
def armed(point: str, action: Action, *, match: str = "", after: int = 0, times: int = 1) -> Generator[Fault]:
    """Arm a fault for a while. Leaving it without an error is one (AssertionError) if the fault has not happened."""
    fault = arm(point, action, match=match, after=after, times=times)
    try:
        yield fault
    finally:
        disarm(fault)
    if not fault.fired:
        raise AssertionError(f"the fault at {point} ({match or 'anything'}) has not happened: the test shows nothing")


# -------------------------------------------------------------------------------------------------------------- actions


def drop() -> Outcome:
    """The message is lost."""
    return DROP


def cut() -> Outcome:
    """The connection ends in the middle of the frame."""
    return CUT


def skip() -> Outcome:
    """What was about to be done is left out."""
    return SKIP


def kill() -> Outcome:
    """The process is killed."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)  # the other threads may run for a moment; this one must not
    raise AssertionError("unreachable")


def fail() -> Outcome:
    """Whatever was about to be done fails."""
    raise OSError(errno.EIO, "a fault was injected here (NACRE_FAULTS)")


def delay(seconds: float) -> Action:
    """The process does nothing for a while."""

    def act() -> Outcome:
        time.sleep(seconds)
        return PASS

    return act


def arm_from(text: str) -> list[Fault]:
    """Arm what a text asks for, in the form that stands above; ValueError that says which part is wrong."""
    faults: list[Fault] = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        first, *options = part.split()
        point, _, what = first.partition("=")
        values: dict[str, str] = {}
        for option in options:
            name, _, value = option.partition("=")
            values[name] = value
        actions: dict[str, Action] = {"drop": drop, "cut": cut, "kill": kill, "fail": fail, "skip": skip}
        if what == "delay":
            actions["delay"] = delay(float(values.pop("s", "1")))
        if what not in actions or not values.keys() <= {"match", "after", "times"}:
            raise ValueError(f"NACRE_FAULTS: {part!r} is not POINT=ACTION [match=NAME] [after=N] [times=N]")
        numbers = {name: int(values[name]) for name in ("after", "times") if name in values}
        faults.append(arm(point, actions[what], match=values.get("match", ""), **numbers))
    return faults


if _text := os.environ.get("NACRE_FAULTS", ""):
    log.warning("faults are armed: %s", _text)
    arm_from(_text)
