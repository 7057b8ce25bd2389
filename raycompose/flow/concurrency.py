"""What asyncio leaves out: deadlines that name what passed, cancelling once, generators shared."""

import asyncio
import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Generic, TypeVar

if sys.version_info >= (3, 11):
    from asyncio import timeout_at
else:
    from async_timeout import timeout_at

T = TypeVar("T")
U = TypeVar("U")
_END = object()


class DeadlinePassed(Exception):
    """What ``before`` raises; no error of what ran has this type."""


async def within(timeout_s: float, action: Callable[[], Awaitable[T]]) -> T:
    """Return what an action gives within so many seconds; see ``before``."""
    return await before(asyncio.get_running_loop().time() + timeout_s, action)


async def before(deadline: float, action: Callable[[], Awaitable[T]]) -> T:
    """Return what an action gives, which is cancelled once at the deadline.

    Cancelled once, as ``asyncio.timeout`` does it: the action's own ``finally`` may still await.

    Args:
        deadline: On the running loop's clock, in seconds.
        action: What to await.

    Raises:
        DeadlinePassed: It passed. What the action then made of being cancelled is not what failed.
    """
    timer = timeout_at(deadline)
    try:
        async with timer:
            result = await action()
    except Exception:
        if _has_expired(timer):
            raise DeadlinePassed from None
        raise
    if _has_expired(timer):
        raise DeadlinePassed
    return result


def _has_expired(timer: Any) -> bool:
    # A method in asyncio, a property in the package that stands for it on Python 3.10.
    return timer.expired() if callable(timer.expired) else bool(timer.expired)


_kept: set["asyncio.Task[Any]"] = set()


def keep(coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """Start a task that nothing else need hold on to: the event loop alone would not."""
    task = asyncio.ensure_future(coroutine)
    _kept.add(task)
    task.add_done_callback(_kept.discard)
    return task


async def gather(*coroutines: Any) -> list[Any]:
    """Wait for all; the first failure cancels the others, waits for them to stop, and is raised."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        if tasks:  # asyncio.gather would cancel them by itself, and so twice
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        return [task.result() for task in tasks if task.done()]
    except BaseException:
        await cancel(*tasks)
        raise


async def map_bounded(
    call: Callable[[int, T], Awaitable[U]], items: Sequence[T], at_once: int
) -> list[U]:
    """Return a call's result for each item, in order; the first failure cancels the others.

    Args:
        call: What is called with each index and item.
        items: The items.
        at_once: How many calls are under way at once.
    """
    results: list[Any] = [None] * len(items)
    upcoming = iter(enumerate(items))

    async def work() -> None:
        for index, item in upcoming:
            results[index] = await call(index, item)

    await gather(*(work() for _ in range(min(at_once, len(items)))))
    return results


async def cancel(*tasks: "asyncio.Future[Any] | None") -> None:
    """Cancel tasks, once, and wait until they have stopped, whatever they end with."""
    running = [task for task in tasks if task is not None]
    for task in running:
        cancel_once(task)
    if running:
        await asyncio.wait(running)
    for task in running:
        task.cancelled() or task.exception()  # looked at, or asyncio reports that nobody has


_cancelled: "weakref.WeakSet[asyncio.Future[Any]]" = weakref.WeakSet()


def cancel_once(task: "asyncio.Future[Any]") -> None:
    """Cancel a task unless that was done already: what its ``finally`` awaits is to end."""
    if not task.done() and task not in _cancelled:
        _cancelled.add(task)
        task.cancel()


async def next_of(items: AsyncIterator[T]) -> T:
    """Return the next item, as a coroutine, which a task needs and ``anext`` does not give."""
    return await anext(items)


async def pulled(
    pull: Callable[[Callable[[], Awaitable[T]]], Awaitable[T]], items: Any
) -> AsyncGenerator[T, None]:
    """Give the items of a generator or a stream, and close it at the end.

    Args:
        pull: Awaits what gives the next item, within a deadline for example.
        items: What is iterated.
    """
    async with aclosing(items):
        upcoming = aiter(items)
        while True:
            try:
                item = await pull(partial(anext, upcoming))
            except StopAsyncIteration:
                return
            yield item


class Pulls(Generic[T]):
    """An async generator that other threads and event loops pull from, closed at any time.

    Args:
        items: The generator; its methods run on one loop alone.
    """

    def __init__(self, items: AsyncGenerator[T, None]) -> None:
        self._items = items
        self._pulling: asyncio.Task[Any] | None = None

    async def next(self) -> T:
        """Return the next item."""
        self._pulling = asyncio.current_task()
        return await anext(self._items)

    async def aclose(self) -> None:
        """Close the generator, which may be waiting for its next item."""
        await cancel(self._pulling)
        await self._items.aclose()


async def run_ahead(
    items: AsyncGenerator[T, None],
    ahead: int,
    lend: Callable[[Awaitable[Any]], Awaitable[None]],
) -> AsyncGenerator[T, None]:
    """Give a generator's items while it goes on producing.

    Args:
        items: The generator.
        ahead: How many items it may be ahead.
        lend: Waits for what it is given, once that many items wait, without a hold on the producer.
    """
    made: asyncio.Queue[Any] = asyncio.Queue()
    room = asyncio.Semaphore(ahead)

    async def produce() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    made.put_nowait(item)
                    await (lend(room.acquire()) if room.locked() else room.acquire())
        finally:
            made.put_nowait(_END)

    producer = asyncio.ensure_future(produce())
    try:
        while (item := await made.get()) is not _END:
            room.release()
            yield item
        await producer
    finally:
        await cancel(producer)
