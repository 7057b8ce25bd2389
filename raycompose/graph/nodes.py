"""The graph: immutable, picklable nodes, each with one coroutine from value to value."""

import asyncio
import dataclasses
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterator,
)
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar, cast

from ray import ObjectRef

from raycompose.flow import concurrency
from raycompose.flow.arguments import Arguments
from raycompose.flow.deadlines import HEADER, note_interrupted, remaining_s
from raycompose.flow.references import Ref, awaited
from raycompose.flow.request import Request, settled
from raycompose.flow.streams import Stream
from raycompose.graph.calling import Args, Kwargs
from raycompose.graph.context import Context, raise_named
from raycompose.graph.signatures import PassBy, Signature, takes_iterator
from raycompose.graph.targets import Target

N = TypeVar("N", bound="Node")


@dataclass(frozen=True)
class Node:
    """A part of a graph.

    Args:
        label: What the node calls itself: the deployment's or the function's name, or ``name=``.
        name: The label made unique in its pipeline; what errors, metrics and pictures use.
    """

    label: str
    name: str = dataclasses.field(default="", kw_only=True)

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what a node has cached or started stays in its process."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    async def run(self, value: Any, ctx: Context) -> Any:
        """Give the node's result for ``value``; a ``Stream`` when it streams."""
        raise NotImplementedError

    async def run_item(self, item: Any, ctx: Context) -> Any:
        """Give the node's result for one of many items: what it started is over with it."""
        if not self.starts_beside:
            return await self.run(item, ctx)
        return await self._run_within(item, ctx.scope())

    async def attempt(self, value: Any, ctx: Context) -> Any:
        """Give the node's result for ``value``, where the request may go on if it fails."""
        if not self.starts_beside:
            return await self.run(value, ctx)
        scope = ctx.scope()
        result = await self._run_within(value, scope)
        ctx.on_failure(scope.abandon)  # what the request goes on with: later failures cancel it
        return result

    async def _run_within(self, value: Any, scope: Context) -> Any:
        try:
            return scope.given_to(await self.run(value, scope))
        except BaseException:
            scope.abandon()
            raise

    @cached_property
    def starts_beside(self) -> bool:
        """Whether anything inside is started without being waited for."""
        return any(child.starts_beside for child in self.children)

    async def refer(self, value: Any, ctx: Context) -> Any:
        """Start the node and give a ``Ref`` to its result, without waiting for it."""
        return Ref(ctx.start(self.run(value, ctx)), self.goes_by or None)

    @cached_property
    def goes_by(self) -> str:
        """What names the node where something waits for it; empty for mere steps in a row."""
        return self.name

    @property
    def children(self) -> tuple["Node", ...]:
        """The nodes inside this one, in reading order."""
        return ()

    def with_children(self: N, children: tuple["Node", ...]) -> N:
        """Return the node with other nodes inside."""
        return self

    @property
    def first(self) -> "Stage | None":
        """The stage that the pipeline's arguments reach unchanged, if it is a single one."""
        return None

    @property
    def entries(self) -> tuple["Stage", ...]:
        """The stages that the node gives its input to."""
        return ()

    @property
    def exits(self) -> tuple["Stage", ...]:
        """The stages that the node's result comes from, if it is one of theirs."""
        return ()

    @cached_property
    def streams(self) -> bool:
        """Whether the result may be a stream."""
        return any(child.streams for child in self.children)

    @cached_property
    def only_streams(self) -> bool:
        """Whether the result is a stream whatever the input."""
        return self.streams and all(child.only_streams for child in self.children)

    @property
    def takes_stream(self) -> bool:
        """Whether the node takes a stream whole rather than item by item."""
        return False

    @property
    def takes_reference(self) -> bool:
        """Whether the node takes a reference rather than wait for its input."""
        return False

    @property
    def passes_on(self) -> bool:
        """Whether the node's result is its input, as it is."""
        return False

    @property
    def portable(self) -> bool:
        """Whether the node can run in another replica as well."""
        return all(stage.target.portable for stage in stages(self))

    def later(
        self, items: Callable[[Any, Context], AsyncGenerator[Any, None]], value: Any, ctx: Context
    ) -> Stream[Any]:
        """Return ``items(value, ctx)`` as a stream that begins where its first item is asked for.

        Args:
            items: A method of the node's.
            value: The node's input.
            ctx: The request's.
        """
        taken = value.portable if isinstance(value, Stream) else not isinstance(value, Ref)
        scope = ctx.scope() if self.starts_beside else ctx
        stream = Stream(partial(items, value, scope), portable=self.portable and taken)
        return stream if scope is ctx else scope.given_to(stream)


