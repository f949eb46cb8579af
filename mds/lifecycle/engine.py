"""Lifecycle rules at work: which there are, when they run, what stops them, and what came of them."""

import asyncio
import errno
import json
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nacrefs.common.wire import HsmAction
from nacrefs.mds.hsm.rows import ActionRow
from nacrefs.mds.hsm.steps import NotDue
from nacrefs.mds.lifecycle.candidates import Candidate, in_states, pages
from nacrefs.mds.lifecycle.document import DocumentError, parse_document, plain_document
from nacrefs.mds.lifecycle.indexes import RuleIndexes, any_of, needed, needed_by
from nacrefs.mds.lifecycle.judging import Judge, candidates_of, directory_fid
from nacrefs.mds.lifecycle.pace import give_turn
from nacrefs.mds.lifecycle.queries import queries_of
from nacrefs.mds.lifecycle.rules import Act, Configuration, Rule, Watermarks
from nacrefs.mds.lifecycle.run import ACT_OF, ONLY_THERE, Run
from nacrefs.mds.lifecycle.standing import (
    ACTIVE,
    PAUSED,
    RECALLING,
    STATES,
    SUSPENDED,
    WATERMARKS,
    Standing,
    standing_of,
    watermarks_of,
)
from nacrefs.mds.lifecycle.watermarks import CAUSE, Keeper
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

log = logging.getLogger("nacre.mds")

RETRY_S: Final = 60.0


