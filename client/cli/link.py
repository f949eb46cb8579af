"""`nacre link`: directories whose files are the objects of a bucket."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from nacrefs.client.cli.asking import ask, bucket_options, keyring_option
from nacrefs.client.cli.outcome import EXIT_CODES, ExitCode, json_option, print_json, print_table
from nacrefs.common.config import format_size, parse_duration
from nacrefs.common.wire import ArchiveSpec, GetLinkLog, GetLinks, LinkSpec, OrderLink, RemoveLink, SetLink

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_directory = click.argument("directory", metavar="DIR")
POLL_S: Final = 0.5


@click.group("link", epilog=EXIT_CODES)
def link_command() -> None:
    """Links: directories whose files are the objects of a bucket. Names and sizes are there at once; bytes come when a
    file is read.

    (Still to come: --cache, which would keep the bytes in the memory of the compute nodes instead of on OSTs.)
    """


def _mount_of(directory: str) -> tuple[str, int]:
    """The mount that a directory is in, and its fid."""
    from nacrefs.client.mount.daemon import mounted_at

    return str(mounted_at(directory)), os.stat(directory).st_ino


async def _links(mds: Any, totals: bool = True) -> list[dict[str, Any]]:
    reports: list[dict[str, Any]] = json.loads((await mds.call(GetLinks(totals))).report)
    return reports


async def _link_of(mds: Any, fid: int, directory: str, totals: bool = False) -> dict[str, Any]:
    for one in await _links(mds, totals):
        if one["fid"] == fid:
            return one
    raise OSError(2, "no bucket is linked to it", directory)


def _schedule(every: str | None, cron: str | None) -> tuple[float, str]:
    if every is not None and cron is not None:
        raise click.UsageError("--every or --cron, not both")
    try:
        return (0.0 if every in (None, "never") else float(parse_duration(str(every)))), cron or ""
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _modes(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip() not in ("", "none"))


_every = click.option("--every", metavar="TIME", help="Refresh so often: 30s, 5m, 1h; never: only when asked.")
_cron = click.option("--cron", metavar="EXPRESSION", help="Refresh at these times: five fields, as in crontab.")
_auto_import = click.option(
    "--auto-import",
    metavar="LIST",
    help="Which keys a refresh follows: new,changed,deleted (all, if not given), or none.",
)
_auto_export = click.option(
    "--auto-export",
    metavar="LIST",
    help="Which files the bucket follows: new,changed,deleted or some of them; none. [none]",
)
_conflict = click.option(
    "--conflict",
    type=click.Choice(["fail", "skip", "overwrite-if-dirty", "overwrite"]),
    help="When object and file have both changed: leave the file and say so (fail), or say nothing (skip), or take the "
    "object; overwrite: also where the file never came from the bucket. [fail]",
)
_limit = click.option(
    "--limit-mibps",
    "limit",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Most MiB per second to and from the bucket, all servers together: reading, warmup and export; 0: any. [any]",
)


@link_command.command("create", epilog=EXIT_CODES)
@_directory
@click.argument("target", metavar="s3://BUCKET/PREFIX|file:///DIRECTORY")
@bucket_options
@click.option(
    "--import",
    "imports",
    type=click.Choice(["metadata", "data", "none"]),
    default="metadata",
    help="What appears now: all names (metadata); names, and contents by themselves, too (data); or nothing before the "
    "first refresh (none). [metadata]",
)
@click.option(
    "--details",
    is_flag=True,
    help="Ask each object for mode, owner and times that FSx for Lustre or nacrefs wrote: one more request for each.",
)
@_auto_import
@_auto_export
@_conflict
@_every
@_cron
@_limit
@click.option("--async", "at_once", is_flag=True, help="Do not wait until all names are there.")
@keyring_option
@json_option
@click.pass_context
def create_command(
    ctx: click.Context,
    directory: str,
    target: str,
    endpoint: str,
    region: str,
    credentials: str,
    imports: str,
    details: bool,
    auto_import: str | None,
    auto_export: str | None,
    conflict: str | None,
    every: str | None,
    cron: str | None,
    limit: float | None,
    at_once: bool,
    keyring: str | None,
    as_json: bool,
) -> None:
    """Make the objects below a bucket prefix appear as files in DIR, made if it is not there. Nothing is copied before
    it is read. Keys that can be no names (`//`, `..`, parts above 255 bytes) are left where they are and listed by
    `nacre link log --problems`."""
    os.makedirs(directory, exist_ok=True)
    mount, fid = _mount_of(directory)
    every_s, cron = _schedule(every, cron)
    spec = LinkSpec(
        0,
        fid,
        imports,
        LinkSpec(0, 0).auto_import if auto_import is None else _modes(auto_import),
        conflict or "fail",
        every_s,
        cron,
        details,
        _modes(auto_export or ""),
    )
    kind = "dir" if target.startswith("file:") else "s3"
    path = os.path.abspath(credentials) if credentials else ""
    archive = ArchiveSpec(0, "", kind, target, endpoint, region, path, rate_mibps=limit or 0.0)

    async def work(mds: Any) -> dict[str, Any]:
        made: dict[str, Any] = json.loads((await mds.call(SetLink(spec, archive))).report)
        return made if at_once or imports == "none" else await _watch(mds, made, 1, as_json)

    _finish(ctx, ask(mount, keyring, work), as_json, at_once or imports == "none")


async def _watch(mds: Any, link: dict[str, Any], number: int, quiet: bool) -> dict[str, Any]:
    """Wait until a refresh has ended, and show meanwhile how far it is."""
    import asyncio

    shown = sys.stderr.isatty() and not quiet
    delay_s = 0.05
    while link["ended"] < number:
        if shown and link["refreshing"] is not None:
            click.echo(f"\r{link['refreshing']['keys']:,} keys ", nl=False, err=True)
        await asyncio.sleep(delay_s)
        delay_s = min(POLL_S, delay_s * 1.5)
        link = await _link_of(mds, link["fid"], link["path"])
        if link["wanted"] < number:  # the MDS was restarted, and counts anew
            await mds.call(OrderLink(link["id"], "refresh"))
            number = link["wanted"] + 1
    if shown:
        click.echo(err=True)
    return link


def _finish(ctx: click.Context, link: dict[str, Any], as_json: bool, at_once: bool = False) -> None:
    """Say what a refresh has done, and end with what it means."""
    if as_json:
        print_json(link)
    elif at_once:
        click.echo(f"link {link['id']}: {link['url']}")
    elif not link["reason"]:
        last = link["last"]
        words = [f"{last['new']:,} new", f"{last['changed']:,} changed", f"{last['deleted']:,} deleted"]
        words += [f"{last[name]:,} {text}" for name, text in _SHORT.items() if last[name]]
        click.echo(f"link {link['id']}: {last['keys']:,} keys, {', '.join(words)}")
    if at_once:
        return
    if link["reason"]:
        raise OSError(5, link["reason"], link["path"])
    failed = link["last"]["deferred"] or (link["last"]["conflicts"] and link["conflict"] != "skip")
    ctx.exit(ExitCode.FAILED if failed else ExitCode.OK)


_SHORT: Final = {"conflicts": "in conflict", "deferred": "in use and deferred", "problems": "that can be no files"}


@link_command.command("refresh", epilog=EXIT_CODES)
@_directory
@click.option("--now", is_flag=True, help="Refresh now, too, when the schedule is changed.")
@_every
@_cron
@_auto_import
@_auto_export
@_conflict
@_limit
@click.option("--async", "at_once", is_flag=True, help="Do not wait for the end.")
@keyring_option
@json_option
@click.pass_context
def refresh_command(
    ctx: click.Context,
    directory: str,
    now: bool,
    every: str | None,
    cron: str | None,
    auto_import: str | None,
    auto_export: str | None,
    conflict: str | None,
    limit: float | None,
    at_once: bool,
    keyring: str | None,
    as_json: bool,
) -> None:
    """Look for new, changed and deleted objects now; or change when and how that is done."""
    mount, fid = _mount_of(directory)
    every_s, cron_text = _schedule(every, cron)
    changes: dict[str, Any] = {}
    if every is not None or cron is not None:
        changes |= {"every_s": every_s, "cron": cron_text}
    if auto_import is not None:
        changes["auto_import"] = _modes(auto_import)
    if auto_export is not None:
        changes["auto_export"] = _modes(auto_export)
    if conflict is not None:
        changes["conflict"] = conflict
    if limit is not None:
        changes["limit_mibps"] = limit

    async def work(mds: Any) -> tuple[dict[str, Any], bool]:
        link = await _link_of(mds, fid, directory)
        if changes:
            wanted = {**link, **changes}
            fields = {name: wanted[name] for name in LinkSpec.__struct_fields__}
            fields |= {name: tuple(fields[name]) for name in ("auto_import", "auto_export")}
            archive = ArchiveSpec(0, "", "", "", rate_mibps=wanted["limit_mibps"])
            await mds.call(SetLink(LinkSpec(**fields), archive))
        if changes and not now:
            return await _link_of(mds, fid, directory), False
        number = link["wanted"] + 1
        await mds.call(OrderLink(link["id"], "refresh"))
        return (link if at_once else await _watch(mds, link, number, as_json)), not at_once

    link, waited = ask(mount, keyring, work)
    _finish(ctx, link, as_json, not waited)


def _order(verb: str, text: str) -> None:
    @link_command.command(verb, epilog=EXIT_CODES, help=text)
    @_directory
    @keyring_option
    @json_option
    def command(directory: str, keyring: str | None, as_json: bool) -> None:
        mount, fid = _mount_of(directory)

        async def work(mds: Any) -> dict[str, Any]:
            link = await _link_of(mds, fid, directory)
            await mds.call(OrderLink(link["id"], verb))
            return await _link_of(mds, fid, directory)

        link = ask(mount, keyring, work)
        if as_json:
            print_json(link)

    del command


@link_command.command("flush", epilog=EXIT_CODES)
@_directory
@click.option("--wait/--async", "wait", default=True, help="Wait until it is there, or only have it sent. [--wait]")
@keyring_option
@json_option
def flush_command(directory: str, wait: bool, keyring: str | None, as_json: bool) -> None:
    """Have everything that was written below DIR sent to the bucket now, and return when it is there."""
    import asyncio

    mount, fid = _mount_of(directory)

    async def work(mds: Any) -> dict[str, Any]:
        link = await _link_of(mds, fid, directory)
        flushing = asyncio.ensure_future(mds.call(OrderLink(link["id"], "flush")))
        await asyncio.wait({flushing}, timeout=None if wait else 0.2)
        if flushing.done():
            flushing.result()
        else:
            flushing.cancel()
        return await _link_of(mds, fid, directory)

    link = ask(mount, keyring, work)
    if as_json:
        print_json(link)


_order(
    "pause", "Do nothing about a link by itself any more: no refresh, no export. Files still come when they are read."
)
_order("resume", "Go on with a link that was paused.")


@link_command.command("list", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@keyring_option
@json_option
def list_command(where: str, keyring: str | None, as_json: bool) -> None:
    """Show all links."""
    rows = ask(where, keyring, _links)
    if as_json:
        print_json({"links": rows})
        return
    print_table(
        "",
        ("", "directory", "bucket", "state", "files", "size", "not here", "no files", "refreshed"),
        [
            (
                str(one["id"]), one["path"] or "(removed)", one["url"], _state(one), f"{one['files']:,}",
                format_size(one["bytes"]), f"{one['released']:,}", f"{one['problems']:,}", _ago(one["refreshed_ns"]),
            )
            for one in rows
        ],
        left=4,
    )  # fmt: skip


def _state(link: dict[str, Any]) -> str:
    if link["refreshing"] is not None:
        return "refreshing"
    return "failing" if link["reason"] and link["state"] == "active" else str(link["state"])


def _ago(time_ns: int) -> str:
    if not time_ns:
        return "never"
    seconds = max(0, time.time() - time_ns / 1e9)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


@link_command.command("show", epilog=EXIT_CODES)
@_directory
@keyring_option
@json_option
def show_command(directory: str, keyring: str | None, as_json: bool) -> None:
    """Show how DIR is linked, and what the last refresh found."""
    mount, fid = _mount_of(directory)
    link = ask(mount, keyring, lambda mds: _link_of(mds, fid, directory, True))
    if as_json:
        print_json(link)
        return
    schedule = (
        f"cron {link['cron']}" if link["cron"] else f"every {link['every_s']:g} s" if link["every_s"] else "asked"
    )
    last = link["last"]
    for name, value in (
        ("link", link["id"]),
        ("directory", link["path"]),
        ("bucket", link["url"]),
        ("endpoint", link["endpoint"] or "(default)"),
        ("limit", f"{link['limit_mibps']:g} MiB/s" if link["limit_mibps"] else "none"),
        ("state", _state(link)),
        ("follows", f"{', '.join(link['auto_import']) or 'nothing'} keys; conflicts: {link['conflict']}"),
        ("refreshed when", schedule),
        ("last refresh", _ago(link["refreshed_ns"])),
        ("it found", ", ".join(f"{count} {key}" for key, count in last.items())),
        ("files", f"{link['files']:,} of {format_size(link['bytes'])}, {link['released']:,} in the bucket only"),
        ("keys that are no files", f"{link['problems']:,}"),
        ("the bucket follows", f"{', '.join(link['auto_export']) or 'no'} files; {link['unsent']:,} are to be sent"),
    ):
        click.echo(f"{name}: {value}")
    if link["reason"]:
        click.echo(f"the last try failed: {link['reason']}")
    for file, reason in link["unsent_reasons"].items():
        click.echo(f"{file} cannot be sent: {reason}")


@link_command.command("log", epilog=EXIT_CODES)
@_directory
@click.option("--problems", is_flag=True, help="The keys that are no files, and why.")
@click.option("-n", "--lines", type=click.IntRange(1, 1000), default=1000, help="At most so many, the last ones.")
@keyring_option
@json_option
def log_command(directory: str, problems: bool, lines: int, keyring: str | None, as_json: bool) -> None:
    """Show what happened with a link."""
    mount, fid = _mount_of(directory)

    async def work(mds: Any) -> list[dict[str, Any]]:
        number = (await _link_of(mds, fid, directory))["id"]
        if not problems:
            found: list[dict[str, Any]] = json.loads((await mds.call(GetLinkLog(number, "log", b"", lines))).report)
            return found
        every: list[dict[str, Any]] = []
        after = b""
        while page := json.loads((await mds.call(GetLinkLog(number, "problems", after))).report):
            every += page
            after = page[-1]["key"].encode()
        return every

    rows = ask(mount, keyring, work)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        if problems:
            click.echo(f"{row['key']!r}: {row['reason']}")
        else:
            click.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(row['time_ns'] / 1e9))}  {row['text']}")


@link_command.command("rm", epilog=EXIT_CODES)
@_directory
@click.option("--purge", is_flag=True, help="Remove files whose contents are in the bucket only.")
@keyring_option
@json_option
def rm_command(directory: str, purge: bool, keyring: str | None, as_json: bool) -> None:
    """Unbind DIR: its files stay as plain files. The bucket is left as it is."""
    mount, fid = _mount_of(directory)

    async def work(mds: Any) -> dict[str, Any]:
        link = await _link_of(mds, fid, directory)
        await mds.call(RemoveLink(link["id"], purge))
        return link

    link = ask(mount, keyring, work)
    if as_json:
        print_json({"removed": link["id"]})
