"""`nacre oss`: what a person sees."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nacrefs.common.auth import new_keyring, save_keyring
from nacrefs.oss.cli import command


@pytest.fixture
def keyring(tmp_path: Path) -> str:
    path = tmp_path / "keyring"
    save_keyring(path, new_keyring("c1"))
    return str(path)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, arguments)
    return result.exit_code, result.output


def test_format_says_what_it_made_and_refuses_to_do_it_twice(tmp_path: Path, keyring: str) -> None:
    ost = str(tmp_path / "ost")
    code, said = run("format", ost, "--keyring", keyring)
    assert (code, said.startswith(f"{ost}: OST ")) == (0, True)
    code, said = run("format", ost, "--keyring", keyring)
    assert code == 1
    assert said.startswith(f"nacre oss: {ost}: already an OST")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["format", "x"], "give one of --keyring and --cluster"),
        (["format", "x", "--cluster", "a b"], "cluster id 'a b'"),
        (["format", "x", "--keyring", "/nonexistent"], "keyring /nonexistent"),
        (["serve"], "osts is empty"),
        (["serve", "--ost", "x", "--mds", "mds-host"], "mds = 'mds-host' is not an address"),
        (["serve", "--config", "/nonexistent"], "/nonexistent"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_names_what_is_wrong(arguments: list[str], text: str) -> None:
    code, said = run(*arguments)
    assert code == 2
    assert text in said
    assert "Traceback" not in said


def test_config_file_is_strict(tmp_path: Path) -> None:
    config = tmp_path / "oss.toml"
    config.write_text("[ost]\nreserve = 5\n")
    code, said = run("serve", "--config", str(config))
    assert code == 2
    assert f"{config}: ost: " in said
    assert "reserve" in said


def test_what_cannot_be_served_is_exit_code_1_and_one_line(tmp_path: Path, keyring: str) -> None:
    common = ["--mds", "tcp://127.0.0.1:1", "--listen", "tcp://127.0.0.1:0", "--keyring", keyring]
    program = [sys.executable, "-c", "from nacrefs.oss.cli import command; command()", "serve", *common]
    result = subprocess.run([*program, "--ost", str(tmp_path / "x")], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"nacre oss: {tmp_path}/x: not an OST")
    assert "Traceback" not in result.stderr


def test_served_until_sigterm_and_stopped_cleanly(tmp_path: Path, keyring: str) -> None:
    ost = str(tmp_path / "ost")
    assert run("format", ost, "--keyring", keyring)[0] == 0
    program = [sys.executable, "-c", "from nacrefs.oss.cli import command; command()", "serve", "--ost", ost]
    options = ["--mds", "tcp://127.0.0.1:1", "--listen", "tcp://127.0.0.1:0", "--keyring", keyring]
    with subprocess.Popen([*program, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("serving 1 OSTs at tcp://127.0.0.1:")
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=20)
    assert server.returncode == 0, said
    assert "Traceback" not in said
