"""Limits on a stage: a deadline over all attempts, and what may be tried again."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

from ray.serve.exceptions import BackPressureError

from raycompose.errors import TRANSIENT, StageTimeoutError, mark
from raycompose.flow.concurrency import DeadlinePassed, before
from raycompose.flow.references import Ref
from raycompose.flow.streams import Stream

if TYPE_CHECKING:
    import tenacity


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number; ``True`` and ``False`` are not meant as one."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Tell whether a value is a whole number of 1 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_repeatable(value: Any, error: Exception) -> bool:
    """Tell whether what failed with ``error`` may be called again with the same input.

    Items can be had once. Whether a stream was begun shows only in the replica that was given it,
    so another call may have it only if the first was refused before it ran. Nor is it of use to
    repeat what failed because its input did.
    """
    if isinstance(value, Stream):
        return isinstance(error, BackPressureError)
    return not (isinstance(value, Ref) and value.is_source_of(error))


@dataclass(frozen=True)
class Retry:
    """When and how often a stage is tried again.

    Args:
        attempts: How often it runs at most, the first time included.
        on: Exception types worth another attempt, besides the transient faults (a replica, an
            actor, a worker, a node or a result that was lost or is unavailable, back-pressure),
            which always are.
        initial_s: Seconds before the second attempt; doubled before each further one.
        max_s: The longest wait between two attempts, in seconds.
        jitter: Wait a random time up to those seconds, so that callers do not return in step.
    """

    attempts: int = 3
    on: tuple[type[Exception], ...] = ()
    initial_s: float = 0.1
    max_s: float = 5.0
    jitter: bool = True

    def __post_init__(self) -> None:
        if not is_count(self.attempts):
            raise ValueError(f"attempts must be a whole number, 1 or more, got {self.attempts!r}")
        for name in ("initial_s", "max_s"):
            seconds = getattr(self, name)
            if not is_number(seconds):
                raise TypeError(f"{name} must be a number of seconds, got {seconds!r}")
            if not 0 <= seconds < math.inf:
                raise ValueError(f"{name} must be 0 seconds or more, and finite, got {seconds!r}")
        on = self.on if isinstance(self.on, tuple) else (self.on,)
        object.__setattr__(self, "on", on)
        if not all(isinstance(t, type) and issubclass(t, Exception) for t in on):
            raise TypeError(f"on must be a tuple of exception types, got {self.on!r}")

    def wait_s(self, state: "tenacity.RetryCallState") -> float:
        """Seconds to wait before the next attempt; back-pressure names its own."""
        import tenacity  # as below

        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, BackPressureError) and error.retry_after_s is not None:
            return float(error.retry_after_s)
        backoff = (
            tenacity.wait_random_exponential(multiplier=self.initial_s, max=self.max_s)
            if self.jitter
            else tenacity.wait_exponential(multiplier=self.initial_s, max=self.max_s)
        )
        return backoff(state)


@dataclass(frozen=True)
class Limits:
    """A deadline and a retry policy.

    Args:
        timeout_s: Seconds for all attempts together, or ``None``.
        retry: The policy, or ``None`` for one attempt.
    """

    timeout_s: float | None = None
    retry: Retry | None = None

    async def run(
        self,
        stage: str,
        attempt: Callable[[], Awaitable[Any]],
        repeatable: Callable[[Exception], bool] = lambda error: True,
    ) -> Any:
        """Run ``attempt``, again where the policy says so, until the deadline.

        A stream has the same deadline for its last item.

        Args:
            stage: The stage's name.
            attempt: Runs it once.
            repeatable: Whether another attempt may have the input, after an error.

        Raises:
            StageTimeoutError: The deadline passed; the attempt under way was cancelled.
        """
        if self.timeout_s is None:
            return await self._attempts(attempt, repeatable)
        deadline = asyncio.get_running_loop().time() + self.timeout_s
        result = await self._before(deadline, stage, partial(self._attempts, attempt, repeatable))
        if isinstance(result, Stream):
            return Stream(partial(self._items, result, deadline, stage), portable=False)
        return result

    async def _items(
        self, stream: Stream[Any], deadline: float, stage: str
    ) -> AsyncGenerator[Any, None]:
        async with aclosing(stream):
            items = aiter(stream)
            while True:
                try:
                    item = await self._before(deadline, stage, partial(anext, items))
                except StopAsyncIteration:
                    return
                yield item

    async def _before(
        self, deadline: float, stage: str, action: Callable[[], Awaitable[Any]]
    ) -> Any:
        try:
            return await before(deadline, action)
        except DeadlinePassed:
            error = StageTimeoutError(stage, self.timeout_s or 0.0)
            mark(error, stage)
            raise error from None

    async def _attempts(
        self, attempt: Callable[[], Awaitable[Any]], repeatable: Callable[[Exception], bool]
    ) -> Any:
        if self.retry is None:
            return await attempt()
        import tenacity  # with tornado, where that is installed: 10 ms that most never need

        worth_it = (*TRANSIENT, *self.retry.on)
        policy = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.retry.attempts),
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, worth_it) and repeatable(e)),
            wait=self.retry.wait_s,
            reraise=True,
        )
        return await policy(attempt)
