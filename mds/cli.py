"""`nacre mds`: make an MDT and serve it."""

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from nacrefs.common.auth import load_keyring
from nacrefs.common.config import ConfigError
from nacrefs.mds.config import MdsConfig, load_mds_config

log = logging.getLogger("nacre.mds")

_EXIT_CODES = """\b
Exit codes:
  0  done, or stopped by a signal
  1  it did not work
  2  wrong usage, configuration file or keyring
  3  there is no MDT in the database (`nacre mds format` makes one)
  6  the MDT is there already (format), or another MDS serves it, or the port is taken (serve)"""

_common = (
    click.option("--config", "-c", type=click.Path(dir_okay=False), help="Configuration file (see conf/mds.toml)."),
    click.option("--database", metavar="URL", help="sqlite:///PATH or postgresql://USER@HOST:PORT/DATABASE."),
    click.option("--keyring", type=click.Path(dir_okay=False), help="The cluster's keyring."),
    click.option("--mdt", type=int, help="Number of the MDT."),
)


def _with_common(function: Any) -> Any:
    for option in reversed(_common):
        function = option(function)
    return function


@click.group("mds")
def command() -> None:
    """The metadata server: make an MDT, which is one SQL database, and serve it."""


@command.command("format", epilog=_EXIT_CODES)
@_with_common
@click.option("--new-keyring", is_flag=True, help="Make the keyring of a new cluster first, if there is none.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
def format_command(config: str | None, new_keyring: bool, as_json: bool, **given: Any) -> None:
    """Make an empty MDT in a database that has none. Options outweigh the configuration file.

    MDT 0 has the root directory. The MDT belongs to the cluster of the keyring.
    """
    settings = _settings(config, given)
    if new_keyring and not os.path.exists(settings.keyring):
        _make_keyring(Path(settings.keyring))
    cluster = make_mdt(settings)
    if as_json:
        click.echo(json.dumps({"database": settings.database, "mdt": settings.mdt, "cluster": cluster}))
    else:
        click.echo(f"{_without_password(settings.database)}: MDT {settings.mdt} of cluster {cluster}")


@command.command("serve", epilog=_EXIT_CODES)
@_with_common
@click.option("--listen", metavar="URLS", help="Addresses to listen at, separated by commas: tcp://HOST:PORT.")
@click.option("--metrics", metavar="HOST:PORT", help="Where /metrics, /health and /status are served over HTTP.")
@click.option("--name", help="Its name in logs and reports.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-file", type=click.Path(dir_okay=False), help="Log here instead of to standard error.")
@click.option("--format", "format_first", is_flag=True, help="Make the MDT first if the database has none.")
def serve_command(
    config: str | None, log_level: str | None, log_file: str | None, format_first: bool, **given: Any
) -> None:
    """Serve an MDT until SIGTERM or SIGINT. Options outweigh the configuration file."""
    from nacrefs.common.observe import start_logging

    settings = _settings(config, given)
    changes = {key: value for key, value in (("level", log_level), ("file", log_file)) if value}
    settings = replace(settings, log=replace(settings.log, **changes))
    start_logging(settings.log.level, settings.log.file or None)
    if format_first:
        try:
            cluster = make_mdt(settings)
            log.info("made MDT %d of cluster %s", settings.mdt, cluster)
        except FileExistsError:
            pass
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


def make_mdt(settings: MdsConfig) -> str:
    """Make an empty MDT; the id of its cluster. OSError (EEXIST) if there is one, ConfigError for settings."""
    from nacrefs.mds.database import format_mdt

    keyring = load_keyring(Path(settings.keyring))
    prefix = "sqlite:///"
    if settings.database.startswith(prefix):
        Path(settings.database.removeprefix(prefix)).parent.mkdir(parents=True, exist_ok=True)
    try:
        format_mdt(settings.database, keyring.cluster, settings.mdt, time.time_ns())
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return keyring.cluster


async def _serve(settings: MdsConfig) -> None:
    from nacrefs.mds.server import MdsServer

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        server = MdsServer(settings)
        await server.start()
        loop.add_signal_handler(signal.SIGHUP, server.read_keys_again)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    gc.collect()
    gc.freeze()  # what is there now stays: spare the collector from looking at it
    click.echo(f"serving MDT {settings.mdt} at {server.url}")
    sys.stdout.flush()
    log.info("serving MDT %d at %s, metrics at %s", settings.mdt, server.url, server.metrics_url or "no address")
    waiting = {loop.create_task(stop.wait()), loop.create_task(server.failed.wait())}
    _, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    log.info("stopping")
    await server.stop()
    if server.failure is not None:
        raise server.failure


def _settings(config: str | None, given: dict[str, Any]) -> MdsConfig:
    """The configuration with what the command line says; ConfigError if it cannot be used."""
    settings = load_mds_config(Path(config)) if config else MdsConfig()
    settings = replace(settings, **{key: value for key, value in given.items() if value is not None})
    try:
        settings.check()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return settings


def _make_keyring(path: Path) -> None:
    import uuid

    from nacrefs.common.auth import new_keyring, save_keyring

    path.parent.mkdir(parents=True, exist_ok=True)
    save_keyring(path, new_keyring(uuid.uuid4().hex))
    whose = "copy it to every OSS, and give clients what `nacre key extract` writes"
    click.echo(f"{path}: keyring of a new cluster, mode 0600; {whose}", err=True)


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    account, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{account.partition(':')[0]}{at}{place}" if separator and at else url
