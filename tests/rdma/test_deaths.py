"""Killed at any moment: the other side hears of it in bounded time, and no byte is written where it must not be.

Real processes over a real device, SIGKILL at named moments of a connection's life and at random ones. What is left
in the device is counted by the kernel.
"""

import asyncio
import gc
import os
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager
from multiprocessing import Pipe
from multiprocessing.context import ForkServerProcess
from typing import NamedTuple

import pytest

from nacrefs.common import arena, faults
from nacrefs.common.observe import Meter
from nacrefs.common.remote import Remote
from tests.common.endpoints import KEYRING, Ends, ends, results
from tests.rdma.forked import forkserver
from tests.rdma.test_links import held
from tests.rdma.victim import AT_ONCE, BULK_BYTES, GUARD, Memory, Place, buffers, calls, live

pytestmark = pytest.mark.timeout(900)

BOUND_S = 30.0
"""So long after a death at most the other side hears of it (emulated, on a busy machine; elsewhere milliseconds)."""
ROOM_S = 300.0
"""For what is not what is tested."""
MOMENT_S = 100.0
LATE_S = 0.5
"""So long is waited for writes that must not come."""
EXPECTED = (bytes(range(256)) * (BULK_BYTES // 256 + 1))[:BULK_BYTES]
SEED = int(os.environ.get("NACRE_TEST_SEED", "20261130"))
KILLS = 40
LATEST_S = 1.5


class Moment(NamedTuple):
    """When the victim is killed: at a fault point, which its own process or the other one passes."""

    name: str
    passed_by: str
    point: str
    match: str = ""


SERVER_DIES = [
    Moment("connecting, offered", "other", "rdma.offer"),
    Moment("connecting, about to answer", "victim", "rdma.answer"),
    Moment("connecting, agreed", "victim", "rdma.switch"),
    Moment("a request has come", "victim", "rpc.request.receive", "Read"),
    Moment("in the middle of its READ", "victim", "rdma.read"),
    Moment("in the middle of its WRITE", "victim", "rdma.write"),
    Moment("before the reply", "victim", "rpc.reply.send", "Write"),
    Moment("after the reply", "other", "rpc.reply.receive", "Read"),
    Moment("idle", "", ""),
]
CLIENT_DIES = [
    Moment("connecting, about to offer", "victim", "rdma.offer"),
    Moment("connecting, about to be answered", "other", "rdma.answer"),
    Moment("connecting, agreed", "victim", "rdma.switch"),
    Moment("before a request", "victim", "rpc.request.send", "Read"),
    Moment("a request has been sent", "other", "rpc.request.receive", "Read"),
    Moment("in the middle of the server's READ", "other", "rdma.read"),
    Moment("in the middle of the server's WRITE", "other", "rdma.write"),
    Moment("before the reply", "other", "rpc.reply.send", "Write"),
    Moment("after the reply", "victim", "rpc.reply.receive", "Read"),
    Moment("idle", "", ""),
]
SHORT = {"in the middle of its WRITE", "in the middle of the server's READ"}
"""What CI runs, too."""


def moments(all_of_them: list[Moment]) -> pytest.MarkDecorator:
    """As parameters."""
    return pytest.mark.parametrize(
        "moment",
        [
            pytest.param(each, id=each.name, marks=[] if each.name in SHORT else [pytest.mark.slow])
            for each in all_of_them
        ],
    )


# -------------------------------------------------------------------------------------------------------------- victims


class Victim:
    """A process of its own, and its memory."""

    def __init__(self, url: str = "", fault: str = "") -> None:
        self._pipe, theirs = Pipe()
        self._process: ForkServerProcess = forkserver().Process(target=live, args=(theirs, KEYRING, url, fault))
        self._process.start()
        theirs.close()
        assert self._pipe.poll(ROOM_S), "the victim does not live"
        place: Place = self._pipe.recv()
        self.url = place.url
        assert self._process.pid is not None
        self._pid = self._process.pid
        self.memory = Memory(self._pid, place)

    def go(self) -> None:
        """Do what is to be done."""
        self._pipe.send("go")

    async def answered(self) -> None:
        """Wait until its calls have been answered."""
        while not self._pipe.poll():
            await asyncio.sleep(0.02)
        assert self._pipe.recv() == "answered"

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def dying(self) -> Callable[[], None]:
        """As what a fault does."""
        return self.kill

    async def dead(self, lost: "asyncio.Future[OSError] | None" = None) -> None:
        """Wait until it is gone, and was killed. (`lost` tells why the moment did not come.)"""
        until_s = time.monotonic() + MOMENT_S
        while self._process.is_alive():
            assert time.monotonic() < until_s, ("the moment did not come", lost)
            await asyncio.sleep(0.02)
        self._process.join()
        assert self._process.exitcode == -signal.SIGKILL

    def bury(self) -> None:
        if self._process.is_alive():
            self.kill()
        self._process.join(ROOM_S)
        self._process.close()
        self._pipe.close()
        self.memory.close()


@pytest.fixture(scope="module", autouse=True)
def processes() -> None:
    """What victims are forked from outlives a test rightly."""
    forkserver()


def fault(moment: Moment) -> str:
    """What the victim is told in advance."""
    if moment.passed_by != "victim":
        return ""
    return f"{moment.point}=kill" + (f" match={moment.match}" if moment.match else "")


def armed_here(moment: Moment, victim: Victim) -> ExitStack:
    """Kill the victim when this process passes the moment's point."""
    stack = ExitStack()
    if moment.passed_by == "other":
        stack.enter_context(faults.armed(moment.point, victim.dying(), match=moment.match))
    return stack


async def back_to(before: dict[str, int]) -> None:
    """Wait until the device has as much in use as before."""
    until_s = time.monotonic() + BOUND_S
    while (now := held()) != before:
        assert time.monotonic() < until_s, f"{before} was in use of the device, and now {now}"
        await asyncio.sleep(0.2)


def tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


# -------------------------------------------------------------------------------------------------------- server killed


class Survivor:
    """A client whose server dies, with its calls and its memory."""

    def __init__(self, url: str) -> None:
        self.reading, self.writing, self.between = buffers(b"s")
        self.lost: asyncio.Future[OSError] = asyncio.get_running_loop().create_future()
        self.remote = Remote(url, KEYRING.best_credentials(), "survivor", {}, Meter(), handshake_s=BOUND_S)
        self.remote.on_lost = self._lost
        self.asked: list[asyncio.Future[object]] = []

    def _lost(self, error: OSError) -> None:
        if not self.lost.done():
            self.lost.set_result(error)

    async def live(self) -> None:
        """Connect and ask, until the server is lost."""
        try:
            await self.remote.open()
        except OSError as error:
            self._lost(error)
            return
        self.asked = list(calls(self.remote, self.reading, self.writing))
        await self.lost

    async def checked(self) -> int:
        """What its memory must be like after the server's death, and stay; how many calls had been answered."""
        done = [future for future in self.asked if future.done()]
        for view, future in zip(self.reading, self.asked[::2], strict=False):
            if future.done():
                assert future.exception() is None
                assert bytes(view) == EXPECTED
        for view in (*self.reading, *self.writing):
            view[:] = b"z" * len(view)  # its owner's again, for something else
        await asyncio.sleep(LATE_S)
        assert all(bytes(view) == b"z" * len(view) for view in (*self.reading, *self.writing)), "a stale write"
        assert all(bytes(view) == GUARD * len(view) for view in self.between)
        return len(done)

    async def close(self) -> None:
        await self.remote.aclose()
        ended = await results(self.asked)
        assert all(not isinstance(end, BaseException) or isinstance(end, OSError) for end in ended)


async def survive(victim: Victim, moment: Moment | None, kill_after_s: float = 0.0) -> int:
    """A client of a server that is killed, at a moment or after a time."""
    survivor = Survivor(victim.url)
    living = asyncio.ensure_future(survivor.live())
    try:
        if moment is None:
            await asyncio.sleep(kill_after_s)
            victim.kill()
        elif not moment.point:
            while not survivor.asked or not all(future.done() for future in survivor.asked):
                assert not survivor.lost.done(), survivor.lost.result()
                await asyncio.sleep(0.02)
            victim.kill()
        await victim.dead(survivor.lost)
        died_s = time.monotonic()
        error = await asyncio.wait_for(asyncio.shield(survivor.lost), BOUND_S)
        tell(f"{time.monotonic() - died_s:6.3f} s after the death: {error}")
        await living
        return await survivor.checked()
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)
        await survivor.close()


@moments(SERVER_DIES)
async def test_a_server_that_is_killed_leaves_its_client_an_error_and_no_stale_byte(moment: Moment) -> None:
    before = held()
    victim = Victim(fault=fault(moment))
    try:
        with armed_here(moment, victim):
            answered = await survive(victim, moment)
    finally:
        victim.bury()
    assert moment.name != "idle" or answered == 2 * AT_ONCE
    assert not answered or "connecting" not in moment.name
    await back_to(before)


# -------------------------------------------------------------------------------------------------------- client killed


@asynccontextmanager
async def served() -> AsyncGenerator[tuple[Ends, Survivor]]:
    """A server, with another client, which goes on whatever happens to the first."""
    async with ends("rdma", devices=True, handshake_s=BOUND_S) as both:
        bystander = Survivor(both.url)
        try:
            await bystander.remote.open()
            yield both, bystander
        finally:
            await bystander.close()


async def outlive(victim: Victim, both: Ends, bystander: Survivor, moment: Moment | None, after_s: float = 0.0) -> None:
    """A server one of whose clients is killed; its other client's calls go on."""
    victim.go()
    if moment is None:
        await asyncio.sleep(after_s)
        victim.kill()
    elif not moment.point:
        await victim.answered()
        victim.kill()
    await victim.dead()
    died_s = time.monotonic()
    while len(both.server.peers) > 1:
        assert time.monotonic() < died_s + BOUND_S, "the server has not noticed"
        await asyncio.sleep(0.005)
    tell(f"{time.monotonic() - died_s:6.3f} s after the death the server has no such client")
    remains = victim.memory.contents()
    answers = await results(calls(bystander.remote, bystander.reading, bystander.writing))
    assert not [answer for answer in answers if isinstance(answer, BaseException)]
    assert all(bytes(view) == EXPECTED for view in bystander.reading)
    await asyncio.sleep(LATE_S)
    assert victim.memory.contents() == remains, "written to after its owner's death"
    assert victim.memory.guarded()
    assert not bystander.lost.done()


@moments(CLIENT_DIES)
async def test_a_client_that_is_killed_is_forgotten_and_its_memory_left_alone(moment: Moment) -> None:
    async with served() as (both, bystander):
        before = held()
        victim = Victim(both.url, fault(moment))
        try:
            with armed_here(moment, victim):
                await outlive(victim, both, bystander, moment)
        finally:
            victim.bury()
        await back_to(before)


# --------------------------------------------------------------------------------------------------------------- random


@pytest.mark.slow
async def test_either_side_killed_at_random_moments_again_and_again() -> None:
    chance = random.Random(SEED)
    tell(f"seed {SEED}")
    answered: list[int] = []
    async with served() as (both, bystander):
        before, used = held(), arena.share().used_bytes
        for number in range(KILLS):
            client = chance.random() < 0.5
            victim = Victim(both.url if client else "")
            after_s = LATEST_S * chance.random() ** 3  # early ones are wanted on fast machines, too
            tell(f"{number}: the {'client' if client else 'server'} after {after_s:.3f} s")
            try:
                if client:
                    await outlive(victim, both, bystander, None, after_s)
                else:
                    answered.append(await survive(victim, None, after_s))
            finally:
                victim.bury()
            gc.collect()  # the last client's buffers are free now, or the next one's would need more to be registered
            assert arena.share().used_bytes == used
            await back_to(before)
    tell(f"answered before the server's death, of {2 * AT_ONCE} calls: {answered}")
    assert min(answered) == 0, "no server died early"
