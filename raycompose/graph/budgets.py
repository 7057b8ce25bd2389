"""How many extra calls a stage may make, so that trying again does not turn load into overload."""

import time
from collections import deque
from collections.abc import Callable

_WINDOW_S = 10


class Budget:
    """Counts the requests and the extra calls of the last ten seconds in this process.

    Args:
        share: Extra calls at most, as a share of the requests: 0.2 is one in five.
        min_per_s: Extra calls a second that are allowed whatever the requests: at low load a
            share of them would be none.
        clock: Gives the time in seconds.
    """

    def __init__(
        self, share: float, min_per_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._share = share
        self._min_per_s = min_per_s
        self._clock = clock
        self._seconds: deque[list[int]] = deque()  # [second, requests, extra calls]

    def request(self) -> None:
        """Count a request."""
        self._now()[1] += 1

    def spend(self) -> bool:
        """Count an extra call, if one more is allowed, and tell whether it is."""
        now = self._now()
        allowed = self._share * sum(second[1] for second in self._seconds)
        extra = sum(second[2] for second in self._seconds)
        is_low = allowed < self._min_per_s * _WINDOW_S
        if extra >= allowed and not (is_low and now[2] < self._min_per_s):
            return False
        now[2] += 1
        return True

    def _now(self) -> list[int]:
        second = int(self._clock())
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
            while self._seconds[0][0] <= second - _WINDOW_S:
                self._seconds.popleft()
        return self._seconds[-1]