class Lifecycle:
    """All rules of an MDT."""

    def __init__(self, mds: "Mds") -> None:
        self._mds = mds
        self.standing: dict[str, Standing] = {}
        self.runs: dict[str, Run] = {}
        """Those under way, by rule."""
        self.watermarks: Watermarks | None = None
        self.indexes = RuleIndexes(mds.mdt.store, mds.journal, lambda: needed(self.rules(), self.watermarks))
        self.keeper = Keeper(mds, self.indexes)
        self.watermarks_document = ""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._setting = asyncio.Lock()
        """Held by who changes which rules there are: of two documents that come at once one is in force, not both."""
        mds.hsm.guard = self._guard
        mds.hsm.on_end = self._ended

    # ------------------------------------------------------------------------------------------------------ life cycle

    def start(self) -> None:
        """Take up the rules that are there, and the removals that an earlier run has begun."""
        store = self._mds.mdt.store
        for row in store.fetchall(store.statements.rules):
            try:
                if row[0] == WATERMARKS:
                    self._set_watermarks(row[2])
                else:
                    self.standing[row[0]] = standing_of(row)
            except ValueError as error:  # the others are served nevertheless; `nacre fsck` tells of this one
                log.error("lifecycle rule %r cannot be read: %s", row[0], error)
        self._spawn(self.indexes.keep())
        for one in self.standing.values():
            if one.state == RECALLING:
                self._begin_recall(one)

    def _set_watermarks(self, document: str) -> None:
        self.watermarks = watermarks_of(document)
        self.watermarks_document = document
        self.keeper.marks = self.watermarks

    async def stop(self) -> None:
        """End; what was queued goes on next time."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def tick(self) -> None:
        """Time has passed: begin what is due."""
        if self._stopping or self._mds.grace.running:
            return
        now_ns = self._mds.clock.now_ns()
        for one in self.standing.values():
            at_ns = one.next_run_ns()
            if at_ns is not None and at_ns <= now_ns and one.rule.id not in self.runs:
                self._spawn(self._run(one, self._begin(one)))
        if self.keeper.due(now_ns):
            self._spawn(self.keeper.keep())

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_over)

    def _task_over(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a lifecycle task failed", exc_info=task.exception())

    # ----------------------------------------------------------------------------------------------------------- rules

    def rules(self) -> list[Rule]:
        """All rules, in the order of their document."""
        return [one.rule for one in sorted(self.standing.values(), key=lambda one: one.position)]

    def need(self, identity: str) -> Standing:
        """A rule by its ID; OSError (ENOENT)."""
        one = self.standing.get(identity)
        if one is None:
            raise OSError(errno.ENOENT, f"there is no lifecycle rule {identity!r}")
        return one

    def judge(self) -> Judge:
        """Who says now which rule a file is under. Rules that are being removed still have their files."""
        return Judge(self._mds.journal.reading, self.rules(), self._mds.hsm.archives)

    async def put(
        self,
        text: str,
        source: str,
        keep: bool,
        recall: bool,
        also: Callable[[Step, list[str]], None] = lambda step, warnings: None,
    ) -> None:
        """Replace all rules by those of a document. `also` is part of the last step, and is told what the author should
        know. OSError: EINVAL with every mistake, a line each; EBUSY if a rule that would go has released files and
        neither `keep` nor `recall` is given."""
        try:
            wanted = parse_document(text, source)
        except DocumentError as error:
            raise OSError(errno.EINVAL, str(error)) from None
        plain = plain_document(text)
        marks = json.dumps(plain["Watermarks"]) if "Watermarks" in plain else ""
        async with self._setting:
            self._check_archives(wanted, source)
            going = [one for one in self.standing.values() if one.rule.id not in {rule.id for rule in wanted.rules}]
            if not keep and not recall:
                for one in going:
                    await self._check_removal(one)
            warnings = self._warnings(wanted)
            coming = [
                self._standing(rule, position, json.dumps(document))
                for position, (rule, document) in enumerate(zip(wanted.rules, plain["Rules"], strict=True))
            ]
            self._set_watermarks(marks)

            def put(step: Step) -> None:
                for one in coming:
                    _put(one, step)
                self._put_watermarks(step)
                also(step, warnings)

            await self._let_go(going, recall, put)

    def _standing(self, rule: Rule, position: int, document: str) -> Standing:
        """A rule of a new document, in force from now on, as far as it was there before in the state that it had."""
        before = self.standing.get(rule.id)
        one = self.standing[rule.id] = Standing(rule, position, document)
        if before is None:
            one.counts.put_ns = self._mds.clock.now_ns()
            return one
        one.last_run_ns, one.counts = before.last_run_ns, before.counts
        if before.state == RECALLING:
            self.stop_run(rule.id, "the rule is there again")
        else:
            if before.document != document:
                self.stop_run(rule.id, "the rule was changed")
            one.state, one.reason = before.state, before.reason
        return one

    def _put_watermarks(self, step: Step) -> None:
        row = (WATERMARKS, -1, self.watermarks_document, ACTIVE, "", 0, "{}")
        step.tx.run(*(("put_rule", row) if self.watermarks_document else ("delete_rule", (WATERMARKS,))))

    async def settle(self, identity: str) -> str:
        """The stored rule cannot be read, or makes no sense: store what is in force, or remove it."""
        one = self.standing.get(identity)
        if identity == WATERMARKS:
            await self._mds.journal.submit_own(self._put_watermarks)
        elif one is None:
            await self._mds.journal.submit_own(lambda step: step.tx.run("delete_rule", (identity,)))
        else:
            if one.state not in STATES:
                one.state, one.reason = PAUSED, "its state was unknown"
            await self._keep(one)
        return ""

    def _check_archives(self, wanted: Configuration, source: str) -> None:
        known = {spec.name for spec in self._mds.hsm.archives.values()}
        for rule in wanted.rules:
            for step in rule.transitions:
                if step.archive and step.archive not in known:
                    names = ", ".join(sorted(known)) or "none yet"
                    raise OSError(
                        errno.EINVAL, f"{source}:{rule.line}: there is no archive {step.archive!r} (there are: {names})"
                    )

    def _warnings(self, wanted: Configuration) -> list[str]:
        found: list[str] = []
        for rule in wanted.rules:
            try:
                directory_fid(self._mds.journal.reading, rule.directory)
                self.judge().owners(rule)
            except OSError as error:
                found.append(f"rule {rule.id}: {error.strerror}")
        pools = self._mds.targets.pools
        if wanted.watermarks is not None:
            found += [f"there is no pool {name!r}" for name, _, _ in wanted.watermarks.pools if name not in pools]
        return found

    async def remove(self, identity: str, keep: bool, recall: bool, also: Callable[[Step], None]) -> None:
        """Remove a rule; `also` is part of that step. OSError (EBUSY) if files of it are released and neither `keep`
        (they stay so) nor `recall` (they are brought back first) is given."""
        async with self._setting:
            one = self.need(identity)
            if not keep and not recall:
                await self._check_removal(one)
            await self._let_go([one], recall, also)

    async def _let_go(self, going: list[Standing], recall: bool, also: Callable[[Step], None]) -> None:
        """Rules are in force no more. `also` is part of that step."""
        begun = [one for one in going if one.state != RECALLING] if recall else []
        for one in begun if recall else going:
            self.stop_run(one.rule.id, "the rule was removed")
        for one in begun:
            one.state, one.reason = RECALLING, "it is removed when its files are back"

        def put(step: Step) -> None:
            for one in going:
                if recall:
                    _put(one, step)
                else:
                    step.tx.run("delete_rule", (one.rule.id,))
            also(step)

        await self._mds.journal.submit_own(put)
        if not recall:
            for one in going:
                self.standing.pop(one.rule.id, None)
        for one in begun:
            self._begin_recall(one)
        self.indexes.settle()

    async def _forget(self, one: Standing) -> None:
        async with self._setting:
            if self.standing.get(one.rule.id) is one:
                await self._mds.journal.submit_own(lambda step: step.tx.run("delete_rule", (one.rule.id,)))
                del self.standing[one.rule.id]
                self.indexes.settle()

    async def _check_removal(self, one: Standing) -> None:
        """OSError (EBUSY) if a file that the rule is about is released."""
        store = self._mds.mdt.store
        judge = self.judge()
        try:
            top = directory_fid(self._mds.journal.reading, one.rule.directory)
        except OSError:
            return
        await self.indexes.have(needed_by(one.rule))
        scan = in_states(ONLY_THERE, any_of(one.rule), 1 << 62)
        for page in pages(store, queries_of(store.backend), scan, top):
            begun_s = time.perf_counter()
            if any(judge.decision(one.rule, file, 0) is not None for file in page):
                raise OSError(
                    errno.EBUSY,
                    f"rule {one.rule.id} has released files: --recall brings them back first, --keep leaves them so",
                )
            await give_turn(begun_s)

    async def set_state(self, identity: str, state: str, reason: str, also: Callable[[Step], None]) -> None:
        """Pause a rule, or let it run again. `also` is part of the step."""
        one = self.need(identity)
        if one.state == RECALLING:
            raise OSError(errno.EBUSY, f"rule {identity} is being removed: its files are brought back")
        if state != ACTIVE:
            self.stop_run(identity, f"{state}: {reason}" if reason else state)
        one.state, one.reason = state, reason

        def put(step: Step) -> None:
            _put(one, step)
            also(step)

        await self._mds.journal.submit_own(put)

    async def _keep(self, one: Standing) -> None:
        await self._mds.journal.submit_own(partial(_put, one))

    # ------------------------------------------------------------------------------------------------------------ runs

    def _begin(self, one: Standing, ahead_ns: int = 0, dry: bool = False) -> Run:
        run = Run(self._mds, one.rule, self.judge(), ahead_ns, dry)
        if not dry:
            self.runs[one.rule.id] = run
        return run

    def run_now(self, identity: str, ahead_ns: int) -> None:
        """Begin a run at once. OSError (EBUSY) if one is under way, or the rule is being removed or switched off."""
        one = self.need(identity)
        if identity in self.runs:
            raise OSError(errno.EBUSY, f"rule {identity} is running already")
        if not one.rule.enabled:
            raise OSError(errno.EBUSY, f"rule {identity} is Disabled")
        if one.state not in (ACTIVE, SUSPENDED):
            raise OSError(errno.EBUSY, f"rule {identity} is {one.state}")
        self._spawn(self._run(one, self._begin(one, ahead_ns)))

    async def try_out(self, identity: str, ahead_ns: int) -> Run:
        """What a run would do, without doing it."""
        run = self._begin(self.need(identity), ahead_ns, True)
        await run.go()
        return run

    def stop_run(self, identity: str, why: str) -> None:
        """End a run early, if there is one."""
        run = self.runs.get(identity)
        if run is not None:
            run.stop(why)

    async def _run(self, one: Standing, run: Run) -> None:
        identity = one.rule.id
        one.last_run_ns = run.tally.started_ns
        log.info("lifecycle rule %s runs", identity)
        try:
            await self._keep(one)
            await run.go()
        except OSError as error:
            run.tally.problem = error.strerror or str(error)
            log.warning("lifecycle rule %s: %s", identity, run.tally.problem)
        try:
            await self._note(identity, run)
        finally:
            self.runs.pop(identity, None)

    async def _note(self, identity: str, run: Run) -> None:
        """A run is over: its counts are kept, and the rule is suspended if it failed too often."""
        run.tally.ended_ns = self._mds.clock.now_ns()
        current = self.standing.get(identity)
        if current is None:
            return
        current.last_run_ns = run.tally.started_ns
        current.counts.last = run.tally
        current.counts.total.include(run.tally)
        if run.suspend:
            current.state, current.reason = SUSPENDED, run.suspend
            log.warning("lifecycle rule %s is suspended: %s", identity, run.suspend)
        await self._keep(current)

    def _begin_recall(self, one: Standing) -> None:
        self._spawn(self._recall(one))

    async def _recall(self, one: Standing) -> None:
        """Bring back what a rule has released, until nothing is left, and forget the rule."""
        while not self._stopping and self.standing.get(one.rule.id) is one:
            run = Run(self._mds, one.rule, self.judge(), 0, False, True)
            self.runs[one.rule.id] = run
            try:
                await run.go()
            except OSError as error:
                run.tally.problem = error.strerror or str(error)
            finally:
                self.runs.pop(one.rule.id, None)
            one.counts.last = run.tally
            one.counts.total.include(run.tally)
            if self.standing.get(one.rule.id) is not one:  # it is removed without, or there again
                return
            if not run.tally.matched and not run.stopped:
                await self._forget(one)
                return
            if run.tally.failed or run.tally.left:
                reasons = "; ".join(run.tally.reasons) or run.tally.problem
                one.reason = f"some files could not be brought back yet: {reasons}"
                await self._keep(one)
                await asyncio.sleep(RETRY_S)

    # ------------------------------------------------------------------------------------- between queue and archive

    def thaw_of(self, fid: int) -> tuple[int, str]:
        """For how many days, and how fast, a cold copy of a file is made readable."""
        settings, reading = self._mds.settings, self._mds.journal.reading
        days, tier = 0, ""
        inode = reading.inode(fid)
        for file in [] if inode is None else candidates_of(reading, inode):
            place = self.judge().place(file.parent)
            for rule in () if place is None else place.rules:
                days, tier = days or rule.thaw.days, tier or rule.thaw.tier
        return days or settings.thaw_days, tier or settings.thaw_tier

    def _guard(self, step: Step, row: ActionRow) -> None:
        """Raise NotDue unless what a rule wanted is still due, now that it begins."""
        cause, _, identity = row.cause.partition(":")
        if cause == CAUSE:
            self.keeper.guard(step, row)
        if cause == "rule" and row.kind != HsmAction.RESTORE:
            self.check_due(step, identity, candidates_of(step.tx, step.tx.need(row.fid)), ACT_OF[row.kind])

    def check_due(self, step: Step, identity: str, names: Iterable[Candidate], act: Act) -> None:
        """Raise NotDue unless a rule, as it is now, wants this done with a file, as that is now under one of these
        names."""
        one = self.standing.get(identity)
        if one is None or not one.rule.enabled:
            raise NotDue("the rule is not there any more")
        if one.state not in (ACTIVE, SUSPENDED):
            raise NotDue(f"the rule is {one.state}")
        run = self.runs.get(identity)
        now_ns = step.now_ns + (0 if run is None else run.ahead_ns)
        judge = Judge(step.tx, self.rules(), self._mds.hsm.archives)
        why = "the rule is not about it any more"
        for file in names:
            decision = judge.decision(one.rule, file, now_ns)
            if decision is None:
                continue
            if decision.act is act:
                return
            why = decision.reason
        raise NotDue(why)

    def _ended(self, row: ActionRow) -> None:
        """An action is over."""
        cause, _, identity = row.cause.partition(":")
        if cause == CAUSE:
            self.keeper.ended(row)
        elif cause in ("rule", "recall") and identity in self.runs:
            self.runs[identity].ended(row)


def _put(one: Standing, step: Step) -> None:
    step.tx.run("put_rule", one.row())
