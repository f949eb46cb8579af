"""Requests about lifecycle rules."""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nacrefs.common import wire
from nacrefs.common.rpc import Call, Handler
from nacrefs.common.wire import Done, Inspection
from nacrefs.mds.lifecycle.report import documents, explain, report, status
from nacrefs.mds.lifecycle.standing import ACTIVE, PAUSED
from nacrefs.mds.once import Keep
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

LIFECYCLE_REQUESTS: Final[tuple[type[wire.Request[Any]], ...]] = (
    wire.SetLifecycle, wire.RemoveRule, wire.SetRuleState, wire.RunRule, wire.AskLifecycle,
)  # fmt: skip


class LifecycleDesk:
    """Answers them."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self._rules = mds.lifecycle

    def handlers(self) -> dict[type[wire.Request[Any]], Handler]:
        """The table of these requests."""
        return {
            wire.SetLifecycle: self._mds.once.handler(self._put),
            wire.RemoveRule: self._mds.once.handler(self._remove),
            wire.SetRuleState: self._mds.once.handler(self._set_state),
            wire.RunRule: self._mds.once.handler(self._run),
            wire.AskLifecycle: self._ask,
        }

    async def _put(self, request: wire.SetLifecycle, keep: Keep) -> Inspection:
        answer = Inspection(b"")

        def also(step: Step, warnings: list[str]) -> None:
            nonlocal answer
            answer = _json({"rules": len(self._rules.standing), "warnings": warnings})
            keep(step, answer)

        await self._rules.put(request.document, request.source, request.keep, request.recall, also)
        return answer

    async def _remove(self, request: wire.RemoveRule, keep: Keep) -> Done:
        await self._rules.remove(request.rule, request.keep, request.recall, lambda step: keep(step, Done()))
        return Done()

    async def _set_state(self, request: wire.SetRuleState, keep: Keep) -> Done:
        if request.state == "stopped":
            self._rules.need(request.rule)
            self._rules.stop_run(request.rule, request.reason or "it was stopped")
            await self._mds.journal.submit_own(lambda step: keep(step, Done()))
        elif request.state in (ACTIVE, PAUSED):
            await self._rules.set_state(request.rule, request.state, request.reason, lambda step: keep(step, Done()))
        else:
            raise OSError(errno.EINVAL, f"{request.state!r} is none of {ACTIVE}, {PAUSED}, stopped")
        return Done()

    async def _run(self, request: wire.RunRule, keep: Keep) -> Inspection:
        ahead_ns = request.now_ns - self._mds.clock.now_ns() if request.now_ns else 0
        if not request.dry:
            answer = _json({"rule": request.rule, "state": "running"})
            self._rules.run_now(request.rule, ahead_ns)
            await self._mds.journal.submit_own(lambda step: keep(step, answer))
            return answer
        run = await self._rules.try_out(request.rule, ahead_ns)
        return _json({"rule": request.rule, **run.tally.plain(), "files": run.sample})

    async def _ask(self, request: wire.AskLifecycle, call: Call) -> Inspection:
        rules = self._rules
        now_ns = request.now_ns or self._mds.clock.now_ns()
        answers: dict[str, Callable[[], Any]] = {
            "rules": lambda: documents(rules),
            "status": lambda: status(rules),
            "explain": lambda: explain(self._mds, rules, request.fid, now_ns),
        }
        if request.what == "report":
            return _json(await report(self._mds, rules))
        if request.what not in answers:
            raise OSError(errno.EINVAL, f"{request.what[:80]!r} is none of {', '.join(answers)}, report")
        return _json(answers[request.what]())


def _json(value: Any) -> Inspection:
    return Inspection(msgspec.json.encode(value))
