"""`nacre archive`: where cold files go."""

import errno
import json
import os
import sys
from typing import Any, Final, TypeVar

import click

from nacrefs.client.cli.asking import ask, bucket_options, keyring_option
from nacrefs.client.cli.outcome import EXIT_CODES, ExitCode, json_option, print_json, print_table
from nacrefs.common.config import format_size
from nacrefs.common.wire import ArchiveSpec, Request

T = TypeVar("T")

_RESTARTS: Final = 10
"""Of the MDS, during one import."""
_WORDS: Final = {
    "write": "write", "read": "read back", "list": "list", "delete": "delete", "parts": "send in parts",
    "metadata": "keep metadata", "checksum": "refuse damaged bytes", "storage_class": "keep storage classes",
    "restore": "restore from cold classes", "class_change": "change storage classes",
}  # fmt: skip


@click.group("archive", epilog=EXIT_CODES)
def archive_command() -> None:
    """Archives: buckets and directories to which cold files go, and from which they come back when they are read."""


def _ask(where: str, keyring: str | None, request: Request[T]) -> T:
    return ask(where, keyring, lambda mds: mds.call(request))


@archive_command.command("add", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@click.argument("name")
@click.argument("target", metavar="s3://BUCKET/PREFIX|file:///DIRECTORY")
@bucket_options
@click.option("--storage-class", default="", metavar="CLASS", help="Of new objects: STANDARD_IA, GLACIER …")
@click.option("--template", default="", help="Of keys. [{path}~{fid}]")
@click.option("--keep", is_flag=True, help="Objects of removed files stay.")
@click.option("--part-size", default="0", metavar="SIZE", help="Of parts of large objects, 5M to 1G. [8M]")
@click.option(
    "--rate-mibps", "rate", default=0.0, type=click.FloatRange(min=0), help="Most MiB per second there and back. [any]"
)
@keyring_option
@json_option
def add_command(
    where: str,
    name: str,
    target: str,
    endpoint: str,
    region: str,
    credentials: str,
    storage_class: str,
    template: str,
    keep: bool,
    part_size: str,
    rate: float,
    keyring: str | None,
    as_json: bool,
) -> None:
    """Make an archive known as NAME, or change it. Every OSS tries it out first; nothing is kept if one cannot use it.

    Access keys are never given here: they stay in a file, or in the environment, of the OSSes.
    """
    from nacrefs.common.config import parse_size
    from nacrefs.common.wire import SetArchive

    try:
        part_bytes = parse_size(part_size)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    kind = "dir" if target.startswith("file:") else "s3"
    path = os.path.abspath(credentials) if credentials else ""
    spec = ArchiveSpec(
        0, name, kind, target, endpoint, region, path, storage_class, template, keep, int(part_bytes), rate
    )  # fmt: skip
    report = json.loads(_ask(where, keyring, SetArchive(spec)).report)
    if as_json:
        print_json(report)
    else:
        click.echo(f"archive {report['id']}, {name}: {_abilities(report['can'])}")


def _abilities(can: dict[str, Any]) -> str:
    able = [words for key, words in _WORDS.items() if can.get(key)]
    unable = [words for key, words in _WORDS.items() if not can.get(key)]
    return "can " + ", ".join(able) + (f"; cannot {', '.join(unable)}" if unable else "")


@archive_command.command("list", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@keyring_option
@json_option
def list_command(where: str, keyring: str | None, as_json: bool) -> None:
    """Show all archives, and how much is in them."""
    rows = _archives(where, keyring)
    if as_json:
        print_json({"archives": rows})
        return
    print_table(
        "",
        ("", "name", "where", "files", "size", "released"),
        [
            (str(one["id"]), one["name"], one["url"], f"{one['files']:,}", format_size(one["bytes"]),
             f"{one['released']:,}")
            for one in rows
        ],
        left=3,
    )  # fmt: skip
    for one in rows:
        if one["full"]:
            click.echo(f"{one['name']} is full, and what is to go there waits: {one['full']}")


def _archives(where: str, keyring: str | None) -> list[dict[str, Any]]:
    from nacrefs.common.wire import GetArchives

    table = _ask(where, keyring, GetArchives())
    return [
        {
            **{field: getattr(spec, field) for field in spec.__struct_fields__},
            "files": files,
            "bytes": size,
            "released": released,
            "full": full,
        }
        for spec, files, size, released, full in zip(
            table.specs, table.files, table.bytes, table.released, table.full or [""] * len(table.specs), strict=True
        )
    ]


@archive_command.command("show", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@click.argument("name")
@keyring_option
@json_option
def show_command(where: str, name: str, keyring: str | None, as_json: bool) -> None:
    """Show how archive NAME is set up."""
    for one in _archives(where, keyring):
        if name in (one["name"], str(one["id"])):
            if as_json:
                print_json(one)
            else:
                for key, value in one.items():
                    usual = "no" if key == "full" else "(default)"
                    click.echo(f"{key.replace('_', ' ')}: {value if value != '' else usual}")
            return
    raise OSError(2, f"there is no archive {name!r}")


@archive_command.command("test", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@click.argument("name")
@keyring_option
@json_option
def test_command(where: str, name: str, keyring: str | None, as_json: bool) -> None:
    """Have every OSS write, read, list and delete an object in archive NAME. If it was full and is not now, what waits
    goes on at once."""
    from nacrefs.common.wire import ProbeArchive

    report = json.loads(_ask(where, keyring, ProbeArchive(name)).report)
    if as_json:
        print_json(report)
    else:
        click.echo(f"{report['servers']} OSSes {_abilities(report['can'])}")


@archive_command.command("rm", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@click.argument("name")
@keyring_option
@json_option
def rm_command(where: str, name: str, keyring: str | None, as_json: bool) -> None:
    """Forget archive NAME, in which no file has a copy; the bucket is left as it is."""
    from nacrefs.common.wire import SetArchive

    _ask(where, keyring, SetArchive(ArchiveSpec(0, name, "", ""), True))
    if as_json:
        print_json({"removed": name})


@archive_command.command("catalogue", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@click.argument("name")
@keyring_option
@json_option
def catalogue_command(where: str, name: str, keyring: str | None, as_json: bool) -> None:
    """Write into the bucket of archive NAME what its objects do not say: directories, symbolic links, names, and what
    changed about files since they were copied. The MDS does so every hour by itself; `import` reads it."""
    from nacrefs.common.wire import SaveCatalogue

    report = json.loads(_ask(where, keyring, SaveCatalogue(name)).report)
    if as_json:
        print_json(report)
        return
    click.echo(f"{report['records']:,} names written; {report['uncopied']:,} files have no copy in {name}")


@archive_command.command("import", epilog=EXIT_CODES)
@click.argument("directory")
@click.argument("name")
@click.option("--prefix", default="", help="Only objects whose keys begin so.")
@keyring_option
@json_option
@click.pass_context
def import_command(
    ctx: click.Context, directory: str, name: str, prefix: str, keyring: str | None, as_json: bool
) -> None:
    """Rebuild, below DIRECTORY, the files that archive NAME has: names, modes, owners and times come from the bucket
    alone, contents when they are first read. Files that are there already stay as they are."""
    from nacrefs.client.mount.daemon import mounted_at
    from nacrefs.common.wire import ImportArchive, Imported

    point = mounted_at(directory)
    fid = os.stat(directory).st_ino
    totals = {"made": 0, "skipped": 0, "bytes": 0}
    problems: list[str] = []
    watched = sys.stderr.isatty() and not as_json

    async def work(mds: Any) -> None:
        after, restarts = "", 0
        while True:
            try:
                page: Imported = await mds.call(ImportArchive(name, fid, prefix, after))
            except OSError as error:
                if error.errno != errno.ESTALE or not after or restarts == _RESTARTS:
                    raise
                after, restarts = "", restarts + 1  # the MDS was restarted: what is there already is passed over
                totals["skipped"] = -totals["made"]
                problems.clear()
                continue
            totals["made"] += page.made
            totals["skipped"] += page.skipped
            totals["bytes"] += page.bytes
            problems.extend(page.problems)
            after = page.after
            if watched:
                click.echo(f"\r{totals['made']:,} files, {format_size(totals['bytes'])} ", nl=False, err=True)
            if not after:
                return

    ask(str(point), keyring, work)
    if watched:
        click.echo(err=True)
    if as_json:
        print_json({**totals, "problems": problems})
    else:
        click.echo(f"{totals['made']:,} made, {totals['skipped']:,} were there, {format_size(totals['bytes'])}")
        for problem in problems:
            click.echo(f"nacre: {problem}", err=True)
    ctx.exit(ExitCode.FAILED if problems else ExitCode.OK)
