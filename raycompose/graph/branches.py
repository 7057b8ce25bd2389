"""Nodes that branch. Only the chosen branch runs; what runs at once is cancelled together."""

import asyncio
import dataclasses
import hashlib
import logging
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raycompose import _serve
from raycompose.errors import NoMatchError, add_note, is_client_error, mark
from raycompose.flow.arguments import single
from raycompose.flow.concurrency import gather
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
        return single(value, self.name)


@dataclass(frozen=True)
class _Branching(Node):
    """A node with branches."""

    branches: tuple[Node, ...]

    @property
    def children(self) -> tuple[Node, ...]:
        """The branches, in the order written."""
        return self.branches

    def with_children(self, children: tuple[Node, ...]) -> "_Branching":
        """Return the node with other branches."""
        return dataclasses.replace(self, branches=children)

    @property
    def entries(self) -> tuple[Stage, ...]:
        """The branches' entries: each branch gets the node's own input."""
        return tuple(stage for branch in self.branches for stage in branch.entries)


@dataclass(frozen=True)
class _Choosing(_Branching):
    """A node whose result is that of one of its branches."""

    @property
    def takes_stream(self) -> bool:
        """Whether all branches do, and the choice asks nothing of the value."""
        return self._blind and all(branch.takes_stream for branch in self.branches)

    @property
    def _blind(self) -> bool:
        """Whether the branch is chosen without a look at the value."""
        return False

    @property
    def exits(self) -> tuple[Stage, ...]:
        """The branches' exits."""
        return tuple(stage for branch in self.branches for stage in branch.exits)


@dataclass(frozen=True)
class Parallel(_Branching):
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
class Switch(_Choosing):
    """The branch that a key of the value names.

    Args:
        on: A function of the value; or a key of a mapping, else an attribute's name.
        keys: The key of each branch; one branch more than keys is the default.
    """

    on: Callable[[Any], Any] | str
    keys: tuple[Any, ...]

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run the branch that matches, or the default.

        Raises:
            NoMatchError: No branch has the key, and there is no default.
        """
        value = single(value, self.name)
        branch = self._choose(value)
        return await branch.run(value, ctx)

    def _choose(self, value: Any) -> Node:
        try:
            key = self._key(value)
            branch = self._table.get(key, self._default) if _hashable(key) else self._default
            if branch is None:
                raise self._no_match(_short(key))
            return branch
        except Exception as error:
            mark(error, self.name)
            raise

    @cached_property
    def _table(self) -> dict[Any, Node]:
        return dict(zip(self.keys, self.branches, strict=False))

    @property
    def _default(self) -> Node | None:
        return self.branches[-1] if len(self.branches) > len(self.keys) else None

    def _key(self, value: Any) -> Any:
        if not isinstance(self.on, str):
            return self.on(value)
        try:
            return value[self.on] if isinstance(value, Mapping) else getattr(value, self.on)
        except (KeyError, AttributeError):
            if self._default is not None:
                return _MISSING
            looked_in = "key" if isinstance(value, Mapping) else "attribute"
            got = f"the value ({type(value).__name__}) has no {looked_in} {self.on!r}"
            raise self._no_match(got) from None

    def _no_match(self, key: str) -> NoMatchError:
        return NoMatchError(self.name, key, tuple(_short(k) for k in self.keys))


_MISSING = object()


@dataclass(frozen=True)
class Truth:
    """A predicate as the key of a switch: exactly ``True`` or ``False``."""

    predicate: Callable[[Any], Any]

    def __call__(self, value: Any) -> bool:
        """Whether the predicate holds of the value."""
        return bool(self.predicate(value))


@dataclass(frozen=True)
class Split(_Choosing):
    """One branch, by chance or by a key.

    Args:
        weights: Percent of each branch; they sum to 100.
        key: A function of the value; the same key always goes the same way, in every process.
    """

    weights: tuple[float, ...]
    key: Callable[[Any], Any] | None = None

    @property
    def _blind(self) -> bool:
        return self.key is None

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run the branch that is drawn."""
        value = single(value, self.name)
        point = random.random() * 100 if self.key is None else self._point(value)
        for branch, weight in zip(self.branches, self.weights, strict=True):
            point -= weight
            if point < 0:
                return await branch.run(value, ctx)
        return await self.branches[-1].run(value, ctx)  # the weights' sum, rounded, was below 100

    def _point(self, value: Any) -> float:
        """Where a key falls between 0 and 100; Python's own hash differs between processes."""
        try:
            key = self.key(value)  # type: ignore[misc]  # run() has looked
        except Exception as error:
            mark(error, self.name)
            raise
        if not _is_stable(key):
            unstable = TypeError(
                f"the key function of {self.name!r} gave {type(key).__name__}, whose text may "
                "differ between processes: give a str, bytes, number, None, or a tuple of these"
            )
            mark(unstable, self.name)
            raise unstable
        text = key if isinstance(key, bytes) else f"{type(key).__name__}:{key!r}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 * 100


