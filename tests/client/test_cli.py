"""The `nacre` command by itself: what it knows, what it loads, how it ends. No cluster is needed."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nacrefs.client.cli import COMMANDS, PLUGINS, nacre
from nacrefs.client.cli.outcome import ExitCode, align, exit_code_of, words_of
from nacrefs.client.cli.servers import difference
from tests.harness.process import fail
from tests.harness.process import nacre as run

SUBCOMMANDS = {
    "dev": ("up", "down", "status"),
    "mds": ("format", "serve"),
    "oss": ("format", "serve"),
    "pool": ("list", "set", "rm"),
    "archive": ("add", "list", "show", "test", "rm", "catalogue", "import"),
    "link": ("create", "list", "show", "refresh", "flush", "pause", "resume", "log", "rm"),
    "warmup": ("start", "list", "status", "cancel"),
    "hsm": (
        "state", "action", "archive", "release", "restore", "remove", "cancel", "set", "clear", "queue",
    ),
    "lifecycle": (
        "explain", "get", "list", "pause", "put", "report", "resume", "rm", "run", "status", "stop",
    ),
    "key": ("list", "new", "limit", "rotate", "revoke", "prune", "extract"),
    "quota": ("set", "get", "list", "rm", "check", "project"),
    "mirror": ("status", "resync", "verify", "replace"),
    "scrub": ("start", "status", "pause", "stop", "files"),
}  # fmt: skip
EVERY: list[tuple[str, ...]] = [
    *[(name,) for name in sorted({*COMMANDS, *PLUGINS} - SUBCOMMANDS.keys())],
    *[(group, name) for group, names in SUBCOMMANDS.items() for name in names],
]


def test_help_names_every_command_and_exit_code() -> None:
    text = run("--help").stdout
    for name in (*COMMANDS, *PLUGINS):
        assert f"\n  {name} " in text
    for code in ExitCode:
        assert code == ExitCode.INTERRUPTED or f"\n    {int(code)}  " in text


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_each_command_explains_itself(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(nacre, [*words, "--help"])
    assert done.exit_code == 0, done.output
    assert "Exit codes:" in done.output
    if words[-1] not in ("serve", "completion", "run") and words != ("oss", "format"):
        assert "--json" in done.output
    assert len(done.output.split("\n\n")[1].strip()) > 10, "it says what it does"


def test_help_and_completion_load_nothing_that_is_not_needed() -> None:
    script = """