@dataclass(frozen=True)
class Stage(Node):
    """A node that calls something of the user's.

    Args:
        target: What is called, and how.
        signature: What it takes and gives.
    """

    target: Target
    signature: Signature

    async def run(self, value: Any, ctx: Context, *, leave: bool = False) -> Any:
        """Call the target with ``value``, in the way that its signature asks for.

        Args:
            value: The input.
            ctx: The request's.
            leave: Whether a ``Ref`` will do for a result that is better not fetched.
        """
        if self.signature.streams:
            args, kwargs = await self._prepared(value, ctx)
            return Stream(partial(self._items, args, kwargs, ctx), portable=self.target.portable)
        target, began = self.target, time.perf_counter()
        try:  # as `with ctx.at(...)`, which takes longer
            if self._takes_values and type(value) not in _CARRIERS:
                args, kwargs = self.signature.arguments(value)
            else:
                args, kwargs = await self._arguments(value, ctx)
            result = await (target.leave if leave else target.call)(args, kwargs, ctx)
        except BaseException as raised:
            cause = None
            if isinstance(value, Ref) and isinstance(raised, Exception):
                cause = await value.failed()
            ctx.end(self.name, began, cause or raised)
            if cause is None:
                raise
            # The failure of an upstream that it was given by reference is the upstream's.
            raise cause from None
        ctx.end(self.name, began)
        if leave and isinstance(result, ObjectRef):
            return Ref(result, self.name, value if isinstance(value, Ref) else None)
        return settled(result, args)

    async def refer(self, value: Any, ctx: Context) -> Any:
        """Start the target and give a ``Ref`` to its result, or a ``Stream``, without waiting."""
        if self.signature.streams:
            return await self.run(value, ctx)
        if not self.target.starts:
            return await super().refer(value, ctx)
        args, kwargs = await self._prepared(value, ctx)
        began = time.perf_counter()
        try:
            started = await self.target.start(args, kwargs, ctx)
        except asyncio.CancelledError:
            note_interrupted(self.name)
            raise
        except Exception as error:
            raise_named(error, self.name, ctx.request_id)
            raise
        ref = Ref(started, self.name, value if isinstance(value, Ref) else None, began)
        concurrency.keep(self._time(ref, began, ctx))
        return ref

    async def _time(self, ref: "Ref[Any]", began: float, ctx: Context) -> None:
        await ref.done()
        ctx.record(self.name, time.perf_counter() - began)

    async def _prepared(self, value: Any, ctx: Context) -> tuple[Args, Kwargs]:
        """The arguments for a call that is timed when it ends, not here."""
        try:
            return await self._arguments(value, ctx)
        except Exception as error:
            raise_named(error, self.name, ctx.request_id)
            raise

    async def _items(self, args: Args, kwargs: Kwargs, ctx: Context) -> AsyncGenerator[Any, None]:
        with ctx.at(self.name):
            async with aclosing(self.target.stream(args, kwargs, ctx)) as items:
                async for item in items:
                    yield settled(item, args)

    async def _arguments(self, value: Any, ctx: Context) -> tuple[Args, Kwargs]:
        if type(value) is Arguments:
            args, kwargs = value.args, value.kwargs
            if self.signature.takes == "reference":
                args, kwargs = await _first_by_reference(self, args, kwargs, ctx)
        else:
            args, kwargs = await _ARGUMENTS[self.signature.takes](self, value, ctx)
        return self.signature.in_order(args, kwargs) if self.signature.batched else (args, kwargs)

    @cached_property
    def _takes_values(self) -> bool:
        """Whether a plain value is an argument as it is, which most are."""
        return self.signature.takes == "value" and not self.signature.batched

    @property
    def first(self) -> "Stage":
        """The stage itself."""
        return self

    @property
    def entries(self) -> tuple["Stage", ...]:
        """The stage itself."""
        return (self,)

    @property
    def exits(self) -> tuple["Stage", ...]:
        """The stage itself."""
        return (self,)

    @cached_property
    def streams(self) -> bool:
        """Whether the target is a generator."""
        return self.signature.streams

    @cached_property
    def takes_stream(self) -> bool:
        """Whether the first parameter asks for a stream, or for an iterator."""
        return self.signature.takes == "stream" or takes_iterator(self.signature)

    @property
    def takes_reference(self) -> bool:
        """Whether the first parameter asks for a reference."""
        return self.signature.takes == "reference"


