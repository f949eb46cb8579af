"""`nacre key` as administrators use it; no output of it has a secret in it."""

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nacrefs.client.cli import nacre
from nacrefs.client.cli.outcome import ExitCode
from nacrefs.common.auth import (
    Keyring,
    changing_keyring,
    load_keyring,
    new_keyring,
    replace_keyring,
    save_keyring,
)
from nacrefs.common.export import Export
from nacrefs.common.keyedit import with_new_key
from tests.harness.process import NACRE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_keyring(tmp_path / "keyring", new_keyring("c1"))
    return tmp_path / "keyring"


def run(path: Path, *words: str, code: int = 0) -> str:
    """What a command says; no secret of the keyring, before or after, may be in it."""
    secrets = [key.secret for key in load_keyring(path).keys.values()]
    done = CliRunner().invoke(nacre, ["key", *words, "--keyring", str(path)], standalone_mode=False)
    secrets += [key.secret for key in load_keyring(path).keys.values()]
    text = f"{done.output}{done.exception!r}"
    assert not any(secret in text for secret in secrets)
    if code:
        assert done.exception is not None
        return str(done.exception)
    assert done.exception is None, done.exception
    return done.output


def run_json(path: Path, *words: str) -> Any:
    return json.loads(run(path, *words, "--json"))


def keys(path: Path) -> Keyring:
    return load_keyring(path)


def test_a_key_is_made_limited_shown_and_handed_out(path: Path, tmp_path: Path) -> None:
    run(path, "new", "lab", "--path", "/proj/lab", "--squash", "root", "--uids", "1000-1999", "--valid-for", "30d")
    assert keys(path).keys["lab"].export.uids == ("1000-1999",)
    shown = run(path, "list")
    assert ["lab", "client", "lab", "good"] in [line.split()[:4] for line in shown.splitlines()]
    assert "/proj/lab, root squashed to 65534:65534, uids 1000-1999, checked" in shown
    listed = {row["name"]: row for row in run_json(path, "list")["keys"]}
    assert listed["lab"]["export"]["path"] == "/proj/lab"
    assert set(listed) == {"server", "client", "admin", "lab"}
    run(path, "limit", "lab", "--read-only")
    assert keys(path).keys["lab"].export.read_only
    assert keys(path).keys["lab"].export.path == "/"
    run(path, "extract", "lab", "-o", str(tmp_path / "lab.toml"))
    given = load_keyring(tmp_path / "lab.toml")
    assert list(given.keys) == ["lab"]
    assert not given.keys["lab"].export.limits
    assert "File exists" in run(path, "extract", "lab", "-o", str(tmp_path / "lab.toml"), code=ExitCode.BUSY)


def test_a_key_is_rotated_and_the_old_one_goes(path: Path) -> None:
    (fresh,) = run_json(path, "rotate", "client", "--overlap", "0s")["keys"]
    assert (fresh["name"], fresh["principal"], fresh["role"]) == ("client.2", "client", "client")
    states = {row["name"]: row["state"] for row in run_json(path, "list")["keys"]}
    assert (states["client"], states["client.2"]) == ("over", "good")
    run(path, "prune")
    assert set(keys(path).keys) == {"server", "admin", "client.2"}
    (server,) = run_json(path, "rotate", "server")["keys"]
    assert server["state"] == "not yet good"
    run(path, "revoke", "client.2", "server")
    assert set(keys(path).keys) == {"admin", "server.2"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("new", "client"), "there is a key 'client' already"),
        (("new", "a/b"), "cannot be a key's name"),
        (("new", "x", "--role", "admin", "--read-only"), "only a client's key can be limited"),
        (("new", "x", "--uids", "me"), "neither an id nor a range"),
        (("new", "x", "--path", "proj"), "is not an absolute path"),
        (("new", "x", "--valid-for", "soon"), "is not a duration"),
        (("limit", "server", "--read-only"), "only a client's key can be limited"),
        (("rotate", "nobody"), "there is no key 'nobody'"),
        (("revoke", "nobody"), "there is no key 'nobody'"),
        (("revoke", "server"), "it is the last server's key"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(path: Path, words: tuple[str, ...], complaint: str) -> None:
    before = path.read_bytes()
    assert complaint in run(path, *words, code=1)
    assert path.read_bytes() == before


KILLED: dict[str, tuple[str, ...]] = {
    "new": ("new", "lab"), "rotate": ("rotate", "client"), "revoke": ("revoke", "client"),
    "limit": ("limit", "client", "--read-only"),
}  # fmt: skip


@pytest.mark.parametrize("point", ["keyring.replace.before", "keyring.replace.after"])
@pytest.mark.parametrize(
    "what", [pytest.param(name, marks=pytest.mark.slow) if name != "rotate" else name for name in KILLED]
)
def test_a_change_that_a_kill_interrupts_has_happened_or_not(path: Path, what: str, point: str) -> None:
    """Asked for again it happens if it had not; if it had, the command says so, or does no harm."""
    before = keys(path)
    done = subprocess.run(
        [NACRE, "key", *KILLED[what], "--keyring", str(path)],
        env={**os.environ, "NACRE_FAULTS": f"{point}=kill"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    killed = keys(path)
    happened = point.endswith("after")
    assert (killed != before) == happened
    again = CliRunner().invoke(nacre, ["key", *KILLED[what], "--keyring", str(path)], standalone_mode=False)
    now = keys(path)
    if happened and what in ("new", "revoke"):
        assert again.exception is not None
    else:
        assert again.exception is None
    if what == "rotate":  # a third key: which one was shown to somebody is what counts
        assert set(now.keys) - set(before.keys) == {"client.2", "client.3"} if happened else {"client.2"}
    elif happened:
        assert now == killed
    else:
        assert now != before
    assert os.listdir(path.parent) == [path.name], "a kill leaves no secrets beside it"


def test_two_who_change_a_keyring_at_once_do_not_undo_each_other(path: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        with changing_keyring(path) as ring:
            other = executor.submit(run, path, "new", "theirs")
            inode = f":{path.parent.stat().st_ino} "
            while not other.done() and not any(
                "->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()
            ):
                time.sleep(0.001)
            assert not other.done(), "it waits"
            replace_keyring(path, with_new_key(ring, "ours", "client", Export()))
        other.result()
    assert {"ours", "theirs"} <= keys(path).keys.keys()
