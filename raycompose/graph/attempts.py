"""Nodes whose branches may fail or be slow: the first that succeeds, a default, a race, a hedge."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from raycompose.errors import add_note, failed_stage, is_client_error
from raycompose.flow.arguments import single
from raycompose.flow.concurrency import DeadlinePassed, cancel, within
from raycompose.flow.streams import Stream
from raycompose.graph import metrics
from raycompose.graph.branches import Branching
from raycompose.graph.budgets import Budget
from raycompose.graph.choices import Choosing
from raycompose.graph.context import Context
from raycompose.graph.limits import Hedge, is_repeatable
from raycompose.graph.wrappers import Wrapping

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Fallback(Choosing):
    """The first branch that succeeds, the same input to each.

    Args:
        on: The exceptions that go on to the next branch.
    """

    by: None = None
    on: tuple[type[Exception], ...] = (Exception,)

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run the branches in order until one succeeds; a stream, once its first item is there."""
        value = single(value, self.name)
        if self.only_streams:
            return self.later(self._items, value, ctx)
        return await self._first(value, ctx)

    async def _items(self, value: Any, ctx: Context) -> AsyncGenerator[Any, None]:
        async with aclosing(await self._first(value, ctx)) as items:
            async for item in items:
                yield item

    async def _first(self, value: Any, ctx: Context) -> Any:
        errors: list[Exception] = []
        for branch in self.branches:
            try:
                result = await branch.attempt(value, ctx)
                return await result.peek() if isinstance(result, Stream) else result
            except self.on as error:
                if is_client_error(error) or not is_repeatable(value, error):
                    raise
                errors.append(error)
        raise _first_of(errors, f"fallback {self.name!r}")


@dataclass(frozen=True)
class Optional(Branching):
    """Its one branch's result, or a default when that fails or is late.

    Args:
        default: What stands for the result.
        timeout_s: Seconds that the branch may take, or ``None``.
    """

    default: Any = None
    timeout_s: float | None = None

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run the branch; a client's error alone is raised."""
        value = single(value, self.name)
        attempt = partial(self.branches[0].attempt, value, ctx)
        try:
            if self.timeout_s is None:
                return await attempt()
            return await within(self.timeout_s, attempt)
        except DeadlinePassed:
            why = f"took longer than timeout_s={self.timeout_s:g}"
        except Exception as error:
            if is_client_error(error):
                raise
            why = f"failed with {error!r}"
        logger.warning(
            "request %s: %r returns its default: %r %s",
            ctx.request_id,
            self.name,
            self.branches[0].goes_by or "its branch",
            why,
        )
        metrics.count("optional_defaults", ctx.pipeline, self.name)
        ctx.timings_s.setdefault(f"{self.name}.default", 0.0)  # seen in Server-Timing
        return self.default


@dataclass(frozen=True)
class Race(Branching):
    """All branches at once, and the first that succeed.

    Args:
        need: How many must succeed: one result for 1, else a tuple in the order they came.
    """

    need: int = 1

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run the branches until so many have succeeded; the others are cancelled."""
        value = single(value, self.name)
        running = {asyncio.ensure_future(b.attempt(value, ctx)) for b in self.branches}
        tasks = tuple(running)
        results: list[Any] = []
        errors: list[Exception] = []
        try:
            while len(results) < self.need:
                if len(running) < self.need - len(results):
                    raise _first_of(errors, f"race {self.name!r}")
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    try:
                        results.append(task.result())
                    except Exception as error:
                        if is_client_error(error):
                            raise
                        errors.append(error)
        finally:
            await cancel(*tasks)
        return results[0] if self.need == 1 else tuple(results[: self.need])


@dataclass(frozen=True)
class Hedged(Wrapping):
    """A node that is called a second time when the first call is slow, within a budget.

    Args:
        hedge: When, and how often.
    """

    hedge: Hedge

    async def _run(self, value: Any, ctx: Context) -> Any:
        name = self.goes_by
        budget = ctx.engine.state(f"hedges of {name}", partial(Budget, self.hedge.budget, 0))
        budget.request()
        first = asyncio.ensure_future(self.body.attempt(value, ctx))
        second: asyncio.Task[Any] | None = None
        try:
            await asyncio.wait({first}, timeout=self.hedge.after_s)
            if first.done() or not budget.spend():
                return await first
            metrics.count("hedges", ctx.pipeline, name)
            second = asyncio.ensure_future(self.body.attempt(value, ctx))
            ended, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
            winner = first if first in ended else second
            loser = second if winner is first else first
            return await (loser if winner.exception() is not None else winner)
        finally:
            await cancel(first, second)


def _first_of(errors: list[Exception], node: str) -> Exception:
    """The first error, with the others in its notes."""
    first, *others = errors
    for other in others:
        stage = failed_stage(other)
        add_note(first, f"{node} also failed{f' in {stage!r}' if stage else ''} with {other!r}")
    return first
