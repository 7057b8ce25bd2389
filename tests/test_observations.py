"""What is counted and timed: once, of the stage that took the time."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined, untyped-decorator, no-untyped-call"

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray import serve
from support import pickle_by_value
from support.waiting import until

import raycompose as rc

pickle_by_value(__name__)


# Truth in numbers


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What is observed and counted, by stage."""
    from raycompose.graph import metrics

    seen: dict[str, list[Any]] = {"called": [], "failed": []}
    monkeypatch.setattr(
        metrics, "stage_called", lambda _, stage, took_s: seen["called"].append((stage, took_s))
    )
    monkeypatch.setattr(metrics, "count", lambda _, __, stage: seen["failed"].append(stage))
    return seen


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Producer:
    async def __call__(self, x: int) -> int:
        await asyncio.sleep(0.3)
        if x < 0:
            raise ValueError("negative")
        return x


async def _awaits(ref: rc.Ref[int]) -> int:
    return await ref


def test_a_producer_by_reference_is_timed_until_it_ends(recorded: dict[str, list[Any]]) -> None:
    """Its time is its own, and its failure is counted on it rather than on its consumer."""
    client = rc.local(rc.pipeline(Producer.bind(), _awaits))
    assert client.call(1) == 1
    until(lambda: len(recorded["called"]) == 2)
    assert {stage: took_s >= 0.25 for stage, took_s in recorded["called"]} == {
        "Producer": True,
        "_awaits": True,
    }
    with pytest.raises(ValueError, match="negative"):
        client.call(-1)
    assert recorded["failed"] == ["Producer"]


def test_a_stream_is_observed_once(recorded: dict[str, list[Any]]) -> None:
    """From its first item to its last, as one call of the stage."""

    async def source(n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0.02)
            yield i

    assert list(rc.local(rc.stage(source)).stream(5)) == [0, 1, 2, 3, 4]
    ((stage, took_s),) = recorded["called"]
    assert stage == "source"
    assert took_s > 0.08