import sys
from nacrefs.client.cli import run
run(sys.argv[1:])
heavy = {"sqlalchemy", "asyncio", "aiohttp", "rich", "uvloop", "lmdb"} & set(sys.modules)
print("heavy", sorted(heavy), file=sys.stderr)
"""
    for words in (["--help"], ["df", "--help"], ["dev", "up", "--help"], ["completion", "bash"]):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
        assert done.stderr == "heavy []\n", words


def test_nothing_typed_shows_the_help() -> None:
    done = run()
    assert done.returncode == ExitCode.USAGE
    assert "Commands:" in done.stderr


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (("nonsense",), "nonsense"),
        (("df",), "MNT|URL"),
        (("df", "--colour", "x"), "--colour"),
        (("dev", "up"), "--dir"),
        (("dev", "up", "--dir", "x", "--osts", "0"), "--osts"),
        (("mount", "nfs-host:/x", "/mnt"), "tcp://"),
        (("mount", "tcp://host:port", "/mnt"), "host:port"),
        (("mount", "tcp://host:1", "/mnt", "-o", "fast"), "fast"),
        (("setstripe", "-S", "100", "x"), "65536"),
        (("setstripe", "-c", "-2", "x"), "-2"),
        (("setstripe", "-d", "-c", "2", "x"), "-d"),
        (("find", ".", "-type", "q"), "'q'"),
        (("find", ".", "-size", "1Q"), "1Q"),
        (("fid2path", "/", "nofid"), "nofid"),
        (("completion", "tcsh"), "tcsh"),
    ],
)
def test_wrong_usage_is_told_in_one_line(words: tuple[str, ...], about: str) -> None:
    assert about in fail(ExitCode.USAGE, *words)


@pytest.mark.parametrize("command", ["df", "status", "stats", "umount", "bench", "getstripe", "path2fid"])
def test_what_is_not_ours_is_not_found(command: str, tmp_path: Path) -> None:
    if command == "bench":
        assert "no-such" in fail(ExitCode.NOT_FOUND, command, tmp_path / "no-such")
    else:
        assert str(tmp_path) in fail(ExitCode.NOT_FOUND, command, tmp_path)


@pytest.mark.parametrize("command", ["df", "status", "stats"])
def test_server_that_is_not_there_cannot_be_reached(command: str, tmp_path: Path) -> None:
    run("mds", "format", "--database", tmp_path / "m.sqlite", "--keyring", tmp_path / "key", "--new-keyring")
    text = fail(ExitCode.UNREACHABLE, command, "tcp://127.0.0.1:1", "--keyring", tmp_path / "key")
    assert "tcp://127.0.0.1:1" in text


def test_missing_keyring_is_told_with_all_the_places(tmp_path: Path) -> None:
    done = run("df", "tcp://127.0.0.1:1", HOME=str(tmp_path), XDG_CONFIG_HOME="")
    if Path("/etc/nacre/keyring.toml").exists():
        pytest.skip("this machine has a keyring")
    assert done.returncode == ExitCode.USAGE
    assert str(tmp_path / ".config/nacre/keyring.toml") in done.stderr
    assert "/etc/nacre/keyring.toml" in done.stderr
    assert "NACRE_KEYRING" in done.stderr


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    assert "Traceback" in run("--debug", "df", tmp_path).stderr
    assert "Traceback" not in run("df", tmp_path).stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_printed(shell: str) -> None:
    done = CliRunner().invoke(nacre, ["completion", shell], prog_name="nacre")
    assert done.exit_code == 0
    assert "_NACRE_COMPLETE" in done.output


def test_completion_finds_commands_and_options() -> None:
    def complete(*words: str) -> list[str]:
        done = run(_NACRE_COMPLETE="bash_complete", COMP_WORDS=" ".join(words), COMP_CWORD=str(len(words) - 1))
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("nacre", "st") == ["stats", "status"]
    assert "--stripe-count" in complete("nacre", "setstripe", "--s")
    assert complete("nacre", "dev", "s") == ["status"]


def test_mds_format_makes_an_mdt_once(tmp_path: Path) -> None:
    words = ("mds", "format", "--database", f"sqlite:///{tmp_path}/mdt/m.sqlite", "--keyring", tmp_path / "key")
    assert "key" in fail(ExitCode.USAGE, *words)
    done = run(*words, "--new-keyring", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout).keys() == {"database", "mdt", "cluster"}
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert "already" in fail(ExitCode.BUSY, *words)


def test_serving_what_is_not_formatted_says_what_to_do(tmp_path: Path) -> None:
    run("mds", "format", "--database", tmp_path / "m.sqlite", "--keyring", tmp_path / "key", "--new-keyring")
    text = fail(
        ExitCode.NOT_FOUND, "mds", "serve", "--database", tmp_path / "other", "--keyring", tmp_path / "key",
        "--listen", "tcp://127.0.0.1:0", "--metrics", "",
    )  # fmt: skip
    assert "nacre mds format" in text


def test_wrong_configuration_names_file_key_and_reason(tmp_path: Path) -> None:
    config = tmp_path / "mds.toml"
    config.write_text("[cache]\nmemory_bytes = 12\n")
    text = fail(ExitCode.USAGE, "mds", "serve", "--config", config)
    assert str(config) in text
    assert "cache.memory_bytes" in text
    config.write_text("colour = 1\n")
    assert "colour" in fail(ExitCode.USAGE, "mds", "serve", "--config", config)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, 3), (errno.ENOTCONN, 3), (errno.ECONNREFUSED, 4), (errno.ETIMEDOUT, 4), (errno.EACCES, 5),
        (errno.EBUSY, 6), (errno.EEXIST, 6), (errno.EINVAL, 2), (errno.EIO, 1), (errno.ENOSPC, 1),
    ],
)  # fmt: skip
def test_errnos_have_their_exit_codes(number: int, code: int) -> None:
    assert exit_code_of(OSError(number, "text")) == code


def test_errors_say_what_they_are_about() -> None:
    assert words_of(OSError(errno.EIO, "broken", "/a/file")) == "/a/file: broken"
    assert words_of(OSError(errno.EIO, "broken", b"/a/file")) == "/a/file: broken"
    assert words_of(OSError(errno.EIO, "/a/file: broken", "/a/file")) == "/a/file: broken"
    assert words_of(OSError(errno.ENOENT, None)) == "No such file or directory"
    assert words_of(OSError("nothing but text")) == "nothing but text"


def test_tables_are_aligned() -> None:
    assert align([("a", "1"), ("bcd", "234")], 1) == ["a      1", "bcd  234"]


def test_statistics_between_two_reports() -> None:
    def report(uptime: float, count: int, mean: float, fuse: int) -> dict[str, object]:
        tally = {"count": count, "failed": 0, "mean_us": mean, "p50_us": 4.0, "p99_us": 8.0}
        return {
            "uptime_s": uptime, "cpu_s": uptime / 10, "rss_bytes": 1, "counters": {"x": count},
            "requests": {"Lookup": tally, "Idle": {**tally, "count": 1}}, "fuse": {"lookup": fuse},
        }  # fmt: skip

    fresh = difference(report(10, 100, 10.0, 7), report(12, 150, 20.0, 7))
    assert fresh["interval_s"] == 2
    assert fresh["cpu_s"] == 0.2
    assert fresh["requests"].keys() == {"Lookup"}
    assert fresh["requests"]["Lookup"]["count"] == 50
    assert fresh["requests"]["Lookup"]["mean_us"] == 40.0
    assert fresh["counters"] == {"x": 50}
    assert fresh["fuse"] == {}


def test_commands_are_what_the_table_says() -> None:
    context = click.Context(nacre)
    for name in COMMANDS:
        command = nacre.get_command(context, name)
        assert command is not None
        assert command.name == name
