"""`nacre mount` and `nacre umount`."""

import os
from collections.abc import Sequence

import click

from nacrefs.client.cli.outcome import EXIT_CODES, json_option, print_json

_OPTION_HELP = "Options as in fstab, separated by commas; repeatable. `nacre mount --help` ends with a list."


def _options_text() -> str:
    from nacrefs.client.mount.spec import KERNEL_OPTIONS, OPTIONS

    ours = "\n".join(f"  {name:<10}{text}" for name, text in OPTIONS.items())
    kernel = "\n  ".join((" ".join(KERNEL_OPTIONS[:10]), " ".join(KERNEL_OPTIONS[10:])))
    return f"\b\nOptions of -o:\n{ours}\n  {kernel}"


@click.command("mount", epilog=f"{_options_text()}\n\n{EXIT_CODES}")
@click.argument("url")
@click.argument("directory")
@click.option("-o", "--options", "options", multiple=True, metavar="OPT,…", help=_OPTION_HELP)
@click.option("--keyring", metavar="FILE", help="The cluster's client key (also NACRE_KEYRING).")
@click.option("-f", "--foreground", is_flag=True, help="Serve until unmounted instead of returning once it is mounted.")
@json_option
def mount_command(
    url: str, directory: str, options: Sequence[str], keyring: str | None, foreground: bool, as_json: bool
) -> None:
    """Mount the filesystem at URL, tcp://HOST:PORT[,tcp://HOST:PORT…][/SUBTREE], on DIRECTORY.

    Returns when the mount can be used. A mount there whose daemon has died is replaced.
    """
    from nacrefs.client.mount import spec as mountspec

    spec = mountspec.make_spec(url, directory, options, keyring)
    if foreground:
        from nacrefs.client.mount import daemon as mount

        mount.run(spec, lambda: _mounted(spec.source, spec.directory, os.getpid(), as_json))
        return
    from nacrefs.client.mount.helper import mount_in_background

    pid = mount_in_background(spec)
    if as_json:
        _mounted(spec.source, spec.directory, pid, as_json)


def _mounted(source: str, directory: str, pid: int, as_json: bool) -> None:
    if as_json:
        print_json({"source": source, "directory": directory, "pid": pid})


@click.command("umount", epilog=EXIT_CODES)
@click.argument("directories", nargs=-1, required=True, metavar="DIRECTORY…")
@click.option("-l", "--lazy", is_flag=True, help="Take it away even if it is in use, and do not wait for its end.")
@json_option
def umount_command(directories: Sequence[str], lazy: bool, as_json: bool) -> None:
    """Unmount each DIRECTORY. Returns when everything that was written there has been stored."""
    from nacrefs.client.mount import daemon as mount

    for directory in directories:
        mount.unmount(directory, lazy=lazy)
    if as_json:
        print_json({"unmounted": [os.path.realpath(directory) for directory in directories]})
