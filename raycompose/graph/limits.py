"""Limits on a stage: a deadline over all attempts, and what may be tried again."""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from ray.serve.exceptions import BackPressureError

from raycompose.errors import TRANSIENT, add_note
from raycompose.flow.deadlines import Deadline, note_interrupted
from raycompose.flow.references import Ref
from raycompose.flow.streams import Stream
from raycompose.graph import metrics
from raycompose.graph.budgets import Budget
from raycompose.graph.context import Context
from raycompose.graph.deadlines import run_before

logger = logging.getLogger("ray.serve")


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number; ``True`` and ``False`` are not meant as one."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_duration(value: Any) -> bool:
    """Tell whether a value is a number of seconds above 0."""
    return is_number(value) and 0 < value < math.inf


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
        budget: Retries at most, as a share of the stage's requests, from 0 to 1, counted over ten
            seconds in one replica of the pipeline. Past it errors are raised at once.
        min_per_s: Retries a second that are allowed at any load.
    """

    attempts: int = 3
    on: tuple[type[Exception], ...] = ()
    initial_s: float = 0.1
    max_s: float = 5.0
    jitter: bool = True
    budget: float = 0.2
    min_per_s: float = 10

    def __post_init__(self) -> None:
        if not is_count(self.attempts):
            raise ValueError(f"attempts must be a whole number, 1 or more, got {self.attempts!r}")
        for name in ("initial_s", "max_s", "min_per_s"):
            amount = getattr(self, name)
            if not is_number(amount):
                raise TypeError(f"{name} must be a number, got {amount!r}")
            if not 0 <= amount < math.inf:
                raise ValueError(f"{name} must be 0 or more, and finite, got {amount!r}")
        _check_budget(self.budget)
        on = self.on if isinstance(self.on, tuple) else (self.on,)
        object.__setattr__(self, "on", on)
        if not all(isinstance(t, type) and issubclass(t, Exception) for t in on):
            raise TypeError(f"on must be a tuple of exception types, got {self.on!r}")

    async def run(
        self,
        stage: str,
        ctx: Context,
        attempt: Callable[[], Awaitable[Any]],
        repeatable: Callable[[Exception], bool],
    ) -> Any:
        """Run ``attempt`` until it succeeds or fails for good; the arguments are ``Limits.run``'s.

        A retry is logged with the stage and the request's id.
        """
        make = partial(Budget, self.budget, self.min_per_s)
        budget = ctx.engine.state(f"retries of {stage}", make)
        budget.request()
        number = 1
        while True:
            try:
                return await attempt()
            except (*TRANSIENT, *self.on) as error:
                if number == self.attempts or not repeatable(error):
                    raise
                if not budget.spend():
                    metrics.count("retries_denied", ctx.pipeline, stage)
                    add_note(error, f"not tried again: the retry budget of {stage!r} is spent")
                    raise
                wait_s = self.wait_s(error, number)
                logger.info("request %s: stage %r is tried again in %.2f s after %r",
                            ctx.request_id, stage, wait_s, error)  # fmt: skip
            metrics.count("retries", ctx.pipeline, stage)
            try:
                await asyncio.sleep(wait_s)
            except asyncio.CancelledError:
                note_interrupted(stage)
                raise
            number += 1

    def wait_s(self, error: Exception, attempt: int) -> float:
        """Seconds to wait after an attempt that failed; back-pressure names its own.

        Args:
            error: What it failed with.
            attempt: Its number, from 1.
        """
        if isinstance(error, BackPressureError) and error.retry_after_s is not None:
            return float(error.retry_after_s)
        longest_s = min(self.max_s, self.initial_s * 2 ** min(attempt - 1, 64))
        return random.uniform(0, longest_s) if self.jitter else longest_s


@dataclass(frozen=True)
class Hedge:
    """When a slow stage is called a second time; it must be safe to run twice.

    Args:
        after_s: Seconds after which the first call is slow.
        budget: Second calls at most, as a share of the stage's requests, from 0 to 1, counted over
            ten seconds in one replica of the pipeline.
    """

    after_s: float
    budget: float = 0.05

    def __post_init__(self) -> None:
        if not is_duration(self.after_s):
            raise ValueError(f"after_s must be a number of seconds above 0, got {self.after_s!r}")
        _check_budget(self.budget)


def _check_budget(budget: float) -> None:
    if not (is_number(budget) and 0 <= budget <= 1):
        raise ValueError(f"budget must be a share from 0 to 1, got {budget!r}")


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
        ctx: Context,
        attempt: Callable[[], Awaitable[Any]],
        repeatable: Callable[[Exception], bool],
    ) -> Any:
        """Run ``attempt``, again where the policy says so, until the deadline.

        A stream has the same deadline for its last item.

        Args:
            stage: The stage's name.
            ctx: The request's.
            attempt: Runs it once.
            repeatable: Whether another attempt may have the input, after an error.

        Raises:
            StageTimeoutError: The deadline passed; the attempt under way was cancelled.
        """
        if self.retry is not None:
            attempt = partial(self.retry.run, stage, ctx, attempt, repeatable)
        if self.timeout_s is None:
            return await attempt()
        return await run_before(Deadline(self.timeout_s), attempt, stage)
