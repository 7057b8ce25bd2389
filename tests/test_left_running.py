"""What is left running: it is not waited for past a deadline, nor closed while it runs."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined, untyped-decorator, no-untyped-call"

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray import serve
from support.waiting import until

import raycompose as rc

TIMEOUT_S = 20


class Gate:
    """What the stages of this module wait for, and set."""

    def __init__(self) -> None:
        self.go, self.began, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.running = self.most = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Gate, ()  # Ray pickles a deployment, to look whether it could be sent


gate = Gate()


@pytest.fixture(autouse=True)
def _gate() -> Iterator[None]:
    global gate
    gate = Gate()
    yield
    gate.go.set()


def blocks(value: Any) -> Iterator[int]:
    """Block before the second item until it is let go."""
    try:
        yield 1
        gate.go.wait(TIMEOUT_S)
        yield 2
    finally:
        gate.ended.set()


@serve.deployment
class Blocks:
    def __call__(self, value: Any) -> Iterator[int]:
        yield from blocks(value)


async def endless(value: Any) -> AsyncIterator[int]:
    try:
        yield 1
        await asyncio.Event().wait()
    finally:
        gate.ended.set()


@serve.deployment(max_ongoing_requests=1)
class Slow:
    """Counts how many calls run at once; the first ends when it is let go."""

    async def __call__(self, value: int) -> int:
        gate.running += 1
        gate.most = max(gate.most, gate.running)
        try:
            if value == 1:
                gate.began.set()
                await asyncio.Event().wait()
            return value
        finally:
            if value == 1:
                await asyncio.to_thread(gate.go.wait, TIMEOUT_S)
            gate.running -= 1


async def quits(ref: rc.Ref[int]) -> int:
    if not gate.go.is_set():
        await asyncio.to_thread(gate.began.wait, TIMEOUT_S)
        raise ValueError("it has had enough")
    return await ref


@pytest.mark.parametrize("stage", [blocks, Blocks.bind()], ids=["function", "deployment"])
def test_a_deadline_holds_for_a_generator_that_blocks(stage: Any) -> None:
    """The caller has its error in time; the generator is closed once it stands still."""
    with pytest.raises(TimeoutError):
        rc.local(rc.pipeline(stage, rc.collect)).call(1, timeout_s=0.2)
    assert not gate.ended.is_set()
    gate.go.set()
    assert gate.ended.wait(TIMEOUT_S)


def test_a_cancelled_stream_does_not_wait_for_a_generator_that_blocks() -> None:
    """Nor does whoever leaves a stream amid an item."""

    async def leave() -> None:
        first = asyncio.Event()

        async def iterate() -> None:
            async for _ in rc.local(rc.stage(blocks)).astream(1):
                first.set()

        iterating = asyncio.ensure_future(iterate())
        await asyncio.wait_for(first.wait(), TIMEOUT_S)
        iterating.cancel()
        await asyncio.wait({iterating}, timeout=TIMEOUT_S / 2)
        assert iterating.cancelled()

    asyncio.run(leave())
    assert not gate.ended.is_set()
    gate.go.set()
    assert gate.ended.wait(TIMEOUT_S)


@pytest.mark.parametrize("how", ["all", "next"])
def test_a_consumer_may_leave_a_task_that_pulls(how: str) -> None:
    """What still waits for an item of a stream that its stage has left is cancelled."""
    left: list[asyncio.Task[Any]] = []

    async def leaves(items: rc.Stream[int]) -> int:
        first = await anext(items)

        async def drain() -> None:
            async for _ in items:
                pass

        left.append(asyncio.ensure_future(drain() if how == "all" else items.__anext__()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return first

    assert rc.local(rc.pipeline(endless, leaves)).call(1, timeout_s=TIMEOUT_S) == 1
    assert until(left[0].done)
    assert left[0].cancelled()
    assert gate.ended.is_set()


def test_an_abandoned_call_keeps_its_place_until_it_has_ended() -> None:
    """``max_ongoing_requests`` holds for a call by reference that is cancelled, to its end."""
    client = rc.local(rc.pipeline(Slow.bind(), quits))
    with pytest.raises(ValueError, match="enough"):
        client.call(1, timeout_s=TIMEOUT_S)
    with pytest.raises(TimeoutError):
        client.call(2, timeout_s=0.2)
    gate.go.set()
    assert client.call(3, timeout_s=TIMEOUT_S) == 3
    assert gate.most == 1


def test_what_is_half_made_is_not_torn_down() -> None:
    """When one constructor fails, another under way ends before its instance is torn down."""
    log: list[str] = []

    @serve.deployment
    class Broken:
        def __init__(self) -> None:
            raise OSError("no disk")

        async def __call__(self, value: Any) -> Any: ...

    @serve.deployment
    class Slow:
        async def __init__(self) -> None:  # type: ignore[misc]  # as Ray Serve allows
            await asyncio.sleep(0.05)
            log.append("built")

        async def __call__(self, value: Any) -> Any: ...

        def __del__(self) -> None:
            log.append("torn down")

    with pytest.raises(OSError, match="no disk"):
        rc.local(rc.pipeline(Broken.bind(), Slow.bind()))
    assert log == ["built", "torn down"]


def test_an_embedded_pipeline_forgets_event_loops_that_have_ended() -> None:
    """No more than one instance is left of those that ended event loops have called."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    @serve.deployment
    class Stage:
        def __init__(self) -> None:
            alive.add(self)

        async def __call__(self, value: int) -> int:
            return value

    embedded = rc.stage(Stage.bind()).fuse().embed()
    for value in range(5):
        assert asyncio.run(embedded(value)) == value
    gc.collect()
    assert len(alive) == 1


def test_a_mock_is_a_stage_and_a_result() -> None:
    """A ``MagicMock`` has every method, and is no stream for that."""
    stage = MagicMock()
    assert rc.local(rc.stage(stage)).call(1, timeout_s=TIMEOUT_S) is stage.return_value
