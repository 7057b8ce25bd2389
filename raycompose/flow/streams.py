"""Streams between stages: pulled lazily, mapped in order, stopped early."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import aclosing
from functools import partial
from typing import Any, Generic, TypeVar

from raycompose.errors import RayComposeError
from raycompose.flow import background
from raycompose.flow.concurrency import Pulls, cancel, next_of
from raycompose.flow.deadlines import remaining_s

T = TypeVar("T")
U = TypeVar("U")

IN_FLIGHT = 4
"""How many items of a stream a mapping stage works on at once."""


class Stream(Generic[T]):
    """The items that a streaming stage produces, pulled as they are asked for.

    Annotate a stage's first parameter ``rc.Stream[T]`` to receive the upstream's items as they
    come: ``async for`` in an ``async def``, plain ``for`` in a ``def``. A stream can be iterated
    once. It starts nothing until its first item is asked for, and travels between replicas as the
    call to make, so the replica that iterates it pulls from the one that produces.

    Args:
        source: Called once, without arguments, to begin; yields the items.
        portable: Whether the source may be called in another replica.
    """

    def __init__(
        self, source: Callable[[], AsyncGenerator[T, None]], *, portable: bool = True
    ) -> None:
        self._source = source
        self._portable = portable
        self._items: Any = None  # an async generator, once it has begun
        self.peeked: T | None = None
        """The first item, once ``peek()`` has waited for it."""
        self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self._peeking: Stream[Any] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._iterated_by: asyncio.Task[Any] | None = None
        self._pulls: Pulls[T] | None = None
        self._blocking_items: Iterator[T] | None = None
        self._ends_at: float | None = None

    @classmethod
    def of(cls, items: list[T]) -> "Stream[T]":
        """Return a stream of items that are there already."""
        return cls(partial(_given, items))

    def map(self, function: Callable[[T], Awaitable[U]], *, portable: bool = True) -> "Stream[U]":
        """Return the stream of ``await function(item)``, in order, a few in flight at a time."""
        return Stream(_Mapped(self, function), portable=portable and self._portable)

    @property
    def portable(self) -> bool:
        """Whether it can be iterated in another replica: it has not begun, nor is bound here."""
        return self._portable and not self.started

    @property
    def started(self) -> bool:
        """Whether its first item has been asked for: its items can be had only once."""
        return self._items is not None

    async def sendable(self) -> "Stream[T]":
        """Return a stream that another replica can iterate.

        That is the stream itself, unless an object of this process has a part in it: then its
        items are collected here and sent together.
        """
        if self.portable:
            return self
        return Stream.of([item async for item in self])

    async def peek(self) -> "Stream[T]":
        """Return the same stream once its first item is there, or raise what came instead."""
        try:
            first = await anext(aiter(self))
        except StopAsyncIteration:
            return self
        resumed = Stream(partial(self._resumed, first), portable=False)
        resumed.peeked = first
        resumed._peeking = self
        return resumed

    async def _resumed(self, first: T) -> AsyncGenerator[T, None]:
        try:
            yield first
            async for item in self:
                yield item
        finally:
            await self.aclose()

    def __aiter__(self) -> AsyncIterator[T]:
        return self._started_items()

    def _begun(self) -> AsyncGenerator[T, None]:
        if self._items is None:
            self._items = self._source()
        items: AsyncGenerator[T, None] = self._items
        return items

    def _started_items(self) -> AsyncGenerator[T, None]:
        begins, items = self._items is None, self._begun()
        with contextlib.suppress(RuntimeError):  # no loop in this thread, and no task
            self._iterated_by = asyncio.current_task()
            if begins and self._iterated_by is not None:
                self._iterated_by.add_done_callback(self._stop_after)
        return items

    def _stop_after(self, task: "asyncio.Task[Any]") -> None:
        """Stop with the task that iterates: its error may keep the items alive for ever."""
        if task.cancelled() or task.exception() is not None:
            self._closing = self._closing or asyncio.ensure_future(self._close())

    def __iter__(self) -> Iterator[T]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._blocking()
        raise RayComposeError("this code runs on an event loop: use 'async for' on the stream")

    async def __anext__(self) -> T:
        return await anext(aiter(self))

    def __next__(self) -> T:
        if self._blocking_items is None:
            self._blocking_items = iter(self)
        return next(self._blocking_items)

    def _blocking(self) -> Iterator[T]:
        try:
            while True:
                try:
                    item = background.wait(self._pulled(), self._loop)
                except StopAsyncIteration:
                    if self._closing is not None:  # stopped, which is not an end to go on from
                        raise CancelledError from None
                    return
                yield item
        finally:
            background.finish(self.aclose(), self._loop)

    async def _pulled(self) -> T:
        """The next item, for a thread: it may run on when the stream was stopped, and asks late."""
        if self._ends_at is not None and time.monotonic() > self._ends_at:
            raise asyncio.CancelledError
        if self._closing is None:
            self._pulls = self._pulls or Pulls(self._begun())
        # Again: on another loop it may have been stopped in between, with nothing to close yet.
        if self._closing is not None or self._pulls is None:
            raise asyncio.CancelledError
        return await self._pulls.next()

    async def aclose(self) -> None:
        """Stop: cancel whatever still produces items. Safe to call at any time, and twice."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(asyncio.current_task()))
        await asyncio.shield(self._closing)

    async def _close(self, closer: "asyncio.Task[Any] | None" = None) -> None:
        if self._pulls is not None:
            await self._pulls.aclose()
        elif self._items is not None:
            if self._items.ag_running and self._iterated_by is not closer:
                await cancel(self._iterated_by)  # a task that its consumer has left behind
            await self._items.aclose()
        elif self._peeking is not None:
            await self._peeking.aclose()

    def __getstate__(self) -> dict[str, Any]:
        if not self.portable:
            raise RayComposeError(
                "a stream that has begun, or that fused stages produce, cannot be pickled: "
                "iterate it here, or 'await stream.sendable()'"
            )
        return {
            **self.__dict__,
            "_loop": None,
            "_blocking_items": None,
            "_closing": None,
            "_pulls": None,
            "_left_s": remaining_s(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In a replica nothing else tells a thread that nobody waits for what it does any more.
        left_s = state.pop("_left_s")
        self.__dict__.update(state)
        self._ends_at = None if left_s is None else time.monotonic() + left_s


async def _given(items: list[T]) -> AsyncGenerator[T, None]:
    for item in items:
        yield item


class _Mapped(Generic[T, U]):
    """The source of a mapped stream; picklable when the stream and the function are."""

    def __init__(self, stream: Stream[T], function: Callable[[T], Awaitable[U]]) -> None:
        self.stream = stream
        self.function = function

    async def __call__(self) -> AsyncGenerator[U, None]:
        begun: asyncio.Queue[asyncio.Future[U] | None] = asyncio.Queue()
        room = asyncio.Semaphore(IN_FLIGHT)

        async def begin() -> None:
            try:
                async for item in self.stream:
                    await room.acquire()
                    begun.put_nowait(asyncio.ensure_future(self.function(item)))
            finally:
                begun.put_nowait(None)

        beginning = asyncio.ensure_future(begin())
        task: asyncio.Future[U] | None = None
        try:
            while (task := await begun.get()) is not None:
                if not task.done():
                    await asyncio.wait({task})  # to await it would cancel it, and so twice
                room.release()
                result = task.result()
                if isinstance(result, Stream):  # a generator, mapped: its items, in order
                    async with aclosing(result):
                        async for item in result:
                            yield item
                else:
                    yield result
            beginning.result()  # after the items before it: what the stream failed with
        finally:
            left = [begun.get_nowait() for _ in range(begun.qsize())]
            await cancel(beginning, task, *left)
            await self.stream.aclose()


async def in_batches(
    items: Stream[T], *, size: int, max_wait_s: float | None
) -> AsyncGenerator[list[T], None]:
    """Give a stream's items as lists of ``size``, or of what came within ``max_wait_s``."""
    batch: list[T] = []
    full_at_s: float | None = None
    upcoming: asyncio.Task[T] | None = None
    clock = asyncio.get_running_loop().time
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(next_of(aiter(items)))
            left_s = None if full_at_s is None else max(0.0, full_at_s - clock())
            await asyncio.wait({upcoming}, timeout=left_s)
            if upcoming.done():
                try:
                    batch.append(upcoming.result())
                except StopAsyncIteration:
                    break
                upcoming = None
                if len(batch) == 1 and max_wait_s is not None:
                    full_at_s = clock() + max_wait_s
            if len(batch) == size or (batch and full_at_s is not None and clock() >= full_at_s):
                yield batch
                batch, full_at_s = [], None
        if batch:
            yield batch
    finally:
        await cancel(upcoming)
