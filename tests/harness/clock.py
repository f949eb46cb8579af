"""A clock that tests set, for what does not depend on how long the machine takes."""

import time


class SettableClock:
    """Time passes as it does; what the clock shows can be set, and more time can pass at once."""

    def __init__(self) -> None:
        self.ahead_ns = 0
        """how much more the clock shows"""
        self.ahead_s = 0.0
        """how much more time has passed"""

    def now_ns(self) -> int:
        return time.time_ns() + self.ahead_ns

    def monotonic_s(self) -> float:
        return time.monotonic() + self.ahead_s
