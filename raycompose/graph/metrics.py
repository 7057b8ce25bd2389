"""Metrics at Ray's own Prometheus endpoint, through ``ray.serve.metrics``.

A call of Ray's takes longer than a stage that has nothing to do, so calls are collected here, and
handed to Ray by a thread, some at a time. Ray itself exports its metrics every ten seconds.
"""

import asyncio
import functools
from collections import Counter

from ray.serve import metrics

from raycompose import _serve

_LATENCIES_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000]
_TAGS = ("pipeline", "stage")
_COUNTERS = {
    "stage_attempts": "Calls of a stage, those among them that were tried again.",
    "stage_errors": "Requests that failed because of a stage.",
    "shadow_dropped": "Mirrored calls that were dropped because max_in_flight were running.",
    "retries": "Calls of a stage that followed one that had failed.",
    "retries_denied": "Retries that were not made because the retry budget was spent.",
    "hedges": "Second calls of a stage whose first call was slow.",
    "optional_defaults": "Results that a default stood for.",
}


_HAND_OVER_S = 0.5
"""How long calls are collected."""


class _Metrics:
    """Ray's metrics of this replica, and the calls of stages that it does not know of yet."""

    def __init__(self) -> None:
        self._latency = metrics.Histogram(
            "raycompose_stage_latency_ms",
            description="Milliseconds from calling a stage to its result, or a stream's end.",
            boundaries=_LATENCIES_MS,
            tag_keys=_TAGS,
        )
        self.counters = {
            name: metrics.Counter(f"raycompose_{name}", description=description, tag_keys=_TAGS)
            for name, description in _COUNTERS.items()
        }
        self._calls: list[tuple[str, str, float]] = []

    def add(self, pipeline: str, stage: str, took_s: float) -> None:
        """Collect a call of a stage."""
        if not self._calls:
            asyncio.get_running_loop().call_later(_HAND_OVER_S, self._hand_over)
        self._calls.append((pipeline, stage, took_s))

    def _hand_over(self) -> None:
        calls, self._calls = self._calls, []
        try:
            asyncio.get_running_loop().run_in_executor(None, self._report, calls)
        except RuntimeError:  # this process is ending, and its threads are
            self._report(calls)

    def _report(self, calls: list[tuple[str, str, float]]) -> None:
        for pipeline, stage, took_s in calls:
            self._latency.observe(took_s * 1000, tags={"pipeline": pipeline, "stage": stage})
        for (pipeline, stage), number in Counter(call[:2] for call in calls).items():
            self.counters["stage_attempts"].inc(number, tags={"pipeline": pipeline, "stage": stage})


@functools.cache
def _metrics() -> _Metrics | None:
    """This replica's metrics; none outside of a replica, where nothing collects them."""
    return _Metrics() if _serve.in_replica() else None


def stage_called(pipeline: str, stage: str, took_s: float) -> None:
    """Record a call of a stage, and how long it took."""
    found = _metrics()
    if found is not None:
        found.add(pipeline, stage, took_s)


def count(counter: str, pipeline: str, stage: str) -> None:
    """Add one to a counter.

    Args:
        counter: Its name, without ``raycompose_``.
        pipeline: The name of the deployment that fronts the pipeline.
        stage: The stage's or the node's name.
    """
    found = _metrics()
    if found is not None:
        found.counters[counter].inc(tags={"pipeline": pipeline, "stage": stage})
