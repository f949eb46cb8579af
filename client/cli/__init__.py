"""The `nacre` command. This module knows which commands there are; each is imported when it is typed.

Commands of other packages (`mds`, `oss`) come through the entry-point group `nacrefs.commands`, so that `client`
imports neither, and SQLAlchemy is loaded by `nacre mds` only.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click
from click.shell_completion import CompletionItem

from nacrefs.client.cli.outcome import EXIT_CODES, CheckError, ExitCode, exit_code_of, words_of
from nacrefs.common.config import ConfigError

COMMANDS: Final = {
    "archive": ("archive", "Archives: buckets and directories to which cold files go."),
    "bench": ("bench", "Measure a mount, next to a local directory."),
    "completion": ("completion", "Print what makes a shell complete nacre's commands."),
    "df": ("space", "Show how full a filesystem is, per OST and in total."),
    "dev": ("dev", "A whole cluster on this machine, for development and trying out."),
    "fid2path": ("paths", "Show the path of a fid."),
    "find": ("find", "Find files by name, type, size, age, layout and OST."),
    "fsck": ("fsck", "Check a filesystem while it is used, and mend it."),
    "getstripe": ("stripes", "Show the layout of files, and what directories give to new files."),
    "lifecycle": ("lifecycle", "Rules by which files go to an archive, give up their space, and are deleted."),
    "locks": ("locks", "Show who has and who waits for fcntl and flock locks."),
    "mpi-env": ("mpi", "Print what makes a program do its own I/O (MPI-IO)."),
    "key": ("keys", "Keys: who may talk to a cluster, as whom, and about what."),
    "hsm": ("hsm", "Move files to an archive and back, and see where they are."),
    "link": ("link", "Links: directories whose files are the objects of a bucket."),
    "mirror": ("mirror", "Files with copies: which are not good, and making them so."),
    "mount": ("mounts", "Mount a filesystem."),
    "path2fid": ("paths", "Show the fid of paths."),
    "pool": ("pools", "Named sets of OSTs on which files can be placed."),
    "quota": ("quotas", "What users, groups and projects use, and limits for it."),
    "run": ("mpi", "Run a program that does its own I/O (MPI-IO)."),
    "scrub": ("scrub", "Read everything that is stored, and find and mend what is damaged."),
    "setstripe": ("stripes", "Set the layout of new files, or a directory's default."),
    "stats": ("servers", "Show what a mount or server has been asked, and what it cost."),
    "status": ("servers", "Show servers, OSTs, sessions, leases and queues."),
    "umount": ("mounts", "Unmount, after everything that was written has been stored."),
    "warmup": ("warmup", "Bring files to the OSTs before they are needed."),
}
"""Our own commands: the module of `client.cli` in which each is, as `NAME_command`, and what it does."""

PLUGINS: Final = {
    "mds": "The metadata server: make an MDT and serve it.",
    "oss": "Object storage servers: make OSTs and serve them.",
}
"""Commands of the entry-point group `nacrefs.commands` and what they do; others show their own words."""

ENTRY_POINTS: Final = "nacrefs.commands"


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in order."""
        return sorted({*COMMANDS, *PLUGINS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name in COMMANDS:
            module = import_module(f"nacrefs.client.cli.{COMMANDS[cmd_name][0]}")
            command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        else:
            command = _plugin(cmd_name)
        assert command is None or isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command without importing any."""
        words = {name: text for name, (_, text) in COMMANDS.items()} | PLUGINS
        found = [CompletionItem(name, help=words[name]) for name in sorted(words) if name.startswith(incomplete)]
        return found or click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        words = {name: text for name, (_, text) in COMMANDS.items()} | PLUGINS
        with formatter.section("Commands"):
            formatter.write_dl(sorted(words.items()))


def _plugin(name: str) -> object:
    """A command that another distribution has registered."""
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS, name=name):
        return entry.load()
    return None


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="nacrefs", prog_name="nacre")
def nacre(debug: bool) -> None:
    """nacrefs: a parallel filesystem. Mount it, look at it, run its servers."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its exit code; an error is one line on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(words))


def run(arguments: list[str]) -> int:
    """Run a command; its exit code."""
    debug = "--debug" in arguments[:1]
    try:
        result = nacre.main(arguments, prog_name="nacre", standalone_mode=False)
        return result if isinstance(result, int) else ExitCode.OK
    except click.Abort:
        return _say("interrupted", ExitCode.INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "nacre"
        return _say(f"{error.format_message().rstrip('.')} (see `{where} --help`)", ExitCode.USAGE)
    except click.ClickException as error:
        return _say(error.format_message(), error.exit_code)
    except CheckError as error:
        return _say(str(error), error.code)
    except ConfigError as error:
        return _raise(debug) or _say(str(error), ExitCode.USAGE)
    except BrokenPipeError:
        # Whoever read our output has gone; nobody is to be told, and Python must not try again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except OSError as error:
        return _raise(debug) or _say(words_of(error), exit_code_of(error))
    except Exception as error:
        return _raise(debug) or _say(
            f"internal error: {type(error).__name__}: {error} (`nacre --debug …` shows where)", ExitCode.FAILED
        )


def _raise(debug: bool) -> int:
    """Print the traceback of the error in service if asked; 0."""
    if debug:
        import traceback

        traceback.print_exc()
    return 0


def _say(text: str, code: int) -> int:
    """Tell what is wrong, in one line."""
    click.echo(f"nacre: {' '.join(text.split())}", err=True)
    return code
