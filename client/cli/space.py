"""`nacre df`."""

from typing import Any

import click

from nacrefs.client.cli.outcome import EXIT_CODES, json_option, print_json, print_table
from nacrefs.common.config import format_size


@click.command("df", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@click.option("--keyring", metavar="FILE", help="For a URL: the cluster's client key.")
@json_option
def df_command(where: str, keyring: str | None, as_json: bool) -> None:
    """Show how full the filesystem at MNT is, per OST and in total (what OSTs on one disk share counts
    once). With a URL, the MDS is asked directly."""
    report = space_report(where, keyring)
    if as_json:
        print_json(report)
        return
    rows = [_row(f"OST {ost['index']}", ost, ost["address"], "up" if ost["up"] else "DOWN") for ost in report["osts"]]
    rows.append(_row("total", report, "", ""))
    print_table("", ("", "size", "used", "free", "use%", "objects", "state", "address"), rows)
    click.echo(f"{report['files']:,} inodes")


def space_report(where: str, keyring: str | None) -> dict[str, Any]:
    """What `--json` prints."""
    report: dict[str, Any]
    if "://" in where:
        from nacrefs.client import admin

        report = admin.ask(where, keyring, admin.space)
    else:
        from nacrefs.client.mount import daemon as mount

        report = mount.ask_json(where, "df")
    return report


def _row(name: str, space: dict[str, Any], address: str, state: str) -> tuple[str, ...]:
    total, used = space["total_bytes"], space["used_bytes"]
    percent = f"{100 * used / total:.0f}%" if total else "-"
    objects = f"{space['objects']:,}" if "objects" in space else ""
    free = format_size(space["free_bytes"])
    return name, format_size(total), format_size(used), free, percent, objects, state, address
