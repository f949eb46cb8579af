"""Actions that wait: by kind, by who asked, by archive. Users take turns; of what one user wants the oldest that may
begin comes first."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final

from nacrefs.common.wire import HsmAction
from nacrefs.mds.hsm.queue import Action
from nacrefs.mds.hsm.rows import ActionRow

READER: Final = -1
"""The user of actions that somebody waits for who reads."""


class Waiting:
    """The queues."""

    def __init__(self) -> None:
        self._users: dict[int, dict[int, dict[int, list[Action]]]] = defaultdict(dict)
        """By kind, user and archive, oldest first; no list and no table of archives is empty."""
        self._turn: dict[int, int] = {}
        """Who was chosen last, by kind."""
        self.soonest_ns = 0
        """When the first of those may begin that `due` has found to be too early; 0: none was."""

    def add(self, action: Action) -> None:
        """It waits, behind the others."""
        row = action.row
        self._users[row.kind].setdefault(row.uid, {}).setdefault(row.archive, []).append(action)

    def remove(self, action: Action, row: ActionRow) -> bool:
        """Take an action out that waits with this row; whether it was there."""
        queue = self._users[row.kind].get(row.uid, {}).get(row.archive, [])
        if action not in queue:
            return False
        queue.remove(action)
        self._tidy(row.kind, row.uid, row.archive)
        return True

    def count(self, kind: int, archive: int) -> int:
        """How many actions of a kind wait for an archive."""
        return sum(len(archives.get(archive, ())) for archives in self._users[kind].values())

    def due(self, kind: int, now_ns: int, held: Callable[[int], bool]) -> Iterator[Action]:
        """Those that may begin, in turn; each is taken out. Nothing for an archive that is `held` when asked."""
        users = self._users[kind]
        passed: set[int] = set()
        while len(passed) < len(users):
            uid = self._next_user(kind, [uid for uid in users if uid not in passed])
            action = self._first_due(users[uid], now_ns, held)
            if action is None:
                passed.add(uid)
                continue
            self._tidy(kind, uid, action.row.archive)
            yield action

    def _first_due(self, archives: dict[int, list[Action]], now_ns: int, held: Callable[[int], bool]) -> Action | None:
        oldest: tuple[int, int, int] | None = None
        for archive, queue in archives.items():
            if held(archive):
                continue
            index = next((n for n, one in enumerate(queue) if one.row.not_before_ns <= now_ns), -1)
            if index < 0:
                first_ns = min(one.row.not_before_ns for one in queue)
                self.soonest_ns = min(self.soonest_ns, first_ns) if self.soonest_ns else first_ns
            elif oldest is None or queue[index].row.id < oldest[0]:
                oldest = queue[index].row.id, archive, index
        return None if oldest is None else archives[oldest[1]].pop(oldest[2])

    def _tidy(self, kind: int, uid: int, archive: int) -> None:
        archives = self._users[kind][uid]
        if not archives[archive]:
            del archives[archive]
            if not archives:
                del self._users[kind][uid]

    def _next_user(self, kind: int, users: list[int]) -> int:
        """Whose turn it is. Those who read come before those who have files brought for later."""
        if kind == HsmAction.RESTORE and READER in users:
            return READER
        last = self._turn.get(kind, -2)
        chosen = min((uid for uid in users if uid > last), default=min(users))
        self._turn[kind] = chosen
        return chosen
