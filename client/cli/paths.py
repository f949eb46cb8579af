"""`nacre path2fid` and `nacre fid2path`."""

import os
from collections.abc import Sequence

import click

from nacrefs.client.cli.outcome import EXIT_CODES, json_option, print_json
from nacrefs.common.fid import format_fid, parse_fid


@click.command("path2fid", epilog=EXIT_CODES)
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@json_option
def path2fid_command(paths: Sequence[str], as_json: bool) -> None:
    """Show the fid of each PATH: what identifies it in the whole cluster for ever (it is also its inode number)."""
    from nacrefs.client.mount.daemon import mounted_at

    found: list[dict[str, str | int]] = []
    for path in paths:
        mounted_at(path, follow=False)
        number = os.lstat(path).st_ino
        found.append({"path": path, "fid": format_fid(number), "number": number})
    if as_json:
        print_json(found)
        return
    for one in found:
        click.echo(f"{one['fid']} {one['path']}" if len(found) > 1 else one["fid"])


@click.command("fid2path", epilog=EXIT_CODES)
@click.argument("mount", metavar="MNT")
@click.argument("fids", nargs=-1, required=True, metavar="FID…")
@json_option
def fid2path_command(mount: str, fids: Sequence[str], as_json: bool) -> None:
    """Show the path, from the root of the filesystem at MNT, of each FID: [0x0:0x2a], or an inode number."""
    from nacrefs.client.mount.daemon import ask

    found: list[dict[str, str | int]] = []
    for fid in fids:
        try:
            number = int(fid) if fid.isdigit() else parse_fid(fid)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        path = os.fsdecode(ask(mount, f"path-of.{number}"))
        found.append({"fid": format_fid(number), "number": number, "path": path})
    if as_json:
        print_json(found)
        return
    for one in found:
        click.echo(one["path"])
