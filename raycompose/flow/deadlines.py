"""Deadlines: what is left until them, and what they interrupted."""

import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

from raycompose.flow import concurrency

T = TypeVar("T")

HEADER = "x-request-timeout-seconds"
"""Ray Serve's own, by which a request says how long it may take."""


class Deadline:
    """A time past which what runs is cancelled.

    Args:
        timeout_s: Seconds from now.
        margin_s: How many seconds before it passes what runs is cancelled.
    """

    __slots__ = ("at", "interrupted", "timeout_s")

    def __init__(self, timeout_s: float, margin_s: float = 0) -> None:
        self.timeout_s = timeout_s
        self.at = time.monotonic() + timeout_s - margin_s
        self.interrupted: str | None = None
        """The stage that was running when it passed."""

    async def before(self, action: Callable[[], Awaitable[T]]) -> T:
        """Return what an action gives in time; see ``concurrency.before``.

        Raises:
            DeadlinePassed: It passed; the action was cancelled.
        """
        outer = _current.get()
        token = _current.set(self if outer is None or self.at < outer.at else outer)
        try:
            return await concurrency.before(self.at, action)
        finally:
            _current.reset(token)


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


def leave() -> None:
    """Have no deadline in what this task does from here on: nobody waits for it."""
    _current.set(None)


def note_interrupted(stage: str) -> None:
    """Have the deadline know which stage it interrupted: the first to say so, if it has passed."""
    deadline = _current.get()
    if deadline is None or deadline.interrupted is not None:
        return
    if time.monotonic() >= deadline.at - _EARLY_S:
        deadline.interrupted = stage
