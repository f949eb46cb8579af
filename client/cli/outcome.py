"""How a command ends and what it prints: exit codes, errors in one line, JSON for programs, tables for people."""

import enum
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class ExitCode(enum.IntEnum):
    """What `nacre` ends with; `nacre --help` and docs/operations.md show the same."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    REFUSED = 5
    BUSY = 6
    INTERRUPTED = 130


EXIT_CODES: Final = """\b
Exit codes:
  0  done
  1  it did not work
  2  wrong usage, or a wrong configuration file or keyring
  3  not there: file, mount point, or nothing of nacrefs is mounted there
  4  a server cannot be reached
  5  refused: wrong key, or permission denied
  6  it is there already, or in use"""

_CODES: Final = {
    ExitCode.NOT_FOUND: (errno.ENOENT, errno.ENOTDIR, errno.ENOTCONN, errno.ENODEV, errno.ENODATA, errno.ESTALE),
    ExitCode.UNREACHABLE: (
        errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH,
        errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EPIPE,
    ),
    ExitCode.REFUSED: (errno.EACCES, errno.EPERM, errno.EKEYREJECTED, errno.EKEYEXPIRED),
    ExitCode.BUSY: (errno.EBUSY, errno.EEXIST, errno.ENOTEMPTY, errno.EADDRINUSE),
    ExitCode.USAGE: (errno.EINVAL,),
}  # fmt: skip


class CheckError(Exception):
    """A command that checks something did not work; `code` is of its own codes (`checks`)."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def exit_code_of(error: OSError) -> ExitCode:
    """The exit code that an errno means."""
    for code, numbers in _CODES.items():
        if error.errno in numbers:
            return code
    return ExitCode.FAILED


def words_of(error: OSError) -> str:
    """An OSError as a person may read it: what it is about, then what is wrong."""
    text = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
    if error.filename is None:
        return text
    about = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    return text if text.startswith(about) else f"{about}: {text}"


def json_option(command: F) -> F:
    """`--json`, which every command has."""
    decorate = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
    return decorate(command)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(document, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def watched() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout.isatty()


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """A table: the first `left` columns flush left, the others right. Drawn by rich for a person, plain otherwise."""
    if watched():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index < left else "right")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    if title:
        click.echo(title)
    for line in align([header, *rows], left):
        click.echo(line)


def align(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines with columns of equal width, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
