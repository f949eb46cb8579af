"""`nacre quota`."""

import datetime
import grp
import os
import pwd
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from nacrefs.client.cli.asking import ask, keyring_option
from nacrefs.client.cli.outcome import EXIT_CODES, ExitCode, json_option, print_json, print_table
from nacrefs.common.config import format_size, parse_duration, parse_size
from nacrefs.common.fid import format_fid
from nacrefs.common.remote import Remote
from nacrefs.common.wire import (
    CheckQuota,
    GetQuota,
    ListQuotas,
    ProjectInfo,
    QuotaDrifts,
    QuotaInfo,
    QuotaKind,
    QuotaLimits,
    SetProject,
    SetQuota,
)

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
DAY_S: Final = 86_400

_where = click.argument("where", metavar="MNT|URL")


def _owner(command: F) -> F:
    """The options that say whose quota it is."""
    for option in reversed(
        (
            click.option("-u", "--user", metavar="NAME|ID", help="A user."),
            click.option("-g", "--group", metavar="NAME|ID", help="A group."),
            click.option("-p", "--project", metavar="ID", help="A project: see `nacre quota project`."),
        )
    ):
        command = option(command)
    return command


@click.group("quota")
def quota_command() -> None:
    """Quotas: what users, groups and projects (directories) use, and limits for it."""


@quota_command.command("set", epilog=EXIT_CODES)
@_where
@_owner
@click.option("--soft", metavar="SIZE", help="Bytes that may be exceeded for the grace term; 0: no such limit.")
@click.option("--hard", metavar="SIZE", help="Bytes that cannot be exceeded; 0: no such limit.")
@click.option("--soft-inodes", metavar="N", type=click.IntRange(min=0), help="The same for the number of files.")
@click.option("--hard-inodes", metavar="N", type=click.IntRange(min=0))
@click.option("--grace", metavar="TIME", help="How long the soft limit of bytes may be exceeded (7d).")
@click.option("--grace-inodes", metavar="TIME", help="How long that of files may be (7d).")
@keyring_option
@json_option
def set_command(
    where: str,
    user: str | None,
    group: str | None,
    project: str | None,
    soft: str | None,
    hard: str | None,
    soft_inodes: int | None,
    hard_inodes: int | None,
    grace: str | None,
    grace_inodes: str | None,
    keyring: str | None,
    as_json: bool,
) -> None:
    """Limit what a user, group or project may use; what is not given stays as it is. Sizes are 500MB, 10GiB, 2T."""
    kind, number = _account(user, group, project)
    given = (soft, hard, soft_inodes, hard_inodes, grace, grace_inodes)
    if all(one is None for one in given):
        raise click.UsageError("say which limit: --soft, --hard, --soft-inodes, --hard-inodes, --grace")

    async def work(mds: Remote) -> QuotaInfo:
        before = (await mds.call(GetQuota(kind, number))).limits
        limits = QuotaLimits(
            before.soft_bytes if soft is None else _size(soft),
            before.hard_bytes if hard is None else _size(hard),
            before.soft_inodes if soft_inodes is None else soft_inodes,
            before.hard_inodes if hard_inodes is None else hard_inodes,
            before.grace_bytes_s if grace is None else _seconds(grace),
            before.grace_inodes_s if grace_inodes is None else _seconds(grace_inodes),
        )
        return await mds.call(SetQuota(kind, number, limits))

    _show([ask(where, keyring, work)], as_json, one=True)


@quota_command.command("get", epilog=EXIT_CODES)
@_where
@_owner
@keyring_option
@json_option
def get_command(
    where: str, user: str | None, group: str | None, project: str | None, keyring: str | None, as_json: bool
) -> None:
    """Show what a user, group or project uses and may use."""
    kind, number = _account(user, group, project)
    _show([ask(where, keyring, lambda mds: mds.call(GetQuota(kind, number)))], as_json, one=True)


