"""After every test: no task, thread, file descriptor, process or mount is left that was not there before it."""

import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile(  # a busy machine is no fault of an example
    "unhurried",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="NACRE_EXPLORE" not in os.environ,  # the same examples each time, but where new ones are looked for
)
hypothesis.settings.load_profile("unhurried")

pytest_plugins = ["tests.postgres", "tests.s3"]

ENDING_S = 10.0
"""How long what a test has used may take to end."""
MOUNT_FIELD = 4
"""Where the mount point stands in a line of /proc/self/mountinfo (proc_pid_mountinfo(5))."""


def _descriptors() -> set[str]:
    """Open descriptors as `number -> what it is`."""
    found: set[str] = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"fd {number} -> {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:  # the descriptor through which the directory itself was read
            continue
    return found


def _children() -> set[str]:
    """Child processes, zombies included."""
    found: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            pids = Path(f"/proc/self/task/{task}/children").read_text().split()
        except FileNotFoundError:  # the thread has ended
            continue
        found.update(f"child process {pid}" for pid in pids)
    return found


def _mounts(under: Path) -> set[str]:
    """Mounts below `under`; others may belong to another test run on this machine."""
    points = (line.split()[MOUNT_FIELD] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return {f"mount {point}" for point in points if point.startswith(f"{under}/")}


class Belongings:
    """What this process holds that a test could leave behind."""

    def __init__(self, temporary: Path) -> None:
        """`temporary` is the directory below which tests mount."""
        self.temporary = temporary
        self.known = self._now()
        self.known_threads = set(threading.enumerate())

    def _now(self) -> set[str]:
        return _descriptors() | _children() | _mounts(self.temporary)

    def accept(self) -> None:
        """Take what is there now as belonging there."""
        self.known |= self._now()
        self.known_threads |= set(threading.enumerate())

    def left(self) -> list[str]:
        """What is there now and was not before; what is about to end, or to be closed by another thread, is waited
        for."""
        until_s = time.monotonic() + ENDING_S
        threads = set(threading.enumerate()) - self.known_threads
        for thread in threads:
            thread.join(timeout=max(0.0, until_s - time.monotonic()))
        left = self._now() - self.known
        if left:
            gc.collect()
            left = self._now() - self.known
        while left and time.monotonic() < until_s:
            time.sleep(0.02)
            left = self._now() - self.known
        return sorted(left) + [f"thread {thread.name}" for thread in threads if thread.is_alive()]


_BELONGINGS = pytest.StashKey[Belongings]()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Fail a test that leaves a descriptor, process, thread or mount."""
    belongings = Belongings(tmp_path_factory.getbasetemp())
    request.config.stash[_BELONGINGS] = belongings
    yield
    del request.config.stash[_BELONGINGS]
    if left := belongings.left():
        pytest.fail("the test left behind: " + ", ".join(left), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """What a fixture of wider scope sets up on behalf of a test outlives it rightly."""
    result = yield
    belongings = request.config.stash.get(_BELONGINGS, None)
    if belongings is not None and fixturedef.scope != "function":
        belongings.accept()
    return result


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        pytest.fail("the test left tasks: " + ", ".join(map(repr, left)), pytrace=False)


@pytest.fixture(autouse=True)
def no_task_left_behind(nothing_left_behind: None, request: pytest.FixtureRequest) -> None:
    """Fail an asynchronous test that leaves a task; set up first, it looks when all other fixtures are gone."""
    if "asyncio" in request.keywords:  # pytest-asyncio marks what it runs
        request.getfixturevalue("_no_task_left")
