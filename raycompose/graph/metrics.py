"""Metrics at Ray's own Prometheus endpoint, through ``ray.serve.metrics``."""

import functools
from typing import NamedTuple

from ray.serve import metrics

from raycompose import _serve

_LATENCIES_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000]
_TAGS = ("pipeline", "stage")


class _Metrics(NamedTuple):
    latency: metrics.Histogram
    errors: metrics.Counter
    shadow_dropped: metrics.Counter


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
        metrics.Counter(
            "raycompose_stage_errors",
            description="Calls of a stage that raised.",
            tag_keys=_TAGS,
        ),
        metrics.Counter(
            "raycompose_shadow_dropped",
            description="Mirrored calls that were dropped because max_in_flight were running.",
            tag_keys=_TAGS,
        ),
    )


def stage_called(pipeline: str, stage: str, took_s: float) -> None:
    """Record how long a call of a stage took."""
    found = _metrics()
    if found is not None:
        found.latency.observe(took_s * 1000, tags={"pipeline": pipeline, "stage": stage})


def stage_failed(pipeline: str, stage: str) -> None:
    """Count a call of a stage that raised."""
    found = _metrics()
    if found is not None:
        found.errors.inc(tags={"pipeline": pipeline, "stage": stage})


def shadow_dropped(pipeline: str, stage: str) -> None:
    """Count a mirrored call that was dropped."""
    found = _metrics()
    if found is not None:
        found.shadow_dropped.inc(tags={"pipeline": pipeline, "stage": stage})
