"""A progress bar on standard error, where a person looks at it; nothing otherwise."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol


class Update(Protocol):
    """How far the work has come: what is done at the moment, and how much of how much (0: not known)."""

    def __call__(self, phase: str, done: int, total: int) -> None: ...


def _nothing(phase: str, done: int, total: int) -> None:
    """Nobody looks."""


@contextmanager
def progress_bar() -> Generator[Update]:
    """Shows what it is told, and is gone at the end."""
    if not sys.stderr.isatty():
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def update(phase: str, done: int, total: int) -> None:
            bar.update(task, description=phase, completed=done, total=total or None)

        yield update
