"""mount.nacre: util-linux's arguments in, `nacre mount` out, mount(8)'s exit codes back."""

import sys
from pathlib import Path

import pytest

from nacrefs.client.mount_helper import FAILED, OK, SYSTEM, USAGE, Arguments, parse, run

URL = "tcp://host:7000/sub"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([URL, "/mnt"], Arguments(URL, "/mnt", ())),
        ([URL, "/mnt", "-o", "rw,noatime"], Arguments(URL, "/mnt", ("noatime",))),
        ([URL, "/mnt", "-sn", "-o", "ro,key=a"], Arguments(URL, "/mnt", ("ro", "key=a"))),
        (["-o", "noauto,user,x-systemd.automount,_netdev,ro", URL, "/mnt"], Arguments(URL, "/mnt", ("ro",))),
        ([URL, "/mnt", "-fv"], Arguments(URL, "/mnt", (), True, True)),
        ([URL, "/mnt", "-oro", "-t", "nacre"], Arguments(URL, "/mnt", ("ro",))),
    ],
)
def test_arguments_of_mount_are_understood(argv: list[str], expected: Arguments) -> None:
    assert parse(argv) == expected


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "usage"),
        ([URL], "usage"),
        ([URL, "/mnt", "more"], "usage"),
        ([URL, "/mnt", "-o"], "-o needs a value"),
        ([URL, "/mnt", "-q"], "-q"),
        ([URL, "/mnt", "-o", "remount,ro"], "remounting"),
    ],
)
def test_bad_usage_is_explained(argv: list[str], text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == USAGE
    assert text in capfd.readouterr().err


@pytest.fixture
def recorder(tmp_path: Path) -> tuple[list[str], Path]:
    """A stand-in for `nacre mount` that writes down its arguments and fails for the directory `/bad`."""
    script, record = tmp_path / "nacre.py", tmp_path / "record"
    script.write_text(
        f"import sys; open({str(record)!r}, 'w').write('|'.join(sys.argv[1:])); sys.exit('/bad' in sys.argv)"
    )
    return [sys.executable, str(script), "mount"], record


def test_nacre_mount_is_run_with_what_concerns_it(recorder: tuple[list[str], Path]) -> None:
    command, record = recorder
    assert run([URL, "/mnt", "-o", "defaults,_netdev,ro,noatime"], command) == OK
    assert record.read_text() == f"mount|{URL}|/mnt|-o|ro,noatime"


def test_failures_have_the_exit_codes_of_mount(recorder: tuple[list[str], Path]) -> None:
    command, record = recorder
    assert run([URL, "/bad"], command) == FAILED
    assert run([URL, "/mnt"], ["/does/not/exist"]) == SYSTEM
    record.unlink()
    assert run([URL, "/mnt", "-f"], command) == OK
    assert not record.exists()
