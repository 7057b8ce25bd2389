"""A graph that begins with a combinator: each branch converts what was sent to the pipeline."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

from starlette.requests import Request as StarletteRequest

from raycompose.errors import HTTPError, mark
from raycompose.flow.arguments import Arguments
from raycompose.graph.branches import Assign, Branching, Each, Passthrough, Pick, Shadow
from raycompose.graph.choices import Choosing
from raycompose.graph.context import Context
from raycompose.graph.loops import Loop
from raycompose.graph.nodes import Node, walk
from raycompose.graph.sequences import Sequence
from raycompose.graph.signatures import describe
from raycompose.graph.wrappers import Wrapping
from raycompose.http.conversion import Conversion
from raycompose.http.decoding import hinted

Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class Entering(Wrapping):
    """A node that what was sent over HTTP reaches as it is: converts it, as a first stage's is.

    Args:
        convert: What makes the node's input of it.
    """

    convert: Convert

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run the body on the converted value.

        Raises:
            HTTPError: The value does not fit: 422.
        """
        try:
            value = self.convert(value)
        except HTTPError as error:
            if ctx.http_scope is not None:
                error = hinted(error, value, StarletteRequest(dict(ctx.http_scope)))
            where = self.body.first or self.body
            raise mark(error, where.goes_by, ctx.request_id) from error.__cause__
        return await self.body.run(value, ctx)

    @property
    def portable(self) -> bool:
        """Never: what converts is made once, in this process."""
        return False


def entered(node: Node) -> Node:
    """Return a graph as HTTP runs it: the stages that its input reaches unchanged convert it.

    Each by its own signature, as the one first stage of a pipeline does.
    """
    if node.first is not None:
        signature = node.first.signature
        takes_request = signature.takes == "request"
        return node if takes_request else Entering("", node, Conversion(signature))
    match node:
        case Sequence():
            passing = takewhile(lambda step: isinstance(step, Shadow | Passthrough), node.steps)
            reached = sum(1 for _ in passing) + 1
            return node.with_children((*map(entered, node.steps[:reached]), *node.steps[reached:]))
        case Pick():
            return Entering("", node, partial(_an_object, keys=node.keys))
        case Loop() if node.body.first is not None:
            return Entering("", node, _OneValue(node.body.first.signature))
        case Wrapping() | Branching():
            node = node.with_children(tuple(map(entered, node.children)))
    match node:
        case Each():
            return Entering("", node, _a_list)
        case Assign():
            return Entering("", node, _an_object)
        case Choosing() if callable(node.by):
            return dataclasses.replace(node, by=_deciding(node.by))
    return node


def conversions(node: Node) -> Iterator[Conversion]:
    """Give what converts in a graph as HTTP runs it."""
    converts = (n.convert for n in walk(node) if isinstance(n, Entering))
    return (convert for convert in converts if isinstance(convert, Conversion))


class _OneValue(Conversion):
    """What a loop takes, whose body gets its own result next: an object stays one value."""

    def __call__(self, value: Any) -> Any:
        converted = super().__call__(value)
        if type(converted) is not Arguments:
            return converted
        return value if converted.args else dict(converted.kwargs)


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


def _deciding(decide: Convert) -> Convert:
    """A function that decides, given what its annotation says."""
    convert = Conversion(describe(decide))
    return (lambda value: decide(convert(value))) if convert.converts else decide
