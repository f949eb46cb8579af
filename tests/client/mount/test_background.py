"""Work in a process of its own: it is ready, or its parent hears why not."""

import errno
import os
import signal
from pathlib import Path

import pytest

from nacrefs.client.mount.background import Ready, detach
from nacrefs.common.config import ConfigError


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_parent_goes_on_once_the_work_is_ready(log: Path, tmp_path: Path) -> None:
    released, holding = os.pipe()

    def work(ready: Ready) -> None:
        os.close(holding)
        (tmp_path / "session").write_text(f"{os.getsid(0)} {os.getcwd()}")
        ready()
        os.read(released, 1)  # until the test lets go
        print("the last word")  # noqa: T201

    pid = detach(work, "the work", str(log))
    assert (tmp_path / "session").read_text() == f"{pid} /"
    os.close(holding)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(released)
    assert log.read_text() == "the last word\n"


def test_error_of_the_work_is_raised_here(log: Path) -> None:
    def fail(ready: Ready) -> None:
        raise OSError(errno.EBUSY, "taken", "/mnt/x")

    with pytest.raises(OSError, match="taken") as caught:
        detach(fail, "the work", str(log))
    assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, "/mnt/x")


def test_wrong_configuration_is_raised_here(log: Path) -> None:
    def fail(ready: Ready) -> None:
        raise ConfigError("file: key: reason")

    with pytest.raises(ConfigError, match="file: key: reason"):
        detach(fail, "the work", str(log))


def test_defect_is_told_and_logged(log: Path) -> None:
    def fail(ready: Ready) -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(OSError, match="ZeroDivisionError: by zero"):
        detach(fail, "the work", str(log))
    assert "Traceback" in log.read_text()


def test_sudden_death_is_told_with_the_log(log: Path) -> None:
    with pytest.raises(OSError, match=r"the work died \(signal SIGKILL\)") as caught:
        detach(lambda ready: os.kill(os.getpid(), signal.SIGKILL), "the work", str(log))
    assert str(log) in str(caught.value)
