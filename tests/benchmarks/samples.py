"""What one measurement found. Needs no Ray: every process of the benchmarks imports it."""

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One measurement of one way.

    Args:
        value: In the unit of its line.
        failed: Requests without the right answer.
        details: What else is worth keeping, for the JSON file.
    """

    value: float
    failed: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it for the JSON file, or for another process."""
        return dataclasses.asdict(self)


class Tally:
    """Counts the requests of a load, and how long each took."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._took_s: list[float] = []
        self._failures: Counter[str] = Counter()

    def succeeded(self, took_s: float) -> None:
        """Count a right answer."""
        self._took_s.append(took_s)

    def failed(self, why: str) -> None:
        """Count a request that has no right answer."""
        self._failures[why[:300]] += 1

    def sample(self) -> Sample:
        """Return the right answers per second since the tally was made."""
        elapsed_s = time.perf_counter() - self._began
        found: dict[str, Any] = {"requests": len(self._took_s)}
        if ordered := sorted(self._took_s):
            found["p50_ms"] = 1000 * ordered[len(ordered) // 2]
            found["p99_ms"] = 1000 * ordered[len(ordered) * 99 // 100]
        if self._failures:
            found["failures"] = dict(self._failures.most_common(3))
        return Sample(len(self._took_s) / elapsed_s, self._failures.total(), found)
