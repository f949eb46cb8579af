"""`nacre oss`: make and serve OSTs."""

import asyncio
import gc
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec
import uvloop

from nacrefs.common.auth import load_keyring
from nacrefs.common.config import ConfigError
from nacrefs.common.observe import start_logging
from nacrefs.oss.config import OssConfig, load_oss_config
from nacrefs.oss.label import format_target
from nacrefs.oss.server import OssServer

_EXIT_CODES = """\b
Exit codes: 0 stopped or done · 1 it did not work · 2 wrong usage or configuration."""


@click.group("oss")
def command() -> None:
    """Object storage: make OSTs and serve them."""


@command.command("format", epilog=_EXIT_CODES)
@click.argument("directory", type=click.Path(file_okay=False))
@click.option("--keyring", type=click.Path(dir_okay=False), help="Keyring of the cluster that the OST is to belong to.")
@click.option("--cluster", help="Id of that cluster, instead of a keyring.")
def format_command(directory: str, keyring: str | None, cluster: str | None) -> None:
    """Make an empty OST in DIRECTORY, which must be empty or not exist.

    An OST should have a file system of its own (ext4 or XFS) on a device of its own. It gets its index from the MDS
    when it is first served.
    """
    if (keyring is None) == (cluster is None):
        raise click.UsageError("give one of --keyring and --cluster")
    try:
        name = load_keyring(Path(keyring)).cluster if keyring is not None else str(cluster)
        label = format_target(directory, name)
    except ConfigError as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(f"{error.filename or directory}: {error.strerror}", 1)
    except ValueError as error:
        _fail(str(error), 2)
    click.echo(f"{directory}: OST {label.uuid} of cluster {name}")


@command.command("serve", epilog=_EXIT_CODES)
@click.option("--config", "-c", type=click.Path(dir_okay=False), help="Configuration file (all keys: conf/oss.toml).")
@click.option("--ost", "osts", multiple=True, type=click.Path(file_okay=False), help="Directory of an OST; repeatable.")
@click.option("--mds", help="Address of the MDS, as in tcp://mds-host:9600.")
@click.option("--listen", multiple=True, help="Address at which clients are served; port 0: any free one. Repeatable.")
@click.option("--keyring", type=click.Path(dir_okay=False), help="Keyring with the cluster's server key.")
@click.option("--name", help="Name of this server; default: the host's name.")
@click.option("--metrics", help="HOST:PORT of /metrics and /health.")
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-file", type=click.Path(dir_okay=False), help="Log here instead of to standard error.")
@click.option(
    "--format", "format_first", is_flag=True, help="Make OSTs first of directories that are empty or missing."
)
def serve_command(config: str | None, log_level: str, log_file: str | None, format_first: bool, **given: Any) -> None:
    """Serve OSTs until SIGTERM or SIGINT. Options outweigh the configuration file."""
    start_logging(log_level, log_file)
    try:
        settings = load_oss_config(Path(config)) if config else OssConfig()
        settings = msgspec.structs.replace(settings, **{key: value for key, value in given.items() if value})
        settings.check()
        if format_first:
            _format_missing(settings)
        _run(settings)
    except (ConfigError, ValueError) as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error), 1)


def _format_missing(config: OssConfig) -> None:
    """Make OSTs of the directories that are empty or do not exist; others are left to be found unfit when opened."""
    cluster = load_keyring(Path(config.keyring)).cluster
    for directory in config.osts:
        if not Path(directory).exists() or not any(Path(directory).iterdir()):
            format_target(directory, cluster)


def _run(config: OssConfig) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config))


async def _serve(config: OssConfig) -> None:
    server = OssServer(config)
    await server.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gc.freeze()  # what is there now stays: spare the collector from looking at it
    click.echo(f"serving {len(server.targets)} OSTs at {','.join(server.addresses)}")
    sys.stdout.flush()
    await stop.wait()
    await server.stop()


def _fail(text: str, code: int) -> NoReturn:
    click.echo(f"nacre oss: {text}", err=True)
    raise SystemExit(code)
