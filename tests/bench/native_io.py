"""The native library against the FUSE mount and a local disk, with an IOR-like program (`ior.c`).

    python3 tests/bench/native_io.py [--only TEXT] [--json FILE]

Starts a cluster of its own with two mounts. Figures are the best of three runs; ratios, to the mount, are what counts.
"buffer" is the library with `NACRE_IO_BUFFER`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from tests.harness.process import process_cluster, succeed
from tests.mpi.native import ROOT, build_library

CASES: Final = {
    "easy, 1 MiB": ("easy", 1 << 20, 64, False),
    "hard, 1 MiB, two mounts": ("hard", 1 << 20, 64, True),
    "hard, 47,008 bytes, two mounts": ("hard", 47_008, 500, True),
    "hard, 4 KiB, two mounts": ("hard", 4096, 1500, True),
    "random, 4 KiB, two mounts": ("random", 4096, 1500, True),
    "random, 4 KiB, one mount": ("random", 4096, 1500, False),
    "random, 4 KiB, beyond the buffer": ("random", 4096, 4000, True),
    "easy, 4 KiB": ("easy", 4096, 3000, False),
}
PROCESSES: Final = 2
RUNS: Final = 3
BUFFER: Final = "16M"
KINDS: Final = ("local", "mount", "library", "buffer")


def measure(
    program: Path, directories: list[Path], case: tuple[str, int, int, bool], settings: dict[str, str]
) -> dict[str, Any]:
    """One run: what each phase has reached."""
    mode, size, count, _ = case
    environment = {**os.environ, **settings}
    words = [str(program), ":".join(map(str, directories)), mode, str(PROCESSES), str(size), str(count)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return {line["phase"]: line for line in map(json.loads, done.stdout.splitlines())}


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each phase, the fastest run."""
    return {phase: max((run[phase] for run in runs), key=lambda line: line["ops_per_s"]) for phase in runs[0]}


def main() -> None:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
    parser.add_argument("--only", metavar="TEXT", default="", help="cases whose name has this in it")
    options = parser.parse_args()
    cases = {name: case for name, case in CASES.items() if options.only in name}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="nacre-io-") as scratch:
        base = Path(scratch)
        library, program = build_library(base / "library"), base / "ior"
        subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", "-o", program, ROOT / "tests" / "bench" / "ior.c"], check=True)
        with process_cluster(base) as cluster:
            second = base / "mnt2"
            second.mkdir()
            succeed("mount", cluster.url, second, "--keyring", cluster.keyring)
            try:
                for number, (name, case) in enumerate(cases.items()):
                    found[name] = compare(base, cluster.mount, second, program, str(library), number, case)
                    show(name, found[name])
            finally:
                succeed("umount", second)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


def compare(
    base: Path, mount: Path, second: Path, program: Path, library: str, number: int, case: tuple[str, int, int, bool]
) -> dict[str, Any]:
    """One case on a local disk, through the mount, and with the library."""
    results: dict[str, Any] = {}
    preloaded = {"LD_PRELOAD": library, "NACRE_IO": "all"}
    settings = {"library": preloaded, "buffer": {**preloaded, "NACRE_IO_BUFFER": BUFFER}}
    for kind in KINDS:
        root = base / "local" if kind == "local" else mount
        runs: list[dict[str, Any]] = []
        for turn in range(RUNS):
            folder = root / f"{kind}-{number}-{turn}"
            folder.mkdir(parents=True)
            directories = [folder]
            if kind != "local":
                os.setxattr(folder, "nacre.layout", b"stripe_count=4 stripe_size=1M")
                directories += [second / folder.name] if case[3] else []
            runs.append(measure(program, directories, case, settings.get(kind, {})))
            for file in folder.iterdir():
                file.unlink()
        results[kind] = best(runs)
    return results


def told(figures: dict[str, Any]) -> str:
    """MiB and transfers per second."""
    return f"{figures['mib_per_s']:7.1f} ({figures['ops_per_s']:6.0f}/s)"


def show(name: str, results: dict[str, Any]) -> None:
    """One line per phase."""
    for phase in ("write", "read"):
        local, mount = results["local"][phase], results["mount"][phase]
        line = f"{name:32} {phase:5} local {local['mib_per_s']:7.1f}  mount {told(mount)}"
        for kind in KINDS[2:]:
            ours = results[kind][phase]
            ratio = ours["ops_per_s"] / mount["ops_per_s"]
            line += f"  {kind} {told(ours)} {ratio:4.2f} x {ours['cpu_us_per_op']:5.1f} us"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
