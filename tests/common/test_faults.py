"""Fault points: armed faults happen when they are due, and a test whose fault did not happen fails."""

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nacrefs.common import faults

SOURCES = [path for folder in ("common", "mds", "oss", "client") for path in Path(folder).rglob("*.py")]


@pytest.fixture(autouse=True)
def nothing_stays_armed() -> Iterator[None]:
    yield
    assert not faults.on


def points_in(path: Path) -> set[str]:
    """The points that a module passes."""
    return {
        node.args[0].value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "hit"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }


def test_every_named_point_is_passed_somewhere_and_every_passed_one_is_named() -> None:
    root = Path(__file__).parents[2]
    passed = set[str]().union(*(points_in(root / path) for path in SOURCES))
    assert passed == set(faults.POINTS)


def test_fault_happens_at_its_pass_for_its_subject_and_so_many_times() -> None:
    with faults.armed("rpc.reply.send", faults.drop, match="Write", after=1, times=2) as fault:
        seen = [faults.hit("rpc.reply.send", name) for name in ("Write", "Read", "Write", "Write", "Write")]
    assert seen == [faults.PASS, faults.PASS, faults.DROP, faults.DROP, faults.PASS]
    assert fault.fired == 2


def test_fault_that_did_not_happen_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="has not happened"):
        with faults.armed("rpc.reply.send", faults.drop, match="Write"):
            faults.hit("rpc.reply.send", "Read")


def test_error_within_is_not_hidden_by_a_fault_that_did_not_happen() -> None:
    with pytest.raises(ZeroDivisionError):
        with faults.armed("rpc.reply.send", faults.drop):
            raise ZeroDivisionError


def test_text_arms_faults_and_is_refused_where_it_is_wrong() -> None:
    one, two = faults.arm_from("mds.commit.before=fail after=1 times=3; rpc.frame.send=cut match=REPLY;")
    try:
        assert faults.hit("mds.commit.before") is faults.PASS
        with pytest.raises(OSError, match="injected"):
            faults.hit("mds.commit.before")
        assert faults.hit("rpc.frame.send", "REPLY") is faults.CUT
    finally:
        faults.disarm(one)
        faults.disarm(two)
    for wrong in ("mds.commit=kill", "mds.commit.before", "mds.commit.before=explode", "mds.commit.before=kill now=1"):
        with pytest.raises(ValueError, match="fault point|is not POINT=ACTION"):
            faults.arm_from(wrong)


def test_process_is_killed_as_its_environment_says() -> None:
    program = (
        "from nacrefs.common import faults\n"
        "for _ in range(3):\n"
        "    faults.hit('mds.commit.after')\n"
        "    print(1, flush=True)"
    )
    environment = os.environ | {"NACRE_FAULTS": "mds.commit.after=kill after=2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "1\n1\n"
    assert "faults are armed" in done.stderr
