"""What people ask about rules: what they are, how they stand, what is where and what it saves, and why."""

import errno
import json
import time
from typing import TYPE_CHECKING, Any, Final

from nacrefs.common.wire import HsmFlag
from nacrefs.mds.lifecycle.engine import Lifecycle
from nacrefs.mds.lifecycle.indexes import needed_by
from nacrefs.mds.lifecycle.judging import candidates_of
from nacrefs.mds.lifecycle.pace import give_turn
from nacrefs.mds.lifecycle.queries import queries_of
from nacrefs.mds.lifecycle.rules import Age, File, Rule
from nacrefs.mds.lifecycle.watermarks import groups

if TYPE_CHECKING:
    from nacrefs.mds.service import Mds

GIB: Final = 1 << 30


def documents(rules: Lifecycle) -> dict[str, Any]:
    """The rules as they were given."""
    found: dict[str, Any] = {"Rules": [json.loads(rules.need(rule.id).document) for rule in rules.rules()]}
    if rules.watermarks_document:
        found["Watermarks"] = json.loads(rules.watermarks_document)
    return found


def status(rules: Lifecycle) -> dict[str, Any]:
    """How rules and watermarks stand."""
    found: list[dict[str, Any]] = []
    for rule in rules.rules():
        one = rules.need(rule.id)
        run = rules.runs.get(rule.id)
        state = one.state if run is None or one.state == "recalling" else "running"
        found.append(
            {
                "id": rule.id,
                "directory": rule.directory.decode(errors="backslashreplace") or "/",
                "enabled": rule.enabled,
                "state": state,
                "reason": one.reason or ("" if run is None else rules.indexes.why(needed_by(rule))),
                "schedule": rule.schedule,
                "last_run_ns": one.last_run_ns,
                "next_run_ns": one.next_run_ns() or 0,
                "pending": 0 if run is None else len(run.pending),
                "last": (one.counts.last if run is None else run.tally).plain(),
                "total": one.counts.total.plain(),
            }
        )
    keeper, marks = rules.keeper, rules.watermarks
    answer: dict[str, Any] = {"rules": found}
    if marks is not None:
        answer["watermarks"] = {
            "high": marks.high,
            "low": marks.low,
            "every_s": marks.every_s,
            "running": keeper.running,
            "released": keeper.released,
            "released_bytes": keeper.released_bytes,
            "failed": keeper.failed,
            "problem": keeper.problem,
            "groups": [
                {"name": group.name, "percent": round(group.percent, 2), "high": group.high}
                for group in groups(keeper.table(), marks)
            ],
        }
    return answer


async def report(mds: "Mds", rules: Lifecycle) -> dict[str, Any]:
    """What lies where, by archive and class, and what that saves at the configured prices."""
    store = mds.mdt.store
    copies = queries_of(store.backend).copies
    sums: dict[tuple[int, str, bool], list[int]] = {}
    fid = 0
    while rows := store.fetchall(copies, (fid,)):
        begun_s = time.perf_counter()
        for archive, storage_class, flags, files, size, last in rows:
            if flags & HsmFlag.EXISTS:
                found = sums.setdefault((archive, storage_class, flags & HsmFlag.RELEASED != 0), [0, 0])
                found[0] += files
                found[1] += int(size)
            fid = max(fid, last)
        await give_turn(begun_s)
    prices = mds.settings.prices
    places: dict[tuple[int, str], dict[str, Any]] = {}
    for (archive, storage_class, released), (files, size) in sorted(sums.items()):
        spec = mds.hsm.archives.get(archive)
        name = storage_class or (spec.storage_class if spec is not None else "") or "STANDARD"
        place = places.setdefault(
            (archive, name),
            {
                "archive": str(archive) if spec is None else spec.name,
                "storage_class": name,
                "files": 0, "bytes": 0, "released": 0, "released_bytes": 0, "cost": 0.0, "saved": 0.0,
            },
        )  # fmt: skip
        place["files"] += files
        place["bytes"] += size
        if released:
            place["released"] += files
            place["released_bytes"] += size
    for place in places.values():
        price = prices.get(place["storage_class"], 0.0)
        place["cost"] = round(place["bytes"] / GIB * price, 4)
        place["saved"] = round(place["released_bytes"] / GIB * prices.get("OST", 0.0) - place["cost"], 4)
    rows_ = list(places.values())
    return {
        "places": rows_,
        "released_bytes": sum(place["released_bytes"] for place in rows_),
        "cost_per_month": round(sum(place["cost"] for place in rows_), 4),
        "saved_per_month": round(sum(place["saved"] for place in rows_), 4),
        "prices": prices,
        "rules": status(rules)["rules"],
    }


def explain(mds: "Mds", rules: Lifecycle, fid: int, now_ns: int) -> dict[str, Any]:
    """Which rules a file is under, what they want done with it and when, and why not now. OSError (EINVAL) for what is
    no regular file."""
    tx = mds.journal.reading
    inode = tx.need(fid)
    if not inode.is_regular:
        raise OSError(errno.EINVAL, "rules are about regular files")
    judge = rules.judge()
    names: list[dict[str, Any]] = []
    for one in candidates_of(tx, inode):
        place = judge.place(one.parent)
        if place is None:
            continue
        verdicts: list[dict[str, Any]] = []
        for rule in place.rules:
            why, decision = judge.explanation(rule, one, now_ns)
            standing = rules.need(rule.id)
            file = judge.file(rule, place, one)
            verdict: dict[str, Any] = {
                "rule": rule.id,
                "state": standing.state,
                "next_run_ns": standing.next_run_ns() or 0,
                "steps": [] if why else _steps(rule, file, now_ns),
            }
            if decision is None:
                verdict |= {"act": None, "reason": why, "at_ns": None}
            else:
                verdict |= {
                    "act": None if decision.act is None else decision.act.value,
                    "reason": decision.reason,
                    "at_ns": decision.at_ns,
                    "archive": decision.archive,
                    "storage_class": decision.storage_class,
                }
                if decision.act is not None and standing.state != "active":
                    verdict["reason"] += f", but the rule is {standing.state}: {standing.reason}"
            verdicts.append(verdict)
        path = (place.path + b"/" + one.name).decode(errors="backslashreplace")
        names.append({"path": path, "rules": verdicts})
    about = mds.hsm.state(fid)
    return {
        "fid": fid,
        "size": inode.attr.size,
        "atime_ns": inode.attr.atime_ns,
        "mtime_ns": inode.attr.mtime_ns,
        "last_use_ns": max(inode.attr.atime_ns, inode.attr.mtime_ns),
        "flags": about.flags,
        "action": about.state,
        "action_reason": about.reason,
        "names": names,
    }


def _steps(rule: Rule, file: File, now_ns: int) -> list[dict[str, Any]]:
    """What a rule does with a file in the course of time."""
    found: list[tuple[str, Age, str]] = [
        ("archive" if number == 0 else "transition", step.age, step.storage_class or step.archive)
        for number, step in enumerate(rule.transitions)
    ]
    if rule.release is not None:
        found.append(("release", rule.release, ""))
    if rule.expiration is not None:
        found.append(("expire", rule.expiration, ""))
    return [
        {"act": act, "to": target, "at_ns": age.due_ns(file), "due": age.due_ns(file) <= now_ns}
        for act, age, target in found
    ]
