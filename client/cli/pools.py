"""`nacre pool`."""

from collections.abc import Sequence

import click

from nacrefs.client.cli.asking import ask, keyring_option
from nacrefs.client.cli.outcome import EXIT_CODES, json_option, print_json, print_table
from nacrefs.client.cli.space import space_report


@click.group("pool")
def pool_command() -> None:
    """Pools: named sets of OSTs, such as those on fast disks, on which files can be placed (`nacre setstripe -p`)."""


@pool_command.command("list", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@keyring_option
@json_option
def list_command(where: str, keyring: str | None, as_json: bool) -> None:
    """Show all pools and their OSTs."""
    pools: dict[str, list[int]] = {}
    for ost in space_report(where, keyring)["osts"]:
        for pool in ost["pools"]:
            pools.setdefault(pool, []).append(ost["index"])
    if as_json:
        print_json({"pools": pools})
    elif pools:
        print_table("", ("pool", "OSTs"), [(name, ",".join(map(str, osts))) for name, osts in sorted(pools.items())], 2)


@pool_command.command("set", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@click.argument("pool")
@click.argument("osts", nargs=-1, required=True, type=click.IntRange(min=0), metavar="OST…")
@keyring_option
@json_option
def set_command(where: str, pool: str, osts: Sequence[int], keyring: str | None, as_json: bool) -> None:
    """Give POOL exactly these OSTs, by index. The cluster's key is needed, also with a mount."""
    _set(where, pool, tuple(osts), keyring, as_json)


@pool_command.command("rm", epilog=EXIT_CODES)
@click.argument("where", metavar="MNT|URL")
@click.argument("pool")
@keyring_option
@json_option
def rm_command(where: str, pool: str, keyring: str | None, as_json: bool) -> None:
    """Remove POOL; files that were placed on it stay where they are."""
    _set(where, pool, (), keyring, as_json)


def _set(where: str, pool: str, osts: tuple[int, ...], keyring: str | None, as_json: bool) -> None:
    from nacrefs.client.admin import DEADLINE_S
    from nacrefs.common.wire import SetPool

    ask(where, keyring, lambda mds: mds.call(SetPool(pool, osts), deadline_s=DEADLINE_S))
    if as_json:
        print_json({"pool": pool, "osts": list(osts)})
