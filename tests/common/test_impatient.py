"""Requests that do not wait for ever, and whose time counts. (In a soft mount: tests/client/test_soft.py.)"""

import errno
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from nacrefs.common.impatient import ImpatientRemote
from nacrefs.common.observe import Meter
from nacrefs.common.rpc import LATER, Call
from nacrefs.common.wire import Inspect, Keepalive
from tests.common.endpoints import HANDLERS, KEYRING, Ends, Handlers, ends


def silence(request: Keepalive, call: Call) -> Any:
    return LATER


SILENT: Handlers = {**HANDLERS, Keepalive: silence}


@pytest.fixture
async def both() -> AsyncGenerator[Ends]:
    async with ends("tcp", SILENT) as made:
        yield made


async def impatient(both: Ends, patience_s: float) -> ImpatientRemote:
    remote = ImpatientRemote(both.url, KEYRING.best_credentials(), "client-1", {}, Meter())
    remote.patience_s = patience_s
    both.remotes.append(remote)
    await remote.open()
    return remote


async def test_a_request_that_a_silent_server_does_not_answer_fails(both: Ends) -> None:
    remote = await impatient(both, 0.08)
    with pytest.raises(OSError, match="no answer for 0.08 s") as caught:
        await remote.call(Keepalive())
    assert caught.value.errno == errno.EIO


async def test_a_process_that_was_stopped_reads_what_the_server_has_said_meanwhile(both: Ends) -> None:
    remote = await impatient(both, 0.08)
    answer = remote.call(Inspect("x"))
    time.sleep(0.2)  # as after SIGSTOP: neither the event loop nor its timers run
    assert (await answer).report == b"x"
