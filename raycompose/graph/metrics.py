"""Metrics at Ray's own Prometheus endpoint, through ``ray.serve.metrics``."""

import functools
from typing import NamedTuple

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


class _Metrics(NamedTuple):
    latency: metrics.Histogram
    counters: dict[str, metrics.Counter]


@functools.cache
def _metrics() -> _Metrics | None:
    """This replica's metrics; none outside of a replica, where nothing collects them."""
    if not _serve.in_replica():
        return None
    return _Metrics(
        metrics.Histogram(
            "raycompose_stage_latency_ms",
            description="Milliseconds from calling a stage to its result, or a stream's end.",
            boundaries=_LATENCIES_MS,
            tag_keys=_TAGS,
        ),
        {
            name: metrics.Counter(f"raycompose_{name}", description=description, tag_keys=_TAGS)
            for name, description in _COUNTERS.items()
        },
    )


def stage_called(pipeline: str, stage: str, took_s: float) -> None:
    """Record a call of a stage, and how long it took."""
    found = _metrics()
    if found is not None:
        tags = {"pipeline": pipeline, "stage": stage}
        found.latency.observe(took_s * 1000, tags=tags)
        found.counters["stage_attempts"].inc(tags=tags)


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