@dataclass(frozen=True)
class Shadow(_Branching):
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
            if len(self._running) >= self.max_in_flight:
                metrics.shadow_dropped(ctx.pipeline, self.name)
            else:
                task = _serve.detached(self._mirror(value, ctx.detached()))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
        return value

    @cached_property
    def _running(self) -> set[asyncio.Task[None]]:
        return set()

    async def _mirror(self, value: Any, ctx: Context) -> None:
        try:
            result = await self.branches[0].run(value, ctx)
            if isinstance(result, Stream):
                async for _ in result:
                    pass
        except Exception:
            logger.warning(
                "shadow %r failed; the request is not affected", self.name, exc_info=True
            )

    @property
    def streams(self) -> bool:
        """Never: the input is passed on."""
        return False


@dataclass(frozen=True)
class Each(_Branching):
    """Its one branch applied to every item of a list.

    Args:
        max_concurrency: How many items are under way at once.
        return_exceptions: Put an item's error in its place rather than raise the first.
    """

    max_concurrency: int = 8
    return_exceptions: bool = False

    async def run(self, value: Any, ctx: Context) -> list[Any]:
        """Give the results in the items' order."""
        items = single(value, self.name)
        if not isinstance(items, list | tuple):
            error = TypeError(
                f"{self.name!r} takes a list (or a tuple), but got {type(items).__name__}"
            )
            mark(error, self.name)
            raise error
        free = asyncio.Semaphore(self.max_concurrency)

        async def one(item: Any) -> Any:
            async with free:
                try:
                    return await self.branches[0].run(item, ctx)
                except Exception as error:
                    if self.return_exceptions:
                        return error
                    raise

        return await gather(*(one(item) for item in items))

    @property
    def entries(self) -> tuple[Stage, ...]:
        """None: the branch gets the items of the input."""
        return ()


@dataclass(frozen=True)
class Fallback(_Choosing):
    """The first branch that succeeds, the same input to each.

    Args:
        on: The exceptions that go on to the next branch.
    """

    on: tuple[type[Exception], ...] = (Exception,)

    @property
    def _blind(self) -> bool:
        return True

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
                result = await branch.run(value, ctx)
                return await result.peek() if isinstance(result, Stream) else result
            except self.on as error:
                if is_client_error(error) or (isinstance(value, Stream) and value.started):
                    raise
                errors.append(error)
        first, *others = errors
        for other in others:
            add_note(first, f"fallback {self.name!r} also failed with {other!r}")
        raise first


def _is_stable(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(map(_is_stable, key))
    return key is None or type(key) in (str, bytes, int, float, bool)


def _hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _short(key: Any) -> str:
    text = "a missing key" if key is _MISSING else repr(key)
    return text if len(text) <= 80 else f"{text[:77]}..."
