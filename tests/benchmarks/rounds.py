"""Ways of doing the same, measured in turn, round by round: machines are noisy."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.samples import Sample
from benchmarks.sites import Sites

Way = Callable[[], Sample]
Samples = list[Sample]


@dataclass
class Bench:
    """What a row measures with.

    Args:
        sites: Where the applications run.
        rounds: How often each way is measured.
        seconds: How long each time, where a rate is measured.
        announce: Shows what is measured now.
    """

    sites: Sites
    rounds: int = 5
    seconds: float = 1.5
    announce: Callable[[str], None] = field(default=lambda _: None)

    def alternate(
        self, ways: Mapping[str, Way], *, rounds: int | None = None, warm_up: bool = True
    ) -> dict[str, Samples]:
        """Measure every way once a round; a first round, which warms up, does not count.

        Every other round goes backwards, so that no way is always the first.

        Args:
            ways: What measures each, by its name.
            rounds: Rounds that count, rather than ``self.rounds``.
            warm_up: Whether there is such a first round.
        """
        rounds = self.rounds if rounds is None else rounds
        found: dict[str, Samples] = {way: [] for way in ways}
        for number in range(0 if warm_up else 1, rounds + 1):
            for way in list(ways) if number % 2 else list(ways)[::-1]:
                self.announce(f"round {number} of {rounds}: {way}" if number else f"{way} warms up")
                sample = ways[way]()
                if number:
                    found[way].append(sample)
        return found


def median(samples: Samples) -> float:
    """Return the median of the values."""
    return statistics.median(sample.value for sample in samples)


def rates(found: Mapping[str, Samples], *ways: str) -> str:
    """Return what each way does a second, and how many of its requests failed, for a note."""
    told = []
    for way in ways:
        failed = sum(sample.failed for sample in found[way])
        told.append(f"{way} {median(found[way]):.3g}/s" + f" ({failed} failed)" * bool(failed))
    return ", ".join(told)


def best(found: Mapping[str, Samples], *ways: str) -> str:
    """Return the way with the highest median, among those without a failed request if there are."""
    sound = [way for way in ways if not any(sample.failed for sample in found[way])]
    return max(sound or ways, key=lambda way: median(found[way]))
