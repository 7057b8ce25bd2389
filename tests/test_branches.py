"""Branches that all run, at once: parallel, each, and what a failure does to the rest."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from support.stages import (
    Busy,
    Hanging,
    add_one,
    call,
    fail,
    fails_with,
    never,
)

import raycompose as rc

# --- Parallel -------------------------------------------------------------------------------------


async def takes_100_ms(x: Any) -> Any:
    await asyncio.sleep(0.1)
    return x


def blocks_100_ms(x: Any) -> Any:
    time.sleep(0.1)
    return x


@pytest.mark.parametrize("stage", [takes_100_ms, blocks_100_ms])
def test_parallel_takes_as_long_as_its_slowest_branch(stage: Any) -> None:
    """Three stages of 100 ms take about 100 ms in parallel, and at least 300 ms in a row."""

    def took_s(app: Any) -> float:
        client = rc.local(app)
        client.call(0)
        started = time.perf_counter()
        client.call(0)
        return time.perf_counter() - started

    in_parallel = took_s(rc.parallel(stage, stage, stage))
    assert 0.1 <= in_parallel < 0.25
    assert took_s(rc.pipeline(stage, stage, stage)) >= 0.3


def test_parallel_branches_meet() -> None:
    """All branches run at the same time, blocking functions too: each waits for the others."""
    barrier = threading.Barrier(8)

    def meet(x: Any) -> bool:
        barrier.wait(timeout=10)
        return True

    assert call(rc.parallel(*[meet] * 8)) == (True,) * 8


def test_parallel_results_are_in_the_order_written() -> None:
    """Results are in the order written, not in that of finishing."""
    done = asyncio.Event()

    async def last(x: Any) -> str:
        await done.wait()
        return "last"

    async def first(x: Any) -> str:
        done.set()
        return "first"

    assert call(rc.parallel(last, first)) == ("last", "first")
    assert list(call(rc.parallel(z=last, a=first))) == ["z", "a"]


def test_parallel_raises_the_first_failure_and_cancels_the_siblings() -> None:
    """The first failure in time is raised at once, and the siblings have been cancelled by then."""
    siblings = Hanging(), Hanging()

    async def fails_later(x: Any) -> None:
        for sibling in siblings:
            await sibling.started.wait()
        raise ValueError("first in time")

    error = fails_with(ValueError, rc.parallel(siblings[0], fails_later, siblings[1]))
    assert rc.failed_stage(error) == "fails_later"
    assert all(sibling.cancelled.is_set() for sibling in siblings)


def test_parallel_failure_waits_for_no_thread() -> None:
    """A sibling that blocks a thread, which nothing can cancel, does not delay the failure."""
    release = threading.Event()

    def blocks(x: Any) -> None:
        release.wait(10)

    try:
        started = time.monotonic()
        fails_with(ValueError, rc.parallel(blocks, fail))
        assert time.monotonic() - started < 5
    finally:
        release.set()


@pytest.mark.parametrize(
    ("targets", "named", "message"),
    [
        ((), {}, "at least one"),
        ((add_one,), {"b": add_one}, "all .* by position.* or all by name"),
        ((add_one, 3), {}, r"in rc\.parallel\(\).*3 \(int\)"),
    ],
)
def test_parallel_refuses(targets: Any, named: Any, message: str) -> None:
    """No target, a mixture of positional and named ones, or what is no stage is an error."""
    with pytest.raises(rc.CompositionError, match=message):
        rc.parallel(*targets, **named)


@pytest.mark.parametrize("combine", [rc.parallel, rc.each])
def test_branches_of_one_result_cannot_stream(combine: Any) -> None:
    """A branch whose items have no place in the result is refused; the error says what helps."""

    def items(x: int) -> Iterator[int]:
        yield x

    with pytest.raises(rc.CompositionError, match=r"'items' streams.*rc\.collect"):
        combine(items)


@pytest.mark.parametrize(
    "takes_one",
    [
        rc.parallel(add_one),
        rc.switch(len, {1: add_one}),
        rc.split((add_one, 100)),
        rc.each(add_one),
        rc.shadow(add_one),
        rc.fallback(add_one),
        rc.passthrough,
    ],
    ids=repr,
)
def test_a_combinator_takes_one_value(takes_one: rc.Pipeline[Any, Any]) -> None:
    """A pipeline that begins with a combinator takes exactly one value, and says so."""
    client = rc.local(takes_one)
    with pytest.raises(TypeError, match="exactly one value, but got 2 positional"):
        client.call(1, 2)
    with pytest.raises(TypeError, match="exactly one value, but got 0 positional and 1 keyword"):
        client.call(x=1)


# --- Each -----------------------------------------------------------------------------------------


def test_each_is_bounded() -> None:
    """Exactly max_concurrency items are under way at once, as long as there are so many."""
    busy = Busy()
    assert call(rc.each(busy, max_concurrency=3), list(range(20))) == list(range(20))
    assert (busy.peak, busy.calls) == (3, 20)


def test_each_keeps_the_order() -> None:
    """Results are in the items' order, though the first finishes last."""

    async def slower_first(x: int) -> int:
        await asyncio.sleep((10 - x) / 200)
        return x * 10

    assert call(rc.each(slower_first, max_concurrency=10), list(range(10))) == list(
        range(0, 100, 10)
    )


def test_each_raises_the_first_failure_and_cancels_the_rest() -> None:
    """Without return_exceptions the first failure is raised, and what runs or waits stops."""
    hanging, started = Hanging(), []

    async def item(x: int) -> None:
        started.append(x)
        if x == 0:
            await hanging(x)
        await asyncio.sleep(0)
        raise ValueError(x)

    error = fails_with(ValueError, rc.each(item, max_concurrency=2), list(range(10)))
    assert rc.failed_stage(error) == "item"
    assert hanging.cancelled.is_set()
    assert len(started) <= 3  # the failure made room for one more, and no others


def test_each_puts_errors_in_their_places_with_retries() -> None:
    """An error that outlasts its retries is at its own index; one that recovers is a result."""
    attempts: Counter[int] = Counter()

    async def flaky(x: int) -> int:
        attempts[x] += 1
        if x % 3 == 0 or (x % 3 == 1 and attempts[x] < 3):
            raise OSError(x)
        return x

    retry = rc.Retry(attempts=3, on=(OSError,), initial_s=0.001, min_per_s=100)
    results = call(rc.each(rc.stage(flaky, retry=retry), return_exceptions=True), list(range(9)))
    assert [r.args[0] if isinstance(r, OSError) else r for r in results] == list(range(9))
    assert [isinstance(r, OSError) for r in results] == [x % 3 == 0 for x in range(9)]
    assert rc.failed_stage(results[3]) == "flaky"
    assert attempts == {x: 1 if x % 3 == 2 else 3 for x in range(9)}


@pytest.mark.parametrize("items", [[], ()])
def test_each_of_nothing(items: Any) -> None:
    """No items give an empty list, and run nothing."""
    assert call(rc.each(never), items) == []


@pytest.mark.parametrize("items", ["text", {"a": 1}, {1}, None, 5, b"bytes"])
def test_each_of_what_is_no_list(items: Any) -> None:
    """Anything but a list or a tuple is a TypeError that names the node and what it got."""
    error = fails_with(TypeError, rc.each(never), items, match=f"list.*got {type(items).__name__}")
    assert rc.failed_stage(error) == "each"
