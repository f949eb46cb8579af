"""A short soak (`make soak` is the long one): chaos on a few names while everything is killed, and all is whole."""

from pathlib import Path

import pytest

from tests.faults.crash import crash_rig
from tests.faults.soak import SOAK_TERM_S, Soak
from tests.harness.process import need_mounts

pytestmark = pytest.mark.slow


@pytest.mark.timeout(300)
def test_chaos_leaves_two_equal_mounts_and_nothing_for_fsck(tmp_path: Path) -> None:
    need_mounts()
    with crash_rig(tmp_path, 40, SOAK_TERM_S) as rig:
        soak = Soak(rig)
        soak.run(20)
    assert soak.wrong == []
    assert rig.report.kills, "nobody was killed: this shows nothing"
