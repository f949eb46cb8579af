"""`nacre locks`."""

import os
from typing import Any

import click

from nacrefs.client.cli.outcome import EXIT_CODES, json_option, print_json, print_table


@click.command("locks", epilog=EXIT_CODES)
@click.argument("mount", metavar="MNT")
@click.argument("path", required=False)
@json_option
def locks_command(mount: str, path: str | None, as_json: bool) -> None:
    """Show who has fcntl and flock locks on files of the filesystem at MNT, on all mounts, and who waits for one, in
    the order in which they will get it; with PATH, on that file only."""
    from nacrefs.client.mount import daemon as mounts

    report: dict[str, Any] = mounts.ask_json(mount, "locks")
    if path is not None:
        fid = os.stat(path).st_ino
        mounts.mounted_at(path)
        for part in ("held", "waiting"):
            report[part] = [lock for lock in report[part] if lock["fid"] == fid]
    names: dict[int, str | None] = {}
    for lock in (*report["held"], *report["waiting"]):
        fid = lock["fid"]
        if fid not in names:
            names[fid] = _path(mount, fid)
        lock["path"] = names[fid]
    if as_json:
        print_json(report)
        return
    print_table(
        "",
        ("file", "kind", "bytes", "state", "host", "pid", "session"),
        [
            (
                lock["path"] or f"fid {lock['fid']}", f"{lock['style']} {lock['kind']}", _bytes(lock), state,
                lock["host"], str(lock["pid"]), str(lock["session"]),
            )
            for state, locks in (("held", report["held"]), ("waiting", report["waiting"]))
            for lock in locks
        ],
        left=5,
    )  # fmt: skip


def _path(mount: str, fid: int) -> str | None:
    """The path of a file from the filesystem's root; None if it has none any more."""
    from nacrefs.client.mount import daemon as mounts

    try:
        return mounts.ask(mount, f"path-of.{fid}").decode(errors="replace")
    except OSError:
        return None


def _bytes(lock: dict[str, Any]) -> str:
    end = lock["end"]
    if lock["style"] == "flock" or (lock["start"] == 0 and end is None):
        return "all"
    return f"{lock['start']}–{'' if end is None else end - 1}"
