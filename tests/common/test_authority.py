"""The table of who may ask what is complete, and contradicts itself nowhere."""

from typing import Any

import pytest

from nacrefs.common import authority, wire
from nacrefs.common.authority import OF_CLIENTS, Scope, may
from nacrefs.common.codec import request_types
from nacrefs.common.wire import Role
from nacrefs.mds.access.rules import CHANGES, NEEDS_NONE, RULES
from nacrefs.mds.service import ADDRESSED

FILES = {kind for kind, scope in OF_CLIENTS.items() if scope is Scope.FILES}


def test_every_request_about_files_has_its_rules() -> None:
    """A new request about files needs two lines in `mds/access/rules.py`: which permission it needs (`RULES`, or
    `NEEDS_NONE`), and whether it changes anything (`CHANGES`)."""
    assert {kind.__name__ for kind in FILES} == {kind.__name__ for kind in NEEDS_NONE.union(RULES)}
    assert not NEEDS_NONE & RULES.keys()
    assert {kind.__name__ for kind in FILES} == {kind.__name__ for kind in CHANGES}
    assert set(ADDRESSED) >= FILES


@pytest.mark.parametrize("kind", request_types(), ids=lambda kind: kind.__name__)
def test_whoever_may_more_may_all_that_others_may(kind: type[wire.Request[Any]]) -> None:
    answers = [may(role, kind) for role in (Role.CLIENT, Role.ADMIN, Role.SERVER)]
    assert answers == sorted(answers)
    assert answers[-1]


def test_what_is_not_listed_is_refused_to_everybody() -> None:
    class Unlisted(wire.Message, frozen=True, array_like=True):
        """A message that no table knows."""

    kind: Any = Unlisted
    assert not any(may(role, kind) for role in Role)
    assert authority.allowed({}, Role.SERVER) == {}
