"""`nacre mpi-env` and `nacre run`: programs with the native library, which takes their bytes straight to the OSTs."""

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from nacrefs.client.cli.outcome import EXIT_CODES, json_option, print_json

LIBRARY = "libnacre_io.so"


def library_path() -> Path:
    """The native library, as it was installed or as `make native` has built it; OSError (ENOENT) that says how to get
    it."""
    chosen = os.environ.get("NACRE_IO_LIBRARY")
    package = Path(__file__).resolve().parents[1] / "native"
    places = [Path(chosen)] if chosen else [package / LIBRARY, package.parents[1] / "build" / "native" / LIBRARY]
    for place in places:
        if place.is_file():
            return place
    raise OSError(
        errno.ENOENT,
        "the native library is not there: install a C compiler and xxhash.h (apt-get install gcc make libxxhash-dev), "
        "then `make native` in the checkout or `pip install` again",
        str(places[0]),
    )


def environment(library: Path, before: Mapping[str, str]) -> dict[str, str]:
    """What a program needs in its environment."""
    others = [word for word in before.get("LD_PRELOAD", "").replace(":", " ").split() if Path(word).name != LIBRARY]
    return {"LD_PRELOAD": ":".join([str(library), *others])}


def with_library(words: Sequence[str], library: Path) -> list[str]:
    """A command line that hands the library to its ranks. mpirun of MPICH and Slurm's srun pass the environment on;
    Open MPI's wants to be told, and both kinds are called mpirun."""
    if Path(words[0]).name in ("mpirun", "mpiexec", "mpirun.openmpi", "mpiexec.openmpi") and _is_open_mpi(words[0]):
        return [words[0], "-x", f"LD_PRELOAD={library}", *words[1:]]
    return list(words)


def _is_open_mpi(command: str) -> bool:
    import subprocess

    try:
        done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return False
    return "Open MPI" in done.stdout or "open-mpi" in done.stdout or "PRTE" in done.stdout


@click.command("mpi-env", epilog=EXIT_CODES)
@json_option
def mpi_env_command(as_json: bool) -> None:
    """Print what to put before a program, or into a job script, so that it does its own I/O: LD_PRELOAD=…

    With Open MPI: mpirun -x "$(nacre mpi-env)" …; with MPICH: env "$(nacre mpi-env)" mpirun …
    """
    library = library_path()
    found = environment(library, os.environ)
    if as_json:
        print_json({"library": str(library), "environment": found})
        return
    for name, value in found.items():
        click.echo(f"{name}={value}")


@click.command("run", epilog=EXIT_CODES, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARGUMENT…]")
def run_command(words: tuple[str, ...]) -> None:
    """Run a command, and all that it starts, with the native library: nacre run -- mpirun -n 4 ./program

    It takes the place of this process, so its exit code is the command's.
    """
    library = library_path()
    command = with_library(words, library)
    try:
        os.execvpe(command[0], command, {**os.environ, **environment(library, os.environ)})
    except OSError as error:
        raise OSError(error.errno, error.strerror, command[0]) from None