@quota_command.command("list", epilog=EXIT_CODES)
@_where
@click.option("-u", "--users", is_flag=True, help="Users only.")
@click.option("-g", "--groups", is_flag=True, help="Groups only.")
@click.option("-p", "--projects", is_flag=True, help="Projects only.")
@keyring_option
@json_option
def list_command(where: str, users: bool, groups: bool, projects: bool, keyring: str | None, as_json: bool) -> None:
    """Show all users, groups and projects that use something or have limits."""
    chosen = [kind for kind, wanted in zip(QuotaKind, (users, groups, projects), strict=True) if wanted]

    async def work(mds: Remote) -> list[QuotaInfo]:
        found: list[QuotaInfo] = []
        for kind in chosen or QuotaKind:
            after = -1
            while True:
                page = await mds.call(ListQuotas(kind, after))
                found.extend(page.quotas)
                if page.end:
                    break
                after = page.quotas[-1].id
        return found

    _show(ask(where, keyring, work), as_json)


@quota_command.command("rm", epilog=EXIT_CODES)
@_where
@_owner
@keyring_option
@json_option
def rm_command(
    where: str, user: str | None, group: str | None, project: str | None, keyring: str | None, as_json: bool
) -> None:
    """Limit a user, group or project no more; what it uses is counted still."""
    kind, number = _account(user, group, project)
    _show([ask(where, keyring, lambda mds: mds.call(SetQuota(kind, number, QuotaLimits())))], as_json, one=True)


@quota_command.command("check", epilog=EXIT_CODES)
@_where
@click.option("--repair", is_flag=True, help="Set right what is recorded.")
@keyring_option
@json_option
def check_command(where: str, repair: bool, keyring: str | None, as_json: bool) -> int:
    """Count what all files use and compare it with what is recorded; the filesystem may be in use. Exit code 1 if
    something is wrong and stays so."""
    drifts: QuotaDrifts = ask(where, keyring, lambda mds: mds.call(CheckQuota(repair)))
    rows = [
        {
            "uid": drift.uid,
            "gid": drift.gid,
            "project": drift.project,
            "recorded_bytes": drift.recorded_bytes,
            "recorded_inodes": drift.recorded_inodes,
            "bytes": drift.bytes,
            "inodes": drift.inodes,
        }
        for drift in drifts.drifts
    ]
    if as_json:
        print_json({"drifts": rows, "repaired": drifts.repaired and bool(rows)})
    else:
        for row in rows:
            click.echo(
                "uid {uid} gid {gid} project {project}: {recorded_bytes} bytes, {recorded_inodes} files recorded,"
                " {bytes} bytes, {inodes} files counted".format(**row)
            )
        words = "nothing is wrong" if not rows else "repaired" if repair else "run with --repair to set it right"
        click.echo(words)
    return ExitCode.FAILED if rows and not repair else ExitCode.OK


@quota_command.command("project", epilog=EXIT_CODES)
@click.argument("directory", metavar="DIR", type=click.Path(exists=True))
@click.option("--id", "number", metavar="ID", type=click.IntRange(min=0), help="The project; 0: none.")
@click.option("-r", "--recursive", is_flag=True, help="Also all that is in DIR already.")
@keyring_option
@json_option
def project_command(directory: str, number: int | None, recursive: bool, keyring: str | None, as_json: bool) -> None:
    """Show the project that DIR belongs to, or give it to one. What is made in DIR from then on belongs to it too, `df`
    of DIR shows its quota, and files of others are copied when they are moved there."""
    from nacrefs.client.mount.daemon import mounted_at

    mounted_at(directory)
    fid = os.stat(directory).st_ino
    asked = SetProject(fid, -1 if number is None else number, recursive)
    info: ProjectInfo = ask(directory, keyring, lambda mds: mds.call(asked))
    if as_json:
        document = {"path": directory, "fid": format_fid(fid), "project": info.project}
        print_json(document if number is None else document | {"changed": info.changed})
    elif number is None:
        click.echo(f"{info.project} {directory}")
    else:
        click.echo(f"{info.changed} files and directories belong to project {info.project} now")


