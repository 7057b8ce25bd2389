"""Deadlines: of a stage and of a whole request, and what is left until them."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from typing import Any

from raycompose.errors import RequestTimeoutError, StageTimeoutError, mark
from raycompose.flow import concurrency
from raycompose.flow.concurrency import DeadlinePassed
from raycompose.flow.streams import Stream

HEADER = "x-request-timeout-seconds"
"""Ray Serve's own, by which a request says how long it may take."""


class Deadline:
    """A time past which what runs is cancelled.

    Args:
        timeout_s: Seconds from now.
        stage: The stage whose limit it is; ``None``: it is the request's.
        margin_s: How many seconds before it passes what runs is cancelled.
    """

    __slots__ = ("_stage", "_timeout_s", "at", "interrupted")

    def __init__(self, timeout_s: float, stage: str | None = None, margin_s: float = 0) -> None:
        self._timeout_s = timeout_s
        self._stage = stage
        self.at = time.monotonic() + timeout_s - margin_s
        self.interrupted: str | None = None
        """The stage that was running when it passed."""

    async def run(self, action: Callable[[], Awaitable[Any]]) -> Any:
        """Return what an action gives in time; a stream has the same deadline for its last item.

        Raises:
            StageTimeoutError: It passed; the action was cancelled.
        """
        result = await self._before(action)
        if isinstance(result, Stream):
            return Stream(partial(self._items, result), portable=False)
        return result

    async def _items(self, stream: Stream[Any]) -> AsyncGenerator[Any, None]:
        async with aclosing(stream):
            items = aiter(stream)
            while True:
                try:
                    item = await self._before(partial(anext, items))
                except StopAsyncIteration:
                    return
                yield item

    async def _before(self, action: Callable[[], Awaitable[Any]]) -> Any:
        outer = _current.get()
        token = _current.set(self if outer is None or self.at < outer.at else outer)
        try:
            return await concurrency.before(self.at, action)
        except DeadlinePassed:
            raise self._error() from None
        finally:
            _current.reset(token)

    def _error(self) -> StageTimeoutError:
        if self._stage is None:
            error: StageTimeoutError = RequestTimeoutError(self.interrupted, self._timeout_s)
        else:
            error = StageTimeoutError(self._stage, self._timeout_s)
        if error.stage is not None:
            mark(error, error.stage)
        return error


_EARLY_S = 0.005
"""How much before its time an event loop's timer may fire, at most."""
_current: ContextVar[Deadline | None] = ContextVar("raycompose_deadline", default=None)


def earliest(*limits: Deadline | float | None) -> Deadline | None:
    """Return the deadline that passes first, if there is one; a number is seconds from now."""
    given = (limit for limit in limits if limit is not None)
    deadlines = [limit if isinstance(limit, Deadline) else Deadline(limit) for limit in given]
    return min(deadlines, key=lambda deadline: deadline.at, default=None)


def remaining_s() -> float | None:
    """Return the seconds that are left to what calls it, or ``None`` when it has no deadline.

    In functions and fused stages. The nearest deadline counts: the request's (its header
    ``x-request-timeout-seconds``, ``app.options(timeout_s=)``, ``client.call(timeout_s=)``), or a
    ``timeout_s`` of the stage or of what it is part of.
    """
    deadline = _current.get()
    return None if deadline is None else max(0.0, deadline.at - time.monotonic())


def note_interrupted(stage: str) -> None:
    """Have the deadline know which stage it interrupted: the first to say so, if it has passed."""
    deadline = _current.get()
    if deadline is None or deadline.interrupted is not None:
        return
    if time.monotonic() >= deadline.at - _EARLY_S:
        deadline.interrupted = stage
