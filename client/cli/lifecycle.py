"""`nacre lifecycle`: rules by which files leave for an archive, are released, and are deleted."""

import errno
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import click

from nacrefs.client.cli.asking import keyring_option
from nacrefs.client.cli.outcome import EXIT_CODES, ExitCode, json_option, print_json, print_table
from nacrefs.common.config import format_size, parse_duration
from nacrefs.common.wire import AskLifecycle, RemoveRule, Request, RunRule, SetLifecycle, SetRuleState

F = TypeVar("F", bound=Callable[..., Any])
ACTS: Final = {
    "archived": "archived", "transitioned": "moved to another class", "released": "released", "expired": "deleted",
    "recalled": "brought back",
}  # fmt: skip
_SHOWN: Final = 20
_POLL_S: Final = 0.3


@click.group("lifecycle", epilog=EXIT_CODES)
def lifecycle_command() -> None:
    """Rules by which cold files go to an archive, give up their space here, and are deleted (docs/tiering.md)."""


def _place(command: F) -> F:
    for decorate in (
        json_option,
        keyring_option,
        click.argument("where", metavar="MNT|URL"),
    ):
        command = decorate(command)
    return command


def _ask(where: str, keyring: str | None, request: Request[Any]) -> Any:
    """The answer of the MDS of a mount or URL: plain data, or None."""
    from nacrefs.client import admin

    answer = admin.ask_attached(where, keyring, lambda mds: mds.call(request))
    return json.loads(answer.report) if hasattr(answer, "report") else None


def _status(where: str, keyring: str | None) -> Any:
    return _ask(where, keyring, AskLifecycle("status"))


# --------------------------------------------------------------------------------------------------------------- rules


@lifecycle_command.command("put", epilog=EXIT_CODES)
@_place
@click.argument("file", metavar="FILE")
@click.option("--keep", is_flag=True, help="Files that a removed rule has released stay so.")
@click.option("--recall", is_flag=True, help="Files that a removed rule has released are brought back first.")
@click.pass_context
def put_command(
    ctx: click.Context, where: str, file: str, keep: bool, recall: bool, keyring: str | None, as_json: bool
) -> None:
    """Replace all rules by those in FILE (- is standard input): YAML or JSON, in the form of S3's lifecycle
    configuration with more fields (docs/tiering.md). Rules that keep their ID keep their counts."""
    if keep and recall:
        raise click.UsageError("give --keep or --recall, not both")
    if file == "-":
        text, source = sys.stdin.read(), "standard input"
    else:
        source = file
        with open(file, encoding="utf-8") as stream:
            text = stream.read()
    try:
        answer = _ask(where, keyring, SetLifecycle(text, source, keep, recall))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        for line in str(error.strerror).splitlines():
            click.echo(f"nacre: {line}", err=True)
        ctx.exit(ExitCode.USAGE)
    if as_json:
        print_json(answer)
        return
    for warning in answer["warnings"]:
        click.echo(f"warning: {warning}")
    click.echo(f"{answer['rules']} rule{'s' if answer['rules'] != 1 else ''}")


@lifecycle_command.command("get", epilog=EXIT_CODES)
@_place
def get_command(where: str, keyring: str | None, as_json: bool) -> None:
    """Print all rules, as `put` takes them."""
    import yaml

    document = _ask(where, keyring, AskLifecycle("rules"))
    if as_json:
        print_json(document)
    else:
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)  # pyright: ignore[reportUnknownMemberType]
        click.echo(str(text), nl=False)


@lifecycle_command.command("list", epilog=EXIT_CODES)
@_place
def list_command(where: str, keyring: str | None, as_json: bool) -> None:
    """Show all rules: where they apply, whether they are active, and when they run."""
    rules = _status(where, keyring)["rules"]
    if as_json:
        print_json({"rules": rules})
    elif rules:
        print_table(
            "",
            ("rule", "directory", "state", "schedule", "last run", "next run"),
            [
                (one["id"], one["directory"], _state(one), one["schedule"], _when(one["last_run_ns"]),
                 _when(one["next_run_ns"]))
                for one in rules
            ],
            left=6,
        )  # fmt: skip
    else:
        click.echo("there are no rules")


@lifecycle_command.command("rm", epilog=EXIT_CODES)
@_place
@click.argument("rule")
@click.option("--keep", is_flag=True, help="Files that it has released stay so; they come back when they are read.")
@click.option("--recall", is_flag=True, help="Files that it has released are brought back first.")
def rm_command(where: str, rule: str, keep: bool, recall: bool, keyring: str | None, as_json: bool) -> None:
    """Remove RULE. If files are released under it, say what is to become of them."""
    if keep and recall:
        raise click.UsageError("give --keep or --recall, not both")
    _ask(where, keyring, RemoveRule(rule, keep, recall))
    if as_json:
        print_json({"rule": rule, "state": "recalling" if recall else "removed"})
    elif recall:
        click.echo(f"{rule} is removed when its files are back (`nacre lifecycle status`)")


# ---------------------------------------------------------------------------------------------------------------- runs