# ------------------------------------------------------------------------------------------------------------- asking


def _account(user: str | None, group: str | None, project: str | None) -> tuple[QuotaKind, int]:
    """Whose quota it is; UsageError unless exactly one is named."""
    if sum(one is not None for one in (user, group, project)) != 1:
        raise click.UsageError("say whose quota: one of --user, --group, --project")
    try:
        if user is not None:
            return QuotaKind.USER, int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
        if group is not None:
            return QuotaKind.GROUP, int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        assert project is not None
        return QuotaKind.PROJECT, int(project)
    except KeyError:
        raise click.UsageError(
            f"there is no {'user' if user is not None else 'group'} {user or group!r} here"
        ) from None
    except ValueError:
        raise click.UsageError(f"{project!r} is not a project: projects are numbers") from None


def _size(text: str) -> int:
    try:
        return int(parse_size(text))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _seconds(text: str) -> int:
    try:
        return int(parse_duration(text))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def name_of(kind: QuotaKind, number: int) -> str:
    """A user's or group's name, as far as this machine knows it."""
    try:
        if kind is QuotaKind.USER:
            return pwd.getpwuid(number).pw_name
        if kind is QuotaKind.GROUP:
            return grp.getgrgid(number).gr_name
    except KeyError:
        pass
    return str(number)


def quota_document(info: QuotaInfo) -> dict[str, Any]:
    """A quota as it stands in every JSON document; limits that are not there are null, terms are Unix times."""
    limits = info.limits
    return {
        "kind": info.kind.name.lower(),
        "id": info.id,
        "name": name_of(info.kind, info.id),
        "used_bytes": info.used_bytes,
        "soft_bytes": limits.soft_bytes or None,
        "hard_bytes": limits.hard_bytes or None,
        "grace_bytes_s": limits.grace_bytes_s,
        "bytes_until": info.bytes_until_ns / 1e9 if info.bytes_until_ns else None,
        "used_inodes": info.used_inodes,
        "soft_inodes": limits.soft_inodes or None,
        "hard_inodes": limits.hard_inodes or None,
        "grace_inodes_s": limits.grace_inodes_s,
        "inodes_until": info.inodes_until_ns / 1e9 if info.inodes_until_ns else None,
    }


def _show(infos: list[QuotaInfo], as_json: bool, one: bool = False) -> None:
    if as_json:
        documents = [quota_document(info) for info in infos]
        print_json(documents[0] if one else {"quotas": documents})
        return
    rows = [_row(info) for info in infos]
    header = ("", "", "used", "soft", "hard", "grace", "files", "soft", "hard", "grace")
    print_table("", header, rows, 2)


def _row(info: QuotaInfo) -> tuple[str, ...]:
    limits = info.limits
    over = "*" if limits.soft_bytes and info.used_bytes > limits.soft_bytes else ""
    more = "*" if limits.soft_inodes and info.used_inodes > limits.soft_inodes else ""
    return (
        info.kind.name.lower(),
        name_of(info.kind, info.id),
        format_size(info.used_bytes) + over,
        format_size(limits.soft_bytes) if limits.soft_bytes else "-",
        format_size(limits.hard_bytes) if limits.hard_bytes else "-",
        _left(info.bytes_until_ns),
        f"{info.used_inodes:,}{more}",
        f"{limits.soft_inodes:,}" if limits.soft_inodes else "-",
        f"{limits.hard_inodes:,}" if limits.hard_inodes else "-",
        _left(info.inodes_until_ns),
    )


def _left(until_ns: int) -> str:
    """How much of a grace term is left."""
    if not until_ns:
        return "-"
    left_s = int(until_ns / 1e9 - datetime.datetime.now(datetime.UTC).timestamp())
    if left_s <= 0:
        return "over"
    return (
        f"{left_s // DAY_S}d{left_s % DAY_S // 3600}h" if left_s >= DAY_S else str(datetime.timedelta(seconds=left_s))
    )
