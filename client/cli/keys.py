"""`nacre key`."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from nacrefs.client.cli.outcome import EXIT_CODES, json_option, print_json, print_table
from nacrefs.common.config import ConfigError, parse_duration

if TYPE_CHECKING:
    from nacrefs.common.auth import Key, Keyring
    from nacrefs.common.export import Export

F = TypeVar("F", bound=Callable[..., Any])
_keyring = click.option("--keyring", metavar="FILE", help="The servers' keyring, which is changed in place.")
_LEAD: Final = {"server": "1m"}
"""So much later than now a new key is used, so that all servers know it by then."""


def _export_options(command: F) -> F:
    """The options of what a client's key is limited to."""
    for decorate in (
        click.option("--check", is_flag=True, help="Check permissions at the MDS although nobody is squashed."),
        click.option("--gids", multiple=True, metavar="ID|FIRST-LAST", help="Which groups it may claim."),
        click.option("--uids", multiple=True, metavar="ID|FIRST-LAST", help="Whom it may act as; others: anonymous."),
        click.option("--anon-gid", type=int, default=65534, show_default=True, help="The anonymous user's group."),
        click.option("--anon-uid", type=int, default=65534, show_default=True, help="The anonymous user."),
        click.option(
            "--squash", type=click.Choice(["none", "root", "all"]), default="none", show_default=True,
            help="Whose requests count as the anonymous user's.",
        ),
        click.option("--read-only", is_flag=True, help="It changes nothing."),
        click.option("--path", default="/", show_default=True, help="The directory below which it sees everything."),
    ):  # fmt: skip
        command = decorate(command)
    return command


@click.group("key")
def key_command() -> None:
    """Keys: who may talk to a cluster, as whom, and about what (docs/security.md).

    These commands change a keyring file, and ask no server. Running servers notice within two seconds, or at once on
    SIGHUP, each on its own machine: copy the changed file to all of them.
    """


@key_command.command("list", epilog=EXIT_CODES)
@_keyring
@json_option
def list_command(keyring: str | None, as_json: bool) -> None:
    """Show the keys of a keyring, and what they are good for; never the secrets."""
    _, ring = _load(keyring)
    rows = [_described(name, key) for name, key in ring.keys.items()]
    if as_json:
        print_json({"cluster": ring.cluster, "keys": rows})
        return
    print_table(
        f"cluster {ring.cluster}",
        ("key", "role", "of", "state", "until", "export"),
        [
            (row["name"], row["role"], row["principal"], row["state"], row["not_after"] or "-", row["words"])
            for row in rows
        ],
        6,
    )


@key_command.command("new", epilog=EXIT_CODES)
@click.argument("name")
@click.option("--role", type=click.Choice(["client", "admin", "server"]), default="client", show_default=True)
@click.option("--valid-for", metavar="TIME", help="How long it is good, as 90d; default: for ever.")
@_export_options
@_keyring
@json_option
def new_command(name: str, role: Any, valid_for: str | None, keyring: str | None, as_json: bool, **limits: Any) -> None:
    """Make a key. `nacre key extract` then writes the file for who is to have it."""
    from nacrefs.common.keyedit import with_new_key

    until_s = None if valid_for is None else time.time() + _duration(valid_for)
    with _changing(keyring) as (path, ring):
        _store(path, _tried(lambda: with_new_key(ring, name, role, _export(limits), until_s)), [name], as_json)


@key_command.command("limit", epilog=EXIT_CODES)
@click.argument("name")
@_export_options
@_keyring
@json_option
def limit_command(name: str, keyring: str | None, as_json: bool, **limits: Any) -> None:
    """Limit a client's key to just what these options say. Its sessions end, and begin anew within the limits."""
    from nacrefs.common.keyedit import with_export

    with _changing(keyring) as (path, ring):
        _store(path, _tried(lambda: with_export(ring, name, _export(limits))), [name], as_json)


@key_command.command("rotate", epilog=EXIT_CODES)
@click.argument("name")
@click.option("--overlap", default="7d", show_default=True, metavar="TIME", help="How long the old key is good still.")
@click.option(
    "--lead", metavar="TIME", help="When the new one begins to be good. Default: at once; a server's key in 1m."
)
@_keyring
@json_option
def rotate_command(name: str, overlap: str, lead: str | None, keyring: str | None, as_json: bool) -> None:
    """Give a key a successor, with the same role and limits. Both are good for a while: take the new one to its holder
    (`nacre key extract`) in this time. Sessions live on."""
    from nacrefs.common.keyedit import principal_of, rotated

    with _changing(keyring) as (path, ring):
        principal = _tried(lambda: principal_of(ring, name))
        role = next(key.role for other, key in ring.keys.items() if (key.principal or other) == principal)
        lead_s = _duration(lead if lead is not None else _LEAD.get(role, "0s"))
        changed, fresh = _tried(lambda: rotated(ring, name, time.time(), lead_s, _duration(overlap)))
        _store(path, changed, [fresh], as_json)


