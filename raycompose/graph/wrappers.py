"""Nodes around one other: a name, limits, a line to wait in."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from raycompose.flow.streams import Stream
from raycompose.graph.context import Call, Context
from raycompose.graph.limits import Limits, is_repeatable
from raycompose.graph.nodes import Node, Stage


@dataclass(frozen=True)
class Wrapping(Node):
    """A node around one other, with the same input and result. It may have a name of its own."""

    body: Node

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run the body; its time and its failures have this node's name, too."""
        if self.only_streams:
            return self.later(self._items, value, ctx)
        if not self.name:
            return await self._run(value, ctx)
        with ctx.at(self.name):
            return await self._run(value, ctx)

    async def _items(self, value: Any, ctx: Context) -> AsyncGenerator[Any, None]:
        with self._at(ctx):
            async with aclosing(await self._run(value, ctx)) as items:
                async for item in items:
                    yield item

    async def _run(self, value: Any, ctx: Context) -> Any:
        raise NotImplementedError

    def _at(self, ctx: Context) -> Call | nullcontext[None]:
        return ctx.at(self.name) if self.name else nullcontext()

    @cached_property
    def goes_by(self) -> str:
        """Its own name, or what its body goes by."""
        return self.name or self.body.goes_by

    @property
    def children(self) -> tuple[Node, ...]:
        """The body."""
        return (self.body,)

    def with_children(self, children: tuple[Node, ...]) -> "Wrapping":
        """Return the same around another body."""
        return dataclasses.replace(self, body=children[0])

    @property
    def first(self) -> Stage | None:
        """The body's first stage."""
        return self.body.first

    @property
    def entries(self) -> tuple[Stage, ...]:
        """The body's."""
        return self.body.entries

    @property
    def exits(self) -> tuple[Stage, ...]:
        """The body's."""
        return self.body.exits

    @property
    def passes_on(self) -> bool:
        """Whether the body does."""
        return self.body.passes_on

    @property
    def takes_stream(self) -> bool:
        """Whether the body does."""
        return self.body.takes_stream

    @property
    def takes_reference(self) -> bool:
        """Whether the body does."""
        return self.body.takes_reference


@dataclass(frozen=True)
class Named(Wrapping):
    """A sub-pipeline with a name of its own."""

    async def _run(self, value: Any, ctx: Context) -> Any:
        return await self.body.run(value, ctx)


@dataclass(frozen=True)
class Limited(Wrapping):
    """A node under a deadline and a retry policy; without a label it goes by its body's name."""

    limits: Limits

    async def _run(self, value: Any, ctx: Context) -> Any:
        async def attempt() -> Any:
            result = await self.body.attempt(value, ctx)
            # A stream may be tried again until its first item.
            return await result.peek() if isinstance(result, Stream) else result

        return await self.limits.run(self.goes_by, ctx, attempt, partial(is_repeatable, value))


@dataclass(frozen=True)
class Gated(Wrapping):
    """A node that a few requests at once may be in; the others wait in line.

    Args:
        lines: The lines to wait in, one after the other, each with how many requests of one engine
            it lets in at once. Other nodes may have the same.
    """

    lines: tuple[tuple[str, int], ...]

    async def _run(self, value: Any, ctx: Context) -> Any:
        async with self._entered(ctx):
            return await self.body.run(value, ctx)

    async def _items(self, value: Any, ctx: Context) -> AsyncGenerator[Any, None]:
        async with self._entered(ctx), aclosing(await self.body.run(value, ctx)) as items:
            async for item in items:
                yield item

    @asynccontextmanager
    async def _entered(self, ctx: Context) -> AsyncIterator[None]:
        async with AsyncExitStack() as entered:
            for line, at_once in self.lines:
                make = partial(asyncio.Semaphore, at_once)
                await entered.enter_async_context(ctx.engine.state(line, make))
            yield

    @property
    def portable(self) -> bool:
        """Never: the line is in this process."""
        return False
