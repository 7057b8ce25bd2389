"""Metrics at Ray's own Prometheus endpoint, through ``ray.serve.metrics``."""

import functools

from ray.serve import metrics


@functools.cache
def _shadow_dropped() -> metrics.Counter:
    return metrics.Counter(
        "raycompose_shadow_dropped",
        description="Mirrored calls that were dropped because max_in_flight were running.",
        tag_keys=("pipeline", "stage"),
    )


def shadow_dropped(pipeline: str, stage: str) -> None:
    """Count a mirrored call that was dropped."""
    _shadow_dropped().inc(tags={"pipeline": pipeline, "stage": stage})