@lifecycle_command.command("run", epilog=EXIT_CODES)
@_place
@click.argument("rule")
@click.option("-n", "--dry-run", "dry", is_flag=True, help="Only show what would be done.")
@click.option("--now", "now", metavar="TIME", help="Assume this time: 2026-12-24T03:00, or +30d from now.")
@click.option("-w", "--wait", is_flag=True, help="Return when the run is over; fail if anything failed.")
@click.pass_context
def run_command(
    ctx: click.Context,
    where: str,
    rule: str,
    dry: bool,
    now: str | None,
    wait: bool,
    keyring: str | None,
    as_json: bool,
) -> None:
    """Run RULE at once, whatever its schedule says. A suspended rule may be run, too."""
    now_ns = _moment(now)
    answer = _ask(where, keyring, RunRule(rule, dry, now_ns))
    if dry:
        if as_json:
            print_json(answer)
        else:
            _show_dry(answer)
        return
    if not wait:
        if as_json:
            print_json(answer)
        else:
            click.echo(f"{rule} is running (`nacre lifecycle status`)")
        return
    one = _follow(where, keyring, rule, sys.stderr.isatty() and not as_json)
    last = one["last"]
    if as_json:
        print_json(last)
    else:
        click.echo(_words(last))
        _show_reasons(last)
    ctx.exit(ExitCode.FAILED if last["failed"] or (last["problem"] and not last["matched"]) else ExitCode.OK)


def _follow(where: str, keyring: str | None, rule: str, shown: bool) -> Any:
    """Wait until a rule's run is over; how the rule stands then."""
    from nacrefs.client import admin

    async def work(mds: Any) -> Any:
        import asyncio

        while True:
            report = json.loads((await mds.call(AskLifecycle("status"))).report)
            one = next((one for one in report["rules"] if one["id"] == rule), None)
            if one is None:
                raise OSError(errno.ENOENT, f"rule {rule!r} was removed meanwhile")
            if shown:
                click.echo(f"\r{_words(one['last'])}, {one['pending']:,} under way ", nl=False, err=True)
            if one["state"] not in ("running", "recalling"):
                return one
            await asyncio.sleep(_POLL_S)

    follow: Callable[[Any], Awaitable[Any]] = work
    one = admin.ask_attached(where, keyring, follow)
    if shown:
        click.echo(err=True)
    return one


def _show_dry(answer: Any) -> None:
    for file in answer["files"]:
        target = " ".join(filter(None, (file["archive"], file["storage_class"])))
        click.echo(
            f"{file['act']:10} {format_size(file['bytes']):>9}  {file['path']}"
            f"  ({file['reason']}{', to ' + target if target else ''})"
        )
    click.echo(f"would be: {_words(answer)}, of {answer['looked_at']:,} looked at")
    if answer["matched"] > len(answer["files"]):
        click.echo(f"(the first {len(answer['files']):,} are shown)")
    if answer["problem"]:
        click.echo(answer["problem"])


def _words(tally: Any) -> str:
    """A tally in words."""
    parts = [
        f"{tally[name]['files']:,} {words} ({format_size(tally[name]['bytes'])})"
        for name, words in ACTS.items()
        if tally[name]["files"]
    ]
    if tally["failed"]:
        parts.append(f"{tally['failed']:,} failed")
    if tally["left"]:
        parts.append(f"{tally['left']:,} left as they are")
    return ", ".join(parts) or "nothing"


def _show_reasons(tally: Any) -> None:
    for reason, count in sorted(tally["reasons"].items(), key=lambda item: -item[1]):
        click.echo(f"  {count:,} × {reason}")
    if tally["problem"]:
        click.echo(f"  {tally['problem']}")


def _moment(text: str | None) -> int:
    """Nanoseconds of a moment, or 0; `+30d` counts from now."""
    if text is None:
        return 0
    try:
        if text.startswith("+"):
            days = text[1:].isdigit()
            seconds = int(text[1:]) * 86400 if days else parse_duration(text[1:])
            return time.time_ns() + round(seconds * 1e9)
        return round(datetime.fromisoformat(text).timestamp() * 1e9)
    except ValueError:
        raise click.UsageError(f"{text!r} is not a time (examples: 2026-12-24T03:00, +30d, +6h)") from None


@lifecycle_command.command("stop", epilog=EXIT_CODES)
@_place
@click.argument("rule")
def stop_command(where: str, rule: str, keyring: str | None, as_json: bool) -> None:
    """End the run of RULE that is under way; what it has queued is canceled. It runs again when it is scheduled."""
    _set_state(where, keyring, rule, "stopped", "", as_json)


@lifecycle_command.command("pause", epilog=EXIT_CODES)
@_place
@click.argument("rule")
@click.option("--reason", default="", help="Shown with the rule.")
def pause_command(where: str, rule: str, reason: str, keyring: str | None, as_json: bool) -> None:
    """Let RULE run no more, until it is resumed; a run that is under way ends."""
    _set_state(where, keyring, rule, "paused", reason, as_json)


