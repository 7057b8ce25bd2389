"""A graph that begins with a combinator: each branch converts what was sent to the pipeline."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

from starlette.requests import Request as StarletteRequest

from raycompose.errors import HTTPError, mark
from raycompose.flow.references import Ref
from raycompose.graph.affinity import Sticky
from raycompose.graph.branches import Assign, Branching, Each, Pick
from raycompose.graph.choices import Choosing
from raycompose.graph.context import Context
from raycompose.graph.loops import Loop
from raycompose.graph.nodes import Node, walk
from raycompose.graph.sequences import Sequence
from raycompose.graph.signatures import describe
from raycompose.graph.wrappers import Wrapping
from raycompose.http.conversion import Conversion
from raycompose.http.decoding import hinted


@dataclass(frozen=True)
class Entering(Wrapping):
    """Converts what was sent over HTTP before its body runs on it, as is done for a first stage.

    Args:
        convert: Makes the body's input of what was sent.
    """

    convert: Callable[[Any], Any]

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run the body on the converted value.

        Raises:
            HTTPError: The value does not fit: 422.
        """
        if isinstance(value, Ref):  # a step in front passed on what was sent
            if self.takes_reference:
                return await self.body.run(value, ctx)
            value = await value
        try:
            value = self.convert(value)
        except HTTPError as error:
            if ctx.http_scope is not None:
                error = hinted(error, value, StarletteRequest(dict(ctx.http_scope)))
            where = self.body.first or self.body
            raise mark(error, where.goes_by, ctx.request_id) from error.__cause__
        return await self.body.run(value, ctx)


@dataclass(frozen=True)
class EnteringLoop(Loop):
    """A loop whose first round is given what was sent, and the others what the one before gave.

    Args:
        enters: The body, as HTTP runs it.
    """

    enters: Node

    def body_of(self, number: int) -> Node:
        """Return the body that converts for the first round."""
        return self.body if number else self.enters

    @property
    def children(self) -> tuple[Node, ...]:
        """The loop's, and the body that converts."""
        return (*super().children, self.enters)


@dataclass(frozen=True)
class Deciding:
    """A function that decides by what was sent, converted to what its parameter's annotation says.

    Args:
        decide: The function.
        convert: Makes its one argument of what was sent.
    """

    decide: Callable[[Any], Any]
    convert: Conversion

    def __call__(self, value: Any) -> Any:
        """Return what the function does."""
        return self.decide(self.convert(value))


def entered(node: Node) -> Node:
    """Return a graph as HTTP runs it: the stages that its input reaches unchanged convert it.

    Each by its own signature, as the one first stage of a pipeline does.
    """
    if node.first is not None:
        signature = node.first.signature
        takes_request = signature.takes == "request"
        return node if takes_request else Entering("", node, Conversion(signature, or_whole=True))
    match node:
        case Sequence():
            return _entered_sequence(node)
        case Pick():
            return Entering("", node, partial(_an_object, keys=node.keys))
        case Loop():
            rounds = (node.body, node.until, node.max_iterations)
            return EnteringLoop(node.label, *rounds, entered(node.body), name=node.name)
        case Wrapping() | Branching():
            node = node.with_children(tuple(map(entered, node.children)))
    match node:
        case Each():
            return Entering("", node, _a_list)
        case Assign():
            return Entering("", node, _an_object)
        case Choosing() | Sticky() if callable(node.by):
            return dataclasses.replace(node, by=_deciding(node.by))
    return node


def _entered_sequence(sequence: Sequence) -> Sequence:
    """The same, where the first steps may pass on what was sent to the one behind them."""
    passing = list(takewhile(lambda step: step.passes_on, sequence.steps))
    if not passing:
        return sequence.with_children((entered(sequence.steps[0]), *sequence.steps[1:]))
    count = len(passing)
    rest: tuple[Node, ...] = sequence.steps[count:]
    if len(rest) > 1:  # in one, which stays as it is if it begins with a stage
        ends_first = frozenset(p - count for p in sequence.ends_first if p >= count)
        rest = (Sequence("", rest, ends_first),)
    return sequence.with_children((*map(entered, passing), *map(entered, rest)))


def conversions(node: Node) -> Iterator[Conversion]:
    """Give what converts in a graph as HTTP runs it."""
    for part in walk(node):
        converter = getattr(part, "by", None) if not isinstance(part, Entering) else part
        convert = getattr(converter, "convert", None)
        if isinstance(convert, Conversion):
            yield convert


def _a_list(value: Any) -> Any:
    if not isinstance(value, list):
        raise HTTPError(422, f"takes a list, but was sent {_called(value)}")
    return value


def _an_object(value: Any, keys: tuple[Any, ...] = ()) -> Any:
    if not isinstance(value, dict):
        raise HTTPError(422, f"takes an object, but was sent {_called(value)}")
    if missing := [str(key) for key in keys if key not in value]:
        raise HTTPError(422, f"missing: {', '.join(missing)}")
    return value


def _called(value: Any) -> str:
    return "an object" if isinstance(value, dict) else f"{type(value).__name__} {value!r:.40}"


def _deciding(decide: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What decides by one value, which is never spread."""
    signature = describe(decide)
    convert = Conversion(dataclasses.replace(signature, parameters=signature.parameters[:1]))
    return Deciding(decide, convert) if convert.converts else decide
