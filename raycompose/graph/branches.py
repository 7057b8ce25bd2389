"""Nodes with branches that all run: at once, on each item, or beside the request."""

import asyncio
import dataclasses
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raycompose import _serve
from raycompose.errors import mark, mark_item
from raycompose.flow import deadlines
from raycompose.flow.arguments import single
from raycompose.flow.concurrency import gather, map_bounded
from raycompose.flow.references import awaited
from raycompose.flow.streams import Stream
from raycompose.graph import metrics
from raycompose.graph.context import Context
from raycompose.graph.nodes import Node, Stage

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Passthrough(Node):
    """The identity."""

    label: str = "passthrough"

    async def run(self, value: Any, ctx: Context) -> Any:
        """Give the value itself."""
        value = single(value, self.name)
        return await awaited(value)

    @property
    def passes_on(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class Branching(Node):
    """A node with branches."""

    branches: tuple[Node, ...]

    @property
    def children(self) -> tuple[Node, ...]:
        """The branches, in the order written."""
        return self.branches

    def with_children(self, children: tuple[Node, ...]) -> "Branching":
        """Return the node with other branches."""
        return dataclasses.replace(self, branches=children)

    @property
    def entries(self) -> tuple[Stage, ...]:
        """The branches' entries: each branch gets the node's own input."""
        return tuple(stage for branch in self.branches for stage in branch.entries)

    @property
    def takes_reference(self) -> bool:
        """Whether a branch does; the others, and what looks at the value, wait for it."""
        return any(branch.takes_reference for branch in self.branches)


@dataclass(frozen=True)
class Parallel(Branching):
    """The same input to all branches at once.

    Args:
        keys: The keys of the dict to give, or ``None`` to give a tuple.
    """

    keys: tuple[str, ...] | None = None

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run all branches; the first failure cancels the others and is raised."""
        value = single(value, self.name)
        results = await gather(*(branch.run(value, ctx) for branch in self.branches))
        return tuple(results) if self.keys is None else dict(zip(self.keys, results, strict=True))


@dataclass(frozen=True)
class Assign(Parallel):
    """The input, which is a mapping, with each branch's result under its key."""

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run all branches on the mapping."""
        value = await _mapping(value, self.name, ctx)
        return {**value, **await super().run(value, ctx)}


@dataclass(frozen=True)
class Pick(Node):
    """One value of a mapping, or a mapping of fewer.

    Args:
        keys: Which; one: the value itself.
    """

    keys: tuple[Any, ...]

    async def run(self, value: Any, ctx: Context) -> Any:
        """Give what the mapping has under the keys."""
        value = await _mapping(value, self.name, ctx)
        missing = [key for key in self.keys if key not in value]
        if missing:
            error = LookupError(
                f"{self.name!r} finds no {', '.join(map(repr, missing))}; "
                f"the mapping has {', '.join(map(repr, value)) or 'nothing'}"
            )
            raise mark(error, self.name, ctx.request_id)
        return value[self.keys[0]] if len(self.keys) == 1 else {k: value[k] for k in self.keys}


async def _mapping(value: Any, node: str, ctx: Context) -> Mapping[Any, Any]:
    value = single(value, node)
    value = await awaited(value)
    if not isinstance(value, Mapping):
        error = TypeError(f"{node!r} takes a mapping, but got {type(value).__name__}")
        raise mark(error, node, ctx.request_id)
    return value


@dataclass(frozen=True)
class Shadow(Branching):
    """Passes its input on and mirrors a share of it to its one branch.

    Args:
        percent: The share that is mirrored.
        max_in_flight: How many mirrored calls may run at once in one process; more are dropped.
    """

    percent: float = 100
    max_in_flight: int = 16

    async def run(self, value: Any, ctx: Context) -> Any:
        """Give the value itself, at once."""
        value = single(value, self.name)
        if random.random() * 100 < self.percent:
            running: set[asyncio.Task[None]] = ctx.engine.state(self.name, set)
            if len(running) >= self.max_in_flight:
                metrics.count("shadow_dropped", ctx.pipeline, self.name)
            else:
                task = _serve.detached(self._mirror(value, ctx.detached()))
                running.add(task)
                task.add_done_callback(running.discard)
        return value

    async def _mirror(self, value: Any, ctx: Context) -> None:
        deadlines.leave()
        try:
            result = await self.branches[0].attempt(value, ctx)
            if isinstance(result, Stream):
                async for _ in result:
                    pass
        except Exception as error:
            ctx.count_failure(error)
            logger.warning(
                "shadow %r failed; the request is not affected", self.name, exc_info=True
            )

    @property
    def passes_on(self) -> bool:
        """Always."""
        return True

    @property
    def streams(self) -> bool:
        """Never: the input is passed on."""
        return False

    @property
    def takes_reference(self) -> bool:
        """Never: what is mirrored is the value."""
        return False


@dataclass(frozen=True)
class Each(Branching):
    """Its one branch applied to every item of a list.

    Args:
        max_concurrency: How many items are under way at once.
        return_exceptions: Put an item's error in its place rather than raise the first.
    """

    max_concurrency: int = 8
    return_exceptions: bool = False

    async def run(self, value: Any, ctx: Context) -> list[Any]:
        """Give the results in the items' order."""
        items = await awaited(single(value, self.name))
        if not isinstance(items, list | tuple):
            error = TypeError(
                f"{self.name!r} takes a list (or a tuple), but got {type(items).__name__}"
            )
            raise mark(error, self.name, ctx.request_id)

        async def one(index: int, item: Any) -> Any:
            try:
                return await self.branches[0].run_item(item, ctx)
            except Exception as error:
                if self.return_exceptions:
                    return error
                mark_item(error, index, self.name)
                raise

        return await map_bounded(one, items, self.max_concurrency)

    @property
    def takes_reference(self) -> bool:
        """Never: the branch gets the items of the input."""
        return False

    @property
    def entries(self) -> tuple[Stage, ...]:
        """None: the branch gets the items of the input."""
        return ()