@lifecycle_command.command("resume", epilog=EXIT_CODES)
@_place
@click.argument("rule")
def resume_command(where: str, rule: str, keyring: str | None, as_json: bool) -> None:
    """Let RULE run again, after it was paused, or suspended because of its errors."""
    _set_state(where, keyring, rule, "active", "", as_json)


def _set_state(where: str, keyring: str | None, rule: str, state: str, reason: str, as_json: bool) -> None:
    _ask(where, keyring, SetRuleState(rule, state, reason))
    if as_json:
        print_json({"rule": rule, "state": state})


# ------------------------------------------------------------------------------------------------------------- looking


@lifecycle_command.command("status", epilog=EXIT_CODES)
@_place
def status_command(where: str, keyring: str | None, as_json: bool) -> None:
    """Show what rules and watermarks are doing, what came of it, and why it did not."""
    report = _status(where, keyring)
    if as_json:
        print_json(report)
        return
    for one in report["rules"]:
        click.echo(f"{one['id']}: {_state(one)}, {one['directory']}, next run {_when(one['next_run_ns'])}")
        if one["pending"]:
            click.echo(f"  {one['pending']:,} under way")
        last = one["last"]
        if last["started_ns"]:
            click.echo(f"  last run {_when(last['started_ns'])}: {_words(last)}")
            _show_reasons(last)
    marks = report.get("watermarks")
    if marks is not None:
        click.echo(
            f"watermarks: {'releasing' if marks['running'] else 'watching'}, {marks['released']:,} files released"
            f" ({format_size(marks['released_bytes'])})" + (f", {marks['failed']:,} failed" if marks["failed"] else "")
        )
        for group in marks["groups"]:
            click.echo(f"  {group['name']}: {group['percent']:g}% of {group['high']:g}%")
        if marks["problem"]:
            click.echo(f"  {marks['problem']}")
    if not report["rules"] and marks is None:
        click.echo("there are no rules")


@lifecycle_command.command("report", epilog=EXIT_CODES)
@_place
def report_command(where: str, keyring: str | None, as_json: bool) -> None:
    """Show what lies where, what rules have done, and what that saves at the prices of mds.toml."""
    report = _ask(where, keyring, AskLifecycle("report"))
    if as_json:
        print_json(report)
        return
    if report["places"]:
        print_table(
            "",
            ("archive", "class", "files", "size", "only there", "size", "cost/month", "saved/month"),
            [
                (one["archive"], one["storage_class"], f"{one['files']:,}", format_size(one["bytes"]),
                 f"{one['released']:,}", format_size(one["released_bytes"]), f"{one['cost']:.2f}",
                 f"{one['saved']:.2f}")
                for one in report["places"]
            ],
            left=2,
        )  # fmt: skip
    click.echo(
        f"{format_size(report['released_bytes'])} less on our own disks; the archives cost"
        f" {report['cost_per_month']:.2f} a month, {report['saved_per_month']:.2f} is saved"
    )
    for one in report["rules"]:
        click.echo(f"{one['id']}, all runs: {_words(one['total'])}")


@lifecycle_command.command("explain", epilog=EXIT_CODES)
@click.argument("paths", nargs=-1, required=True, metavar="FILE…")
@click.option("--now", "now", metavar="TIME", help="Assume this time: 2026-12-24T03:00, or +30d from now.")
@keyring_option
@json_option
def explain_command(paths: Sequence[str], now: str | None, keyring: str | None, as_json: bool) -> None:
    """Show which rules files are under, what happens to them and when, and why not now."""
    from nacrefs.client.mount.daemon import mounted_at

    now_ns = _moment(now)
    found: list[Any] = []
    for path in paths:
        fid = os.lstat(path).st_ino
        one = _ask(str(mounted_at(path)), keyring, AskLifecycle("explain", fid, now_ns))
        found.append({"asked": path, **one})
    if as_json:
        print_json(found)
        return
    for one in found:
        _show_explanation(one)


def _show_explanation(one: Any) -> None:
    click.echo(f"{one['asked']}: {format_size(one['size'])}, last used {_when(one['last_use_ns'])}")
    if one["action_reason"]:
        click.echo(f"  last action {one['action'].lower()}: {one['action_reason']}")
    for name in one["names"]:
        if not name["rules"]:
            click.echo("  no rule is about it")
        for verdict in name["rules"]:
            act = verdict["act"] or "nothing now"
            later = f"; next {_when(verdict['at_ns'])}" if verdict["at_ns"] else ""
            click.echo(f"  rule {verdict['rule']} ({verdict['state']}): {act}: {verdict['reason']}{later}")
            for step in verdict["steps"]:
                target = f" to {step['to']}" if step["to"] else ""
                click.echo(
                    f"    {step['act']}{target}: {'due since' if step['due'] else 'from'} {_when(step['at_ns'])}"
                )


def _state(one: Any) -> str:
    if not one["enabled"] and one["state"] == "active":
        return "disabled"
    return f"{one['state']} ({one['reason']})" if one["reason"] else str(one["state"])


def _when(at_ns: int) -> str:
    """A moment in local time."""
    if not at_ns:
        return "never"
    return datetime.fromtimestamp(at_ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
