"""Shadows: mirrored calls, which change nothing for the request."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.stages import (
    add_one,
    call,
    fail,
    fails_with,
    hang,
)
from support.waiting import until

import raycompose as rc
from raycompose.graph import metrics


def fail_in_a_thread(x: Any) -> Any:
    raise SystemError("the shadow failed")


async def refuse(x: Any) -> Any:
    raise rc.HTTPError(404, "the shadow refused")


@pytest.mark.parametrize(
    "target",
    [
        fail,
        fail_in_a_thread,
        refuse,
        hang,
        rc.stage(hang, timeout_s=0.01),
        rc.parallel(fail, hang),
        rc.switch(len, {0: fail}),
    ],
)
def test_shadow_changes_nothing(target: Any) -> None:
    """The value passes whether the target fails, refuses, hangs or times out."""
    client = rc.local(rc.pipeline(add_one, rc.shadow(target), add_one))
    assert [client.call(x, timeout_s=10) for x in range(30)] == list(range(2, 32))


def test_shadow_runs_beside_the_request() -> None:
    """The target gets the same input, and is still at work when the caller has its result."""
    release, seen = threading.Event(), []

    def slow(x: Any) -> None:
        release.wait(10)
        seen.append(x)

    client = rc.local(rc.shadow(slow))
    assert client.call(5) == 5
    assert seen == []
    release.set()
    until(lambda: seen == [5])


def test_shadow_that_blocks_threads_leaves_the_request_its_own() -> None:
    """However many threads hanging shadows hold, a def stage still runs at once."""
    release = threading.Event()

    def blocks(x: Any) -> None:
        release.wait(30)

    client = rc.local(rc.pipeline(rc.shadow(blocks, max_in_flight=100), lambda x: x + 1))
    try:
        assert [client.call(x, timeout_s=5) for x in range(60)] == list(range(1, 61))
    finally:
        release.set()


def test_shadow_is_bounded_and_counts_what_it_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than max_in_flight mirrored calls run at once; others are dropped and counted."""
    dropped = []
    count = metrics.count

    def counted(counter: str, pipeline: str, stage: str) -> None:
        dropped.append((counter, pipeline, stage))
        count(counter, pipeline, stage)

    monkeypatch.setattr(metrics, "count", counted)
    release = threading.Event()
    running: list[int] = []
    finished: list[int] = []

    async def target(x: int) -> None:
        running.append(x)
        await asyncio.to_thread(release.wait, 10)
        finished.append(x)

    client = rc.local(rc.shadow(target, max_in_flight=3).options(name="Front"))
    assert [client.call(x) for x in range(10)] == list(range(10))
    until(lambda: len(running) == 3)
    assert dropped == [("shadow_dropped", "Front", "shadow")] * 7
    release.set()
    until(lambda: len(finished) == 3)
    client.call(10)
    until(lambda: sorted(finished) == [0, 1, 2, 10])
    assert len(dropped) == 7


def test_shadow_mirrors_its_share() -> None:
    """Over 10,000 inputs the mirrored share is within 2 points of percent."""
    seen = []

    async def mirror(x: int) -> None:
        seen.append(x)

    app = rc.each(rc.shadow(mirror, percent=25, max_in_flight=10_000))
    assert call(app, list(range(10_000)), timeout_s=60) == list(range(10_000))
    until(lambda: len(seen) / 100 == pytest.approx(25, abs=2))


def test_shadow_drains_a_stream() -> None:
    """A target that streams is run to its end."""
    seen = []

    async def items(x: int) -> AsyncIterator[int]:
        for i in range(x):
            seen.append(i)
            yield i

    assert call(rc.shadow(items), 3) == 3
    until(lambda: seen == [0, 1, 2])


def test_shadow_outlives_a_request_that_fails() -> None:
    """A failure further on does not cancel the mirrored call: it is no part of the request."""
    release, seen = threading.Event(), []

    async def target(x: int) -> None:
        await asyncio.to_thread(release.wait, 10)
        seen.append(x)

    fails_with(ValueError, rc.pipeline(rc.shadow(target), fail), 7)
    release.set()
    until(lambda: seen == [7])


def test_a_shadow_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the candidate fails is why one shadows: its errors are its stage's."""
    counted: list[tuple[str, str]] = []
    monkeypatch.setattr(metrics, "count", lambda name, _, stage: counted.append((name, stage)))

    def candidate(x: int) -> int:
        raise ValueError("not yet")

    client = rc.local(rc.pipeline(rc.shadow(candidate), lambda x: x + 1))
    assert client.call(1) == 2
    until(lambda: counted == [("stage_errors", "candidate")])


def test_a_mirrored_call_has_no_deadline() -> None:
    """Nobody waits for it, so the request's is not its own."""
    left: list[float | None] = []

    async def mirrored(x: int) -> None:
        await asyncio.sleep(0.05)
        left.append(rc.remaining_s())

    async def served(x: int) -> bool:
        return rc.remaining_s() is not None

    assert rc.local(rc.shadow(mirrored) | served).call(1, timeout_s=20)
    until(lambda: left == [None])
