"""`nacre oss`: what a person sees."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nacrefs.client.cli import run as nacre
from nacrefs.common.auth import new_keyring, save_keyring

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def keyring(tmp_path: Path) -> str:
    path = tmp_path / "keyring"
    save_keyring(path, new_keyring("c1"))
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`nacre oss …`: its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        code = nacre(["oss", *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_format_says_what_it_made_and_refuses_to_do_it_twice(tmp_path: Path, keyring: str, run: Run) -> None:
    ost = str(tmp_path / "ost")
    code, said = run("format", ost, "--keyring", keyring)
    assert (code, said.startswith(f"{ost}: OST ")) == (0, True)
    code, said = run("format", ost, "--keyring", keyring)
    assert code == 6
    assert said.startswith(f"nacre: {ost}: already an OST")
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
def test_wrong_usage_is_exit_code_2_and_names_what_is_wrong(arguments: list[str], text: str, run: Run) -> None:
    code, said = run(*arguments)
    assert code == 2
    assert text in said
    assert "Traceback" not in said


def test_config_file_is_strict(tmp_path: Path, run: Run) -> None:
    config = tmp_path / "oss.toml"
    config.write_text("[ost]\nreserve = 5\n")
    code, said = run("serve", "--config", str(config))
    assert code == 2
    assert f"{config}: ost: " in said
    assert "reserve" in said


def test_what_cannot_be_served_is_one_line_with_an_exit_code_of_its_own(tmp_path: Path, keyring: str) -> None:
    common = ["--mds", "tcp://127.0.0.1:1", "--listen", "tcp://127.0.0.1:0", "--keyring", keyring]
    program = [sys.executable, "-m", "nacrefs.client.cli", "oss", "serve", "--ost", str(tmp_path / "x"), *common]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.returncode == 3
    assert result.stderr.startswith(f"nacre: {tmp_path}/x: not an OST")
    assert result.stderr.count("\n") == 1


def test_served_until_sigterm_and_stopped_cleanly(tmp_path: Path, keyring: str) -> None:
    ost = str(tmp_path / "ost")
    program = [sys.executable, "-m", "nacrefs.client.cli", "oss", "serve", "--format", "--ost", ost]
    options = ["--mds", "tcp://127.0.0.1:1", "--listen", "tcp://127.0.0.1:0", "--keyring", keyring]
    with subprocess.Popen([*program, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("serving 1 OSTs at tcp://127.0.0.1:")
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=20)
    assert server.returncode == 0, said
    assert "Traceback" not in said