async def _by_value(stage: Stage, value: Any, ctx: Context) -> tuple[Args, Kwargs]:
    if isinstance(value, Ref):
        # Ray fetches an ObjectRef where it is needed; what this process holds is awaited here.
        value = value.item if stage.target.remote else await value
        value = await awaited(value)
    elif isinstance(value, Stream) and stage.target.remote:
        value = await value.sendable()
    return stage.signature.arguments(value)


async def _by_request(stage: Stage, value: Any, ctx: Context) -> tuple[Args, Kwargs]:
    request = Request.of(await awaited(value), ctx.http_scope)
    left_s = remaining_s()
    return (request if left_s is None else request.with_header(HEADER, f"{left_s:.3f}"),), {}


async def _by_reference(stage: Stage, value: Any, ctx: Context) -> tuple[Args, Kwargs]:
    ref = value if isinstance(value, Ref) else Ref.to(value)
    if stage.target.remote or stage.signature.streams:
        ref = await ref.sendable()  # a stream may be iterated elsewhere
    return ([ref.item] if stage.signature.wraps_ref else ref,), {}


async def _first_by_reference(
    stage: Stage, args: Args, kwargs: Kwargs, ctx: Context
) -> tuple[Args, Kwargs]:
    """A call's arguments with a reference for the first parameter's, as for one value."""
    name = stage.signature.parameters[0].name
    if args:
        (first,), _ = await _by_reference(stage, args[0], ctx)
        return (first, *args[1:]), kwargs
    if name in kwargs:
        (first,), _ = await _by_reference(stage, kwargs[name], ctx)
        return args, {**kwargs, name: first}
    return args, kwargs


async def _by_stream(stage: Stage, value: Any, ctx: Context) -> tuple[Args, Kwargs]:
    value = await awaited(value)
    if not isinstance(value, Stream):
        raise TypeError(
            f"stage {stage.name!r} takes a stream, but got {type(value).__name__}: "
            "put a stage that yields its items before it"
        )
    return (await value.sendable() if stage.target.remote else value,), {}


_CARRIERS = frozenset({Arguments, Ref, Stream})
"""What a value may come in."""

_ARGUMENTS: dict[PassBy, Callable[[Stage, Any, Context], Awaitable[tuple[Args, Kwargs]]]] = {
    "value": _by_value,
    "request": _by_request,
    "reference": _by_reference,
    "stream": _by_stream,
}


def walk(node: Node) -> Iterator[Node]:
    """Give a node and all that is inside it, in reading order."""
    yield node
    for child in node.children:
        yield from walk(child)


def stages(node: Node) -> Iterator[Stage]:
    """Give the stages of a graph, in reading order."""
    return (n for n in walk(node) if isinstance(n, Stage))


def deployments(node: Node) -> set[Any]:
    """Return what tells apart the deployments that a graph calls."""
    return {s.target.deployment for s in stages(node)} - {None}


def transform(node: N, change: Callable[[Node], Node]) -> N:
    """Return the graph with ``change`` applied to every node, outermost first."""
    changed = cast("N", change(node))
    if not changed.children:
        return changed
    return changed.with_children(tuple(transform(child, change) for child in changed.children))


def named(root: N) -> N:
    """Return the graph with every node's label made unique: ``Model``, ``Model_2``."""
    taken: set[str] = set()

    def rename(node: Node) -> Node:
        if not node.label:
            return node
        name, number = node.label, 1
        while name in taken:
            number += 1
            name = f"{node.label}_{number}"
        taken.add(name)
        return dataclasses.replace(node, name=name)

    return transform(root, rename)
