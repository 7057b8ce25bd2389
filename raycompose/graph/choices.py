"""Nodes that choose one branch: by a key of the value, or by weight."""

import dataclasses
import hashlib
import inspect
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from raycompose.errors import HTTPError, NoMatchError, refuse_signal
from raycompose.flow.arguments import single
from raycompose.flow.references import awaited
from raycompose.graph.branches import Branching
from raycompose.graph.context import Context, raise_named
from raycompose.graph.nodes import Node, Stage

Decider: TypeAlias = Callable[[Any], Any] | str | Node
"""A function or ``async def`` of the value; a key of a mapping, else an attribute; or a graph."""


async def decide(by: Decider, value: Any, ctx: Context) -> Any:
    """Return what a decider makes of the value; ``MISSING`` if it has no such key or attribute."""
    value = await awaited(value)
    if isinstance(by, Node):
        return await by.run(value, ctx)
    if isinstance(by, str):
        try:
            return value[by] if isinstance(value, Mapping) else getattr(value, by)
        except (KeyError, AttributeError):
            return MISSING
    try:
        decision = by(value)
        return await decision if inspect.isawaitable(decision) else decision
    except BaseException as raised:
        refuse_signal(raised, "the function that decides")
        raise


MISSING = object()


@dataclass(frozen=True)
class Choosing(Branching):
    """A node whose result is that of one of its branches.

    Args:
        by: What decides on the branch; ``None``: chosen without a look at the value.
    """

    by: Decider | None

    @property
    def children(self) -> tuple[Node, ...]:
        """The branches, in the order written, and then the graph that decides."""
        return (*self.branches, self.by) if isinstance(self.by, Node) else self.branches

    def with_children(self, children: tuple[Node, ...]) -> "Choosing":
        """Return the node with other branches, and another graph that decides."""
        branches, deciding = children[: len(self.branches)], children[len(self.branches) :]
        return dataclasses.replace(self, branches=branches, by=deciding[0] if deciding else self.by)

    @cached_property
    def streams(self) -> bool:
        """Whether a branch may."""
        return any(branch.streams for branch in self.branches)

    @cached_property
    def only_streams(self) -> bool:
        """Whether all branches do, whatever the input."""
        return all(branch.only_streams for branch in self.branches)

    @property
    def takes_stream(self) -> bool:
        """Whether all branches do, and the choice asks nothing of the value."""
        return self.by is None and all(branch.takes_stream for branch in self.branches)

    @property
    def exits(self) -> tuple[Stage, ...]:
        """The branches' exits."""
        return tuple(stage for branch in self.branches for stage in branch.exits)


@dataclass(frozen=True)
class Switch(Choosing):
    """The branch whose key the value has.

    Args:
        by: What gives the key.
        keys: The key of each branch; one branch more than keys is the default.
        by_truth: The keys are ``True`` and ``False``, for what holds of the value and what not.
    """

    by: Decider
    keys: tuple[Any, ...]
    by_truth: bool = False

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run the branch that matches, or the default.

        Raises:
            NoMatchError: No branch has the key, and there is no default.
        """
        value = single(value, self.name)
        try:
            key = await decide(self.by, value, ctx)
            branch = self._branch(bool(key) if self.by_truth else key)
            if branch is None:
                keys = tuple(_short(k) for k in self.keys)
                raise NoMatchError(self.name, await self._described(key, value), keys)
        except Exception as error:
            raise_named(error, self.name, ctx.request_id)
            raise
        return await branch.run(value, ctx)

    def _branch(self, key: Any) -> Node | None:
        default = self.branches[-1] if len(self.branches) > len(self.keys) else None
        return self._table.get(key, default) if _is_hashable(key) else default

    @cached_property
    def _table(self) -> dict[Any, Node]:
        return dict(zip(self.keys, self.branches, strict=False))

    async def _described(self, key: Any, value: Any) -> str:
        if key is not MISSING:
            return _short(key)
        value = await awaited(value)
        looked_in = "key" if isinstance(value, Mapping) else "attribute"
        return f"a value ({type(value).__name__}) without the {looked_in} {self.by!r}"


@dataclass(frozen=True)
class Split(Choosing):
    """One branch, by chance or by a key.

    Args:
        by: What gives the key: the same key always goes the same way, in every process.
        weights: Percent of each branch; they sum to 100.
    """

    weights: tuple[float, ...]

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run the branch that is drawn."""
        value = single(value, self.name)
        point = random.random() * 100 if self.by is None else await self._point(value, ctx)
        for branch, weight in zip(self.branches, self.weights, strict=True):
            if weight > 0:
                chosen = branch
            point -= weight
            if point < 0:
                break
        return await chosen.run(value, ctx)  # the last, where the sum, rounded, was below 100

    async def _point(self, value: Any, ctx: Context) -> float:
        """Where a key falls between 0 and 100; Python's own hash differs between processes."""
        try:
            key = await decide(self.by or "", value, ctx)
            if key is MISSING:
                raise HTTPError(422, f"{self.name!r} chooses by {self.by!r}, which is missing")
            if not _is_stable(key) and isinstance(self.by, str):
                kind = type(key).__name__
                raise HTTPError(422, f"{self.name!r} chooses by {self.by!r}, which is no {kind}")
            if not _is_stable(key):
                raise TypeError(
                    f"the key of {self.name!r} is {type(key).__name__}, whose text may differ "
                    "between processes: return a str, bytes, number, None, or a tuple of these"
                )
        except Exception as error:
            raise_named(error, self.name, ctx.request_id)
            raise
        text = key if isinstance(key, bytes) else f"{type(key).__name__}:{key!r}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 * 100


def _is_stable(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(map(_is_stable, key))
    return key is None or type(key) in (str, bytes, int, float, bool)


def _is_hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _short(key: Any) -> str:
    text = repr(key)
    return text if len(text) <= 80 else f"{text[:77]}..."
