"""Streams, `each`, `shadow` and branches hold what is under way, and no more."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined, untyped-decorator, no-untyped-call"

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import ray
from support import pickle_by_value
from support.waiting import PATIENCE_S, until

import raycompose as rc
from raycompose.flow import background
from raycompose.graph.context import Context

pickle_by_value(__name__)


def test_a_stream_holds_what_is_in_flight_alone() -> None:
    """What an item started by reference is let go of with the item: memory does not grow."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Block:
        pass

    async def source(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def load(i: int) -> Block:
        nonlocal most
        block = Block()
        alive.add(block)
        most = max(most, len(alive))
        return block

    async def taker(ref: rc.Ref[Block]) -> int:
        await ref
        return 1

    item = rc.stage(rc.pipeline(load, taker), name="item")
    client = rc.local(rc.pipeline(source, item, rc.collect, sum))
    assert client.call(300, timeout_s=PATIENCE_S) == 300
    gc.collect()
    assert most < 100


# Streams in threads


@pytest.mark.parametrize("generates", [False, True])
def test_an_endless_producer_behind_a_blocking_consumer_stops(generates: bool) -> None:
    """A time-out closes the generator while a thread waits for its next item, and ends both.

    Whenever it comes: while the thread starts, too, and before it has asked for the first item.
    """
    begun, over = list[str](), list[str]()

    async def endless(x: int) -> AsyncIterator[int]:
        begun.append("producer")
        try:
            while True:
                yield x
                await asyncio.sleep(0.005)
        finally:
            over.append("producer")

    def consumer(items: rc.Stream[int]) -> int:
        begun.append("consumer")
        try:
            time.sleep(0.01)
            return sum(items)
        finally:
            over.append("consumer")

    def generating(items: rc.Stream[int]) -> Iterator[int]:
        yield consumer(items)

    for timeout_s in (0.001, *(0.002 * n for n in range(1, 20)), 0.3):
        consuming = rc.stage(generating if generates else consumer, timeout_s=timeout_s)
        client = rc.local(rc.pipeline(endless, consuming, *([rc.collect] if generates else [])))
        with pytest.raises(rc.StageTimeoutError):
            client.call(1, timeout_s=30)
    until(lambda: sorted(over) == sorted(begun))
    assert {"producer", "consumer"} <= set(begun)


def test_a_cancelled_astream_is_cancelled() -> None:
    """Cancelling the task that iterates raises ``CancelledError`` there, and stops the stage."""
    stopped = threading.Event()

    async def endless(x: int) -> AsyncIterator[int]:
        try:
            yield x
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def main() -> str:
        first = asyncio.Event()

        async def iterate() -> None:
            async for _ in rc.local(rc.stage(endless)).astream(1):
                first.set()

        task = asyncio.ensure_future(iterate())
        await asyncio.wait_for(first.wait(), PATIENCE_S)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return "cancelled"
        return "ended"

    assert asyncio.run(main()) == "cancelled"
    assert stopped.wait(PATIENCE_S)


# Shadow, each


def test_shadow_counts_in_its_process_whatever_carries_it() -> None:
    """``max_in_flight`` holds for all copies of the node that streams have brought along."""
    shadow = rc.shadow(_never, max_in_flight=1).root
    copies = [ray.cloudpickle.loads(ray.cloudpickle.dumps(shadow)) for _ in range(6)]

    async def main() -> int:
        before = len(asyncio.all_tasks())
        ctx = Context()
        for copy in copies:
            await copy.run(1, ray.cloudpickle.loads(ray.cloudpickle.dumps(ctx)))
        return len(asyncio.all_tasks()) - before

    assert asyncio.run(main()) == 1


async def _never(x: int) -> None:
    await asyncio.Event().wait()


def test_each_makes_tasks_for_what_is_under_way_alone() -> None:
    """A list of many items costs no task apiece before its turn."""
    most = 0

    async def tasks() -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks()

    others = background.wait(tasks())  # of tests before this one, which may still be ending

    async def item(x: int) -> int:
        nonlocal most
        most = max(most, len(asyncio.all_tasks() - others))
        return x

    assert rc.local(rc.each(item, max_concurrency=4)).call(list(range(500))) == list(range(500))
    assert most < 50


# By reference


@pytest.mark.parametrize("kind", ["parallel", "split", "fallback", "when"])
def test_a_branch_that_takes_a_reference_starts_before_its_upstream_ends(kind: str) -> None:
    """Consumers by reference are eager inside branches; a predicate alone waits for the value."""
    order: list[str] = []

    async def upstream(x: int) -> int:
        await asyncio.sleep(0.2)
        order.append("upstream")
        return x + 1

    async def eager(ref: rc.Ref[int]) -> int:
        order.append("eager")
        return await ref * 10

    async def plain(x: int) -> int:
        return x

    branching = {
        "parallel": lambda: rc.parallel(eager, plain, rc.passthrough),
        "split": lambda: rc.split((eager, 50), (eager, 50)),
        "fallback": lambda: rc.fallback(eager, plain),
        "when": lambda: rc.when(lambda x: x == 2, eager, plain),
    }[kind]()
    result = rc.local(rc.pipeline(upstream, branching)).call(1, timeout_s=PATIENCE_S)
    assert result == ((20, 2, 2) if kind == "parallel" else 20)
    assert order == (["upstream", "eager"] if kind == "when" else ["eager", "upstream"])
