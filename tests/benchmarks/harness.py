"""What the benchmarks share: one cluster, ways taken in turn, one table.

Machines are noisy, so every figure is a ratio of two ways measured in the same run, round by
round in turn; medians are compared.
"""

import json
import logging
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve

import raycompose as rc

HERE: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": 100}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        number: The row of the table of targets that it answers, if there is one.
        what: What is measured, with its unit.
        ours: The median.
        theirs: The median of the best that is written by hand today.
        target: What ``ours / theirs`` is to reach, or not to pass where less is better.
        less_is_better: Whether it is a time or a size rather than a rate.
        notes: What else was measured.
    """

    number: str
    what: str
    ours: float
    theirs: float
    target: float
    less_is_better: bool = False
    notes: str = ""

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return self.ours / self.theirs

    @property
    def met(self) -> bool:
        """Whether the ratio reaches the target."""
        return self.ratio <= self.target if self.less_is_better else self.ratio >= self.target

    def __str__(self) -> str:
        target = f"{'<=' if self.less_is_better else '>='} {self.target:g} x"
        notes = f" ({self.notes})" if self.notes else ""
        return (
            f"| {self.number} | {self.what}{notes} | {self.ours:.4g} | {self.theirs:.4g} "
            f"| {self.ratio:.2f} x | {target} | {'met' if self.met else 'NOT met'} |"
        )


async def in_turn(
    ways: Mapping[str, Callable[[], Awaitable[float]]], rounds: int
) -> dict[str, float]:
    """Measure every way once per round, after one round that does not count; give the medians."""
    measured: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, measure in ways.items():
            measured[way].append(await measure())
    return {way: statistics.median(values[1:]) for way, values in measured.items()}


@contextmanager
def deployed(
    module: str, apps: Mapping[str, serve.Application], **ray_options: Any
) -> Iterator[dict[str, rc.Client]]:
    """Run applications on a cluster of their own, without HTTP; give a client of each.

    Args:
        module: The name of the module that defines their deployments.
        apps: The applications, by what they are called in the benchmark.
        ray_options: For ``ray.init``.
    """
    ray.cloudpickle.register_pickle_by_value(sys.modules[module])  # replicas cannot import it
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        **ray_options,
    )
    try:
        serve.start(proxy_location="Disabled")
        yield {
            way: rc.run(app, name=f"app{n}", route_prefix=None)
            for n, (way, app) in enumerate(apps.items())
        }
    finally:
        serve.shutdown()
        ray.shutdown()


def report(rows: list[Row], path: Path) -> None:
    """Print the table and write it as JSON."""
    heads = "# | what | ours | theirs | ratio | target | "
    print(f"| {heads} |", "| --- " * 7 + "|", *rows, sep="\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [{**asdict(row), "ratio": row.ratio, "met": row.met} for row in rows]
    path.write_text(json.dumps(found, indent=2))
