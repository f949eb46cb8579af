"""`nacre oss`: make and serve OSTs. Errors are raised; `nacre` shows them in one line."""

import asyncio
import gc
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from nacrefs.common.auth import load_keyring
from nacrefs.common.config import ConfigError
from nacrefs.oss.config import OssConfig, load_oss_config
from nacrefs.oss.label import format_target

log = logging.getLogger("nacre.oss")

_EXIT_CODES = """\b
Exit codes:
  0  done, or stopped by a signal
  1  it did not work
  2  wrong usage, configuration file or keyring
  3  a directory is not an OST (`nacre oss format` makes one)
  6  the OST is there already (format), or another process serves it, or the port is taken (serve)"""


@click.group("oss")
def command() -> None:
    """Object storage servers: make OSTs and serve them."""


@command.command("format", epilog=_EXIT_CODES)
@click.argument("directory", type=click.Path(file_okay=False))
@click.option("--keyring", type=click.Path(dir_okay=False), help="Keyring of the cluster that the OST is to belong to.")
@click.option("--cluster", help="Id of that cluster, instead of a keyring.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
def format_command(directory: str, keyring: str | None, cluster: str | None, as_json: bool) -> None:
    """Make an empty OST in DIRECTORY, which must be empty or not exist.

    An OST should have a file system of its own (ext4 or XFS) on a device of its own. It gets its index from the MDS
    when it is first served.
    """
    if (keyring is None) == (cluster is None):
        raise click.UsageError("give one of --keyring and --cluster")
    name = load_keyring(Path(keyring)).cluster if keyring is not None else str(cluster)
    try:
        label = format_target(directory, name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if as_json:
        click.echo(json.dumps({"directory": directory, "uuid": label.uuid, "cluster": name}))
    else:
        click.echo(f"{directory}: OST {label.uuid} of cluster {name}")


@command.command("serve", epilog=_EXIT_CODES)
@click.option("--config", "-c", type=click.Path(dir_okay=False), help="Configuration file (see conf/oss.toml).")
@click.option("--ost", "osts", multiple=True, type=click.Path(file_okay=False), help="Directory of an OST; repeatable.")
@click.option("--mds", metavar="URL", help="Address of the MDS: tcp://HOST:PORT.")
@click.option("--listen", metavar="URL", multiple=True, help="Address for clients: tcp://HOST:PORT; repeatable.")
@click.option("--keyring", type=click.Path(dir_okay=False), help="Keyring with the cluster's server key.")
@click.option("--name", help="Its name in logs and reports; default: the host's name.")
@click.option("--metrics", metavar="HOST:PORT", help="Where /metrics and /health are served over HTTP.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-file", type=click.Path(dir_okay=False), help="Log here instead of to standard error.")
@click.option("--format", "format_first", is_flag=True, help="Make OSTs first in directories that are empty or absent.")
def serve_command(
    config: str | None, log_level: str | None, log_file: str | None, format_first: bool, **given: Any
) -> None:
    """Serve OSTs until SIGTERM or SIGINT. Options outweigh the configuration file."""
    from nacrefs.common.observe import start_logging

    settings = load_oss_config(Path(config)) if config else OssConfig()
    changes = {key: value for key, value in (("level", log_level), ("file", log_file)) if value}
    settings = replace(settings, log=replace(settings.log, **changes))
    settings = replace(settings, **{key: value for key, value in given.items() if value})
    try:
        settings.check()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    start_logging(settings.log.level, settings.log.file or None)
    if format_first:
        _make_missing(settings)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


def _make_missing(settings: OssConfig) -> None:
    cluster = load_keyring(Path(settings.keyring)).cluster
    for directory in settings.osts:
        try:
            label = format_target(directory, cluster)
            log.info("made OST %s in %s", label.uuid, directory)
        except FileExistsError:
            continue


async def _serve(settings: OssConfig) -> None:
    from nacrefs.oss.server import OssServer

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = OssServer(settings)
    await server.start()
    loop.add_signal_handler(signal.SIGHUP, server.read_keys_again)
    gc.collect()
    gc.freeze()  # what is there now stays: spare the collector from looking at it
    click.echo(f"serving {len(server.targets)} OSTs at {','.join(server.addresses)}")
    sys.stdout.flush()
    await stop.wait()
    log.info("stopping")
    await server.stop()
