"""One run of one rule: finds its files, has done with them what is due, and counts what became of it.

No more than WINDOW actions of a run wait in the coordinator's queue at a time. Pages are short, and after each, and
after it has been judged, clients have their turn (`pace.give_turn`).
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from nacrefs.common.wire import HsmAction, Unlink
from nacrefs.mds.hsm.queue import Wanted
from nacrefs.mds.hsm.rows import COPIED, FAILED, RELEASED, SUCCEED, ActionRow
from nacrefs.mds.hsm.steps import Gone, NotDue
from nacrefs.mds.lifecycle.candidates import Candidate, Pages, Scan, Stretch, in_states, pages
from nacrefs.mds.lifecycle.indexes import OF_CLASSES, any_of, needed_by
from nacrefs.mds.lifecycle.judging import Judge, candidates_of, directory_fid
from nacrefs.mds.lifecycle.pace import Pace, give_turn
from nacrefs.mds.lifecycle.places import class_place
from nacrefs.mds.lifecycle.queries import queries_of
from nacrefs.mds.lifecycle.rules import NS, STORAGE_CLASSES, Act, Age, Decision, Limits, Rule, is_colder
from nacrefs.mds.lifecycle.tally import Tally
from nacrefs.mds.namespace.remove import unlink
from nacrefs.mds.transactions.step import Step

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

WINDOW: Final = 2000
"""Actions of one run that wait or are under way."""
TOGETHER: Final = 8
"""Files that one transaction queues or deletes."""
SAMPLE: Final = 1000
"""Files that a dry run names."""
ERRORS_LEAST: Final = 20
"""Actions that must be over before their failures suspend a rule."""
ALL_STATES: Final = (0, COPIED, RELEASED, COPIED | RELEASED)
ONLY_THERE: Final = (RELEASED, COPIED | RELEASED)
_KIND: Final = {
    Act.ARCHIVE: HsmAction.ARCHIVE,
    Act.TRANSITION: HsmAction.TRANSITION,
    Act.RELEASE: HsmAction.RELEASE,
    Act.RECALL: HsmAction.RESTORE,
}
ACT_OF: Final = {int(kind): act for act, kind in _KIND.items()}


class Run:
    """A run that has begun. `ahead_ns`: how far the time that it assumes is ahead of the clock."""

    def __init__(self, mds: "Mds", rule: Rule, judge: Judge, ahead_ns: int, dry: bool, recall: bool = False) -> None:
        self._mds = mds
        self.rule = rule
        self._judge = judge
        self.ahead_ns = ahead_ns
        self.dry = dry
        self.recall = recall
        self.tally = Tally(started_ns=mds.clock.now_ns())
        self.sample: list[dict[str, Any]] = []
        self.pending: dict[int, int] = {}
        """Bytes of the files with which something is being done, by fid."""
        self.stopped = ""
        """Why it is to end early."""
        self.suspend = ""
        """Why the rule is not to run again by itself."""
        self._moved = asyncio.Event()
        self._full = False
        self._warmer: list[tuple[int, str, str]] = []
        """Archives and classes with copies that may have to go to a colder one: what they are called, and are."""
        self._taken = 0
        self._taken_bytes = 0
        self._limits = Limits() if recall else rule.limits
        self._pace = Pace(self._limits.rate_mibps * (1 << 20))

    @property
    def now_ns(self) -> int:
        """The time that the run assumes."""
        return self._mds.clock.now_ns() + self.ahead_ns

    # --------------------------------------------------------------------------------------------------------- finding

    async def go(self) -> None:
        """Do all that is due. OSError if the rule cannot run."""
        tx = self._mds.journal.reading
        top = directory_fid(tx, self.rule.directory)
        self._judge.owners(self.rule)
        now_ns = self.now_ns
        await self._mds.lifecycle.indexes.have(needed_by(self.rule))
        await self._find_classes()
        for act, source in self._sources(top, now_ns):
            while not self.stopped and not self._full:
                begun_s = time.perf_counter()
                page = next(source, None)
                if page is None:
                    break
                await give_turn(begun_s)
                begun_s = time.perf_counter()
                due = self._due(act, page, now_ns)
                await give_turn(begun_s)
                if due and not self.dry:
                    await self._act(act, due)
        while self.pending:
            await self._wait()

    async def _find_classes(self) -> None:
        """Where copies are that are to go to a colder class some day."""
        steps = [step for step in self.rule.transitions if step.storage_class]
        coldest = max((STORAGE_CLASSES.index(step.storage_class) for step in steps), default=0)
        if not coldest or self.recall:
            return
        names = {step.archive for step in self.rule.transitions if step.archive}
        hsm = self._mds.hsm
        for spec in [spec for spec in hsm.archives.values() if spec.name in names]:
            if await hsm.classes.able(spec, "class_change"):
                own = spec.storage_class or "STANDARD"
                self._warmer += [(spec.id, "", own), *((spec.id, name, name) for name in STORAGE_CLASSES[:coldest])]
            elif steps[-1] is not self.rule.transitions[0]:  # else only copies that people made are concerned
                self.tally.because(f"archive {spec.name} cannot change storage classes")

    def _sources(self, top: int, now_ns: int) -> Iterator[tuple[Act, Pages]]:
        """Where files may be with which something is due, act by act."""
        store = self._mds.mdt.store
        queries = queries_of(store.backend)
        rule = self.rule

        def aged(act: Act, states: tuple[int, ...], age: Age) -> tuple[Act, Pages]:
            return act, pages(store, queries, in_states(states, age.since, now_ns - round(age.seconds * NS)), top)

        if self.recall:
            yield Act.RECALL, pages(store, queries, in_states(ONLY_THERE, any_of(rule), 1 << 62), top)
            return
        if rule.expiration is not None:
            yield aged(Act.EXPIRE, ALL_STATES, rule.expiration)
        if rule.release is not None:  # before archiving: what this run archives, the next one releases
            yield aged(Act.RELEASE, (COPIED,), rule.release)
        if warmer := self._too_warm(now_ns):
            yield Act.TRANSITION, pages(store, queries, warmer, top)
        if rule.transitions:
            yield aged(Act.ARCHIVE, (0,), rule.transitions[0].age)

    def _too_warm(self, now_ns: int) -> Scan:
        """Copies that are in a warmer class than a step wants that may be due."""
        found: list[Stretch] = []
        for archive, storage_class, meaning in self._warmer:
            ages = [step.age for step in self.rule.transitions if is_colder(step.storage_class, meaning)]
            for since in dict.fromkeys(age.since for age in ages):
                youngest = min(age.seconds for age in ages if age.since is since)
                until_ns = now_ns - round(youngest * NS)
                found.append(Stretch(OF_CLASSES[since], class_place(archive, storage_class), until_ns))
        return found

    def _due(self, act: Act, page: list[Candidate], now_ns: int) -> list[tuple[Candidate, Decision]]:
        """Those of a page with which `act` is due, as far as the rule's limits allow."""
        limits, tally = self._limits, self.tally
        due: list[tuple[Candidate, Decision]] = []
        last = 0
        for one in page:
            tally.looked_at += one.fid != last
            if one.fid in self.pending or (
                one.fid == last and act is not Act.EXPIRE and due and due[-1][0].fid == last
            ):
                continue
            last = one.fid
            decision = self._judge.decision(self.rule, one, now_ns)
            if decision is None:
                continue
            if self.recall:
                decision = Decision(Act.RECALL, "the rule is removed")
            if decision.act is not act:
                continue
            if limits.files and self._taken >= limits.files:
                tally.problem = f"MaxFiles ({limits.files:,}) was reached"
            elif limits.bytes and self._taken_bytes + one.size > limits.bytes and self._taken:
                tally.problem = f"MaxBytes ({limits.bytes:,}) was reached"
            if tally.problem:
                self._full = True
                break
            self._taken += 1
            self._taken_bytes += one.size
            tally.matched += 1
            if self.dry:
                self._note(act, one, decision)
            due.append((one, decision))
        return due

    def _note(self, act: Act, one: Candidate, decision: Decision) -> None:
        """A dry run would do this."""
        self.tally.of(act).add(one.size)
        place = self._judge.place(one.parent)
        if len(self.sample) < SAMPLE and place is not None:
            path = (place.path + b"/" + one.name).decode(errors="backslashreplace")
            self.sample.append(
                {
                    "path": path,
                    "act": act.value,
                    "bytes": one.size,
                    "reason": decision.reason,
                    "archive": decision.archive,
                    "storage_class": decision.storage_class,
                }
            )

    # ---------------------------------------------------------------------------------------------------------- acting

    async def _act(self, act: Act, due: Sequence[tuple[Candidate, Decision]]) -> None:
        for at in range(0, len(due), TOGETHER):
            some = due[at : at + TOGETHER]
            while len(self.pending) + len(some) > WINDOW and not self.stopped:
                await self._wait()
            if self.stopped:
                return
            await self._pace.turn(sum(one.size for one, _ in some) if act in (Act.ARCHIVE, Act.RECALL) else 0)
            begun_s = time.perf_counter()
            if act is Act.EXPIRE:
                await asyncio.gather(*(self._expire(one) for one, _ in some))
            else:
                await self._queue(act, some)
            await asyncio.sleep(min(0.05, time.perf_counter() - begun_s))

    async def _queue(self, act: Act, some: Sequence[tuple[Candidate, Decision]]) -> None:
        numbers = {spec.name: spec.id for spec in self._mds.hsm.archives.values()}
        cause = f"{'recall' if self.recall else 'rule'}:{self.rule.id}"
        wanted = [
            Wanted(_KIND[act], one.fid, numbers.get(decision.archive, 0), cause, decision.storage_class)
            for one, decision in some
        ]
        for one, _ in some:  # one may be over before the answer is here
            self.pending[one.fid] = one.size
        try:
            answers = await self._mds.hsm.request_many(wanted)
        except BaseException:
            for one, _ in some:
                self.pending.pop(one.fid, None)
            raise
        for (one, _), answer in zip(some, answers, strict=True):
            if answer != "":
                self.pending.pop(one.fid, None)
                self.tally.left += 1
                self.tally.because(answer or "there was nothing to do")

    async def _expire(self, one: Candidate) -> None:
        try:
            await self._mds.journal.submit_own(lambda step: self._remove(step, one))
        except NotDue as why:
            self._over(False, str(why))
        except Gone:
            self._over(False, "it was removed or renamed meanwhile")
        except OSError as error:
            self._over(True, error.strerror or str(error))
        else:
            self.tally.expired.add(one.size)

    def _remove(self, step: Step, one: Candidate) -> None:
        inode = step.tx.inode(one.fid)
        if inode is None or step.tx.dentry(one.parent, one.name) != one.fid:
            raise Gone
        step.leases.truth(one.fid)
        fresh = [file for file in candidates_of(step.tx, inode) if (file.parent, file.name) == (one.parent, one.name)]
        self._mds.lifecycle.check_due(step, self.rule.id, fresh, Act.EXPIRE)
        unlink(step, Unlink(one.parent, one.name, one.fid))

    # --------------------------------------------------------------------------------------------------------- counting

    def ended(self, row: ActionRow) -> None:
        """An action of this run is over."""
        size = self.pending.pop(row.fid, None)
        if size is None:
            return
        if row.state == SUCCEED:
            self.tally.of(ACT_OF[row.kind]).add(size)
        else:
            self._over(row.state == FAILED, row.reason)
        self._moved.set()

    def _over(self, failed: bool, reason: str) -> None:
        """Something did not happen."""
        tally = self.tally
        tally.because(reason)
        if not failed:
            tally.left += 1
            return
        tally.failed += 1
        percent = self._limits.suspend_on_error_percent
        total = tally.failed + tally.done
        if percent and total >= ERRORS_LEAST and tally.failed * 100 > percent * total and not self.suspend:
            self.suspend = f"{tally.failed} of {total} actions failed, the last because: {reason}"
            self.stop(f"suspended: {self.suspend}")

    def stop(self, why: str) -> None:
        """End early: what waits is not begun, what is under way is stopped."""
        self.stopped = self.tally.problem = self.stopped or why
        self._moved.set()

    async def give_up(self) -> None:
        """Cancel what is still queued or under way."""
        for fid in list(self.pending):
            await self._mds.hsm.cancel(fid)
            self.pending.pop(fid, None)

    async def _wait(self) -> None:
        """Until an action is over, or the run is to stop."""
        if self.stopped:
            await self.give_up()
            return
        self._moved.clear()
        await self._moved.wait()