@key_command.command("revoke", epilog=EXIT_CODES)
@click.argument("names", nargs=-1, required=True, metavar="KEY…")
@_keyring
@json_option
def revoke_command(names: Sequence[str], keyring: str | None, as_json: bool) -> None:
    """Remove keys. Who has shown one is cut off, and its sessions end, as soon as the servers see it."""
    from nacrefs.common.keyedit import without

    with _changing(keyring) as (path, ring):
        _store(path, _tried(lambda: without(ring, names)), [], as_json)


@key_command.command("prune", epilog=EXIT_CODES)
@_keyring
@json_option
def prune_command(keyring: str | None, as_json: bool) -> None:
    """Remove keys whose time is over. Sessions that were begun under one end."""
    from nacrefs.common.keyedit import without_ended

    with _changing(keyring) as (path, ring):
        _store(path, without_ended(ring, time.time()), [], as_json)


@key_command.command("extract", epilog=EXIT_CODES)
@click.argument("names", nargs=-1, required=True, metavar="KEY…")
@click.option("--output", "-o", required=True, metavar="FILE", help="The new keyring, mode 0600; must not exist.")
@_keyring
@json_option
def extract_command(names: Sequence[str], output: str, keyring: str | None, as_json: bool) -> None:
    """Write a keyring with just these keys, for the machine that is to have them."""
    from nacrefs.common.auth import save_keyring
    from nacrefs.common.keyedit import only

    _, ring = _load(keyring)
    save_keyring(Path(output), _tried(lambda: only(ring, names)))
    if as_json:
        print_json({"file": output, "keys": list(names)})


def _load(keyring: str | None) -> "tuple[Path, Keyring]":
    from nacrefs.client.mount.spec import find_keyring
    from nacrefs.common.auth import load_keyring

    path = find_keyring(keyring)
    return path, load_keyring(path)


@contextmanager
def _changing(keyring: str | None) -> "Generator[tuple[Path, Keyring]]":
    """The keyring, while nobody else changes it."""
    from nacrefs.client.mount.spec import find_keyring
    from nacrefs.common.auth import changing_keyring

    path = find_keyring(keyring)
    with changing_keyring(path) as ring:
        yield path, ring


def _store(path: Path, ring: "Keyring", shown: Sequence[str], as_json: bool) -> None:
    from nacrefs.common.auth import replace_keyring

    replace_keyring(path, ring)
    rows = [_described(name, ring.keys[name]) for name in shown]
    if as_json:
        print_json({"file": str(path), "keys": rows})
    for row in rows if not as_json else ():
        click.echo(f"{row['name']}: a {row['role']}'s key of {row['principal']}, {row['state']}, {row['words']}")


def _tried(work: Callable[[], Any]) -> Any:
    """What `work` gives; what is wrong with what was asked is a usage error."""
    try:
        return work()
    except KeyError as error:
        raise FileNotFoundError(2, f"there is no key {error.args[0]!r} (`nacre key list` shows all)") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _duration(text: str) -> float:
    return float(_tried(lambda: parse_duration(text)))


def _export(limits: dict[str, Any]) -> "Export":
    from nacrefs.common.export import Export

    return Export(**limits)


def _described(name: str, key: "Key") -> dict[str, Any]:
    """A key for people and programs, without its secret."""
    import msgspec

    now_s = time.time()
    state = "good" if key.is_valid(now_s) else "over" if now_s >= key.until_s else "not yet good"
    return {
        "name": name,
        "role": key.role,
        "principal": key.principal or name,
        "state": state,
        "not_before": key.not_before.isoformat() if key.not_before else None,
        "not_after": key.not_after.isoformat() if key.not_after else None,
        "export": msgspec.to_builtins(key.export) if key.role == "client" else None,
        "words": _words(key),
    }


def _words(key: "Key") -> str:
    """What a key is limited to, in a line."""
    export = key.export
    if key.role != "client" or not export.limits:
        return "not limited"
    words = [export.path] if export.subtree else []
    words += ["read-only"] if export.read_only else []
    words += [f"{export.squash} squashed to {export.anon_uid}:{export.anon_gid}"] if export.squash != "none" else []
    words += [f"uids {','.join(export.uids)}"] if export.uids else []
    words += [f"gids {','.join(export.gids)}"] if export.gids else []
    words += ["checked"] if export.identifies else []
    return ", ".join(words)
