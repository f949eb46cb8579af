"""Results of a benchmark: rows, their medians, JSON and plain-text tables with ratios."""

import os
import platform
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measured row. `unit` is what its figure is quoted in: `op/s` or `MiB/s`.

    `cpu_us_per_operation`: processor time by process name (`workers`: the benchmark's own loops, with the system time
    of their calls). `requests_per_operation`: the caller's counters. Both cover the row's duration, not what is
    finished in the background later. `spread`: the lowest and the highest figure of the repetitions, if there were any.
    """

    name: str
    filesystem: str
    processes: int
    unit: str
    operations: int
    bytes: int
    seconds: float
    cpu_us_per_operation: Mapping[str, float] = field(default_factory=dict[str, float])
    requests_per_operation: Mapping[str, float] = field(default_factory=dict[str, float])
    spread: tuple[float, float] | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What makes rows of different filesystems comparable."""
        return self.name, self.processes

    @property
    def operations_per_second(self) -> float:
        """Operations of all workers together."""
        return self.operations / self.seconds

    @property
    def mib_per_second(self) -> float:
        """Bytes of all workers together."""
        return self.bytes / self.seconds / (1 << 20)

    @property
    def figure(self) -> float:
        """The row's value in its unit; more is better."""
        return self.mib_per_second if self.unit == "MiB/s" else self.operations_per_second

    def to_json(self) -> dict[str, Any]:
        """Fields and derived figures, ready for `json.dumps`."""
        return asdict(self) | {
            "operations_per_second": round(self.operations_per_second, 1),
            "mib_per_second": round(self.mib_per_second, 2),
        }


@dataclass(frozen=True)
class Report:
    """Rows and where they were measured."""

    machine: Mapping[str, str | int | float]
    rows: Sequence[Row]

    def to_json(self) -> dict[str, Any]:
        """The whole report, ready for `json.dumps`."""
        return {"machine": dict(self.machine), "rows": [row.to_json() for row in self.rows]}


def describe_machine(scale: float, repetitions: int) -> dict[str, str | int | float]:
    """What a reader needs in order to judge the figures."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(pages * page_bytes / (1 << 30), 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "scale": scale,
        "repetitions": repetitions,
    }


def medians(rows: Iterable[Row]) -> list[Row]:
    """Of the repetitions of each row on each filesystem the one with the median figure (the lower of two)."""
    repetitions: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        repetitions.setdefault((*row.key, row.filesystem), []).append(row)
    kept: list[Row] = []
    for group in repetitions.values():
        figures = [row.figure for row in group]
        middle = group[figures.index(statistics.median_low(figures))]
        kept.append(replace(middle, spread=(round(min(figures), 2), round(max(figures), 2))))
    return kept


Ratio = tuple[str, Sequence[str]]
"""A column that says how many times the best of some filesystems another one reaches."""


def ratios_of(subject: str, filesystems: Sequence[str], local: str = "local") -> list[Ratio]:
    """`subject` against each other filesystem and, if there are two or more besides `local`, the best of them."""
    others = [name for name in filesystems if name != subject]
    peers = [name for name in others if name != local]
    ratios: list[Ratio] = [(subject, [other]) for other in others]
    if len(peers) > 1:
        ratios.append((subject, peers))
    return ratios


def render(rows: Sequence[Row], ratios: Sequence[Ratio] = ()) -> str:
    """A plain-text table: a line per row, a column per filesystem, a column per ratio."""
    filesystems = list(dict.fromkeys(row.filesystem for row in rows))
    figures: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        figures.setdefault(row.key, {})[row.filesystem] = row
    names = [f"{subject}/{others[0] if len(others) == 1 else 'best'}" for subject, others in ratios]
    lines = [["row", "processes", "unit", *filesystems, *names]]
    for (name, processes), by_filesystem in figures.items():
        line = [name, str(processes), next(iter(by_filesystem.values())).unit]
        line += [_number(by_filesystem[one].figure) if one in by_filesystem else "-" for one in filesystems]
        for subject, others in ratios:
            theirs = [by_filesystem[other].figure for other in others if other in by_filesystem]
            mine = by_filesystem.get(subject)
            line.append(f"{mine.figure / max(theirs):.2f}" if mine and theirs else "-")
        lines.append(line)
    return _align(lines, left=1)


def render_costs(rows: Sequence[Row]) -> str:
    """A plain-text table of processor time and requests per operation; empty if nothing was measured."""
    lines = [["row", "processes", "filesystem", "CPU µs per operation", "requests per operation"]]
    for row in rows:
        if row.cpu_us_per_operation or row.requests_per_operation:
            costs = (
                " ".join(f"{name} {value:.{places}f}" for name, value in costs.items() if round(value, places)) or "-"
                for costs, places in ((row.cpu_us_per_operation, 0), (row.requests_per_operation, 2))
            )
            lines.append([row.name, str(row.processes), row.filesystem, *costs])
    return _align(lines, left=5) if len(lines) > 1 else ""


def _number(value: float) -> str:
    """Three digits that mean something, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _align(lines: Sequence[Sequence[str]], left: int) -> str:
    """Columns of equal width: the first `left` ones flush left, the others right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
