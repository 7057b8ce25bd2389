"""What fits behind what: a graph that cannot work is refused where it is composed."""

import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping
from types import GenericAlias
from typing import Any, NamedTuple

from ray.serve import Application

from raycompose import _serve
from raycompose.errors import CompositionError
from raycompose.flow.references import Ref
from raycompose.graph.annotations import UNKNOWN, fits, item_type, type_name, without_optional
from raycompose.graph.attempts import Optional, Race
from raycompose.graph.branches import Assign, Branching, Each, Parallel, Pick
from raycompose.graph.choices import Choosing
from raycompose.graph.limits import is_count
from raycompose.graph.loops import Loop
from raycompose.graph.nodes import Node, Stage, stages
from raycompose.graph.sealing import Sealed
from raycompose.graph.sequences import Sequence
from raycompose.graph.signatures import Signature
from raycompose.graph.wrappers import Wrapping


def check_fit(before: Sequence, after: Node) -> None:
    """Refuse a node behind others when what they give cannot be what it takes."""
    keys = _keys_given(before)
    given = tuple(_given(before))
    for taker in _takers(after):
        if not isinstance(taker, Stage):
            _check_combinator(taker, given, keys)
            continue
        if keys is not None and taker.signature.takes_by_name(keys):
            continue
        if keys is not None and taker.signature.beyond_one:
            if misfit := taker.signature.misfit(keys):
                raise CompositionError(
                    f"stage {taker.label!r} gets a mapping with {', '.join(map(str, keys))}, "
                    f"which does not fit its parameters: {misfit}"
                )
            raise CompositionError(
                f"stage {taker.label!r} takes its first parameter by {taker.signature.takes}, so "
                "a mapping is not spread over its parameters: take the values, or one parameter"
            )
        check_takes_one(taker)
        if taker.signature.takes == "stream" and before.exits and not before.streams:
            raise CompositionError(
                f"stage {taker.label!r} takes a stream, but {before.exits[0].label!r} does not "
                "return one: yield the items in it, or take the value instead"
            )
        if taker.signature.takes == "stream" and not after.takes_stream:
            raise CompositionError(
                f"stage {taker.label!r} takes a stream whole, but {after.label!r} passes "
                "items to its branches one by one: take the item, or put the stage behind it"
            )
        _check_types(given, taker)


class _Given(NamedTuple):
    """A value that a node may give.

    Args:
        said: Who gives it, and how: ``"'f' returns"``.
        type: Its annotation.
        is_item: It is an item of a stream.
        is_annotated: It is a stage's own, rather than what a combinator makes of it.
        advice: What to do where it does not fit.
    """

    said: str
    type: Any
    is_item: bool = False
    is_annotated: bool = True
    advice: str = (
        "put a stage between them that converts one into the other, or correct the annotation"
    )


def _given(node: Node) -> Iterator[_Given]:
    """What a node may give, as far as that is clear."""
    match node:
        case Stage():
            is_item = node.signature.streams
            said = f"{node.label!r} {'yields' if is_item else 'returns'}"
            yield _Given(said, _behind(node.signature.returns), is_item)
        case Sequence():
            yield from _given(_giver(node))
        case Wrapping() | Loop():
            yield from _given(node.body)
        case Parallel() | Pick() if node.keys is not None:
            if type(node) is not Pick or len(node.keys) > 1:
                yield _Given(f"{node.label!r} returns", dict, is_annotated=False)
        case Each():
            yield _Given(f"{node.label!r} returns", list, is_annotated=False)
        case Parallel():
            yield _Given(f"{node.label!r} returns", tuple, is_annotated=False)
        case Race() if node.need > 1:
            yield _Given(f"{node.label!r} with need={node.need} returns", tuple, is_annotated=False)
        case Race() | Choosing():
            for branch in node.branches:
                yield from _given(branch)
        case Optional():
            yield from _given(node.branches[0])
            kind = None if node.default is None else type(node.default)
            said = f"{node.label!r} has a default of type"
            advice = "give it a default= that fits"
            yield _Given(said, kind, is_annotated=False, advice=advice)


def _giver(sequence: Sequence) -> Node:
    """The step whose result is the sequence's: those behind it pass it on."""
    changing = [step for step in sequence.steps if not step.passes_on]
    return (changing or sequence.steps)[-1]


def _takers(node: Node) -> Iterator[Stage | Each | Assign | Pick]:
    """What a node's input reaches as it is, of what can be held against it."""
    match node:
        case Sequence():
            for step in node.steps:
                yield from _takers(step)
                if not step.passes_on:
                    break
        case Wrapping() | Loop():
            yield from _takers(node.body)
        case Stage() | Each() | Assign() | Pick():
            yield node
    if isinstance(node, Branching) and not isinstance(node, Each):
        for branch in node.branches:
            yield from _takers(branch)


def _check_types(given: Iterable[_Given], taker: Stage) -> None:
    if taker.signature.takes == "request" or taker.takes_stream:
        return
    wanted = taker.signature.accepts
    for said, kind, is_item, is_annotated, advice in given:
        if not fits(kind, wanted) and (is_annotated or not _may_be(kind, taker.signature)):
            if is_item and fits(GenericAlias(list, kind), wanted):
                advice = (
                    "put rc.collect between them, which puts the items in a list, or correct the "
                    "annotation"
                )
            raise CompositionError(
                f"{said} {type_name(kind)}, but {taker.label!r} takes {type_name(wanted)}: {advice}"
            )


def _may_be(kind: Any, signature: Signature) -> bool:
    """Whether what a combinator gives may do, although it is not what the annotation says."""
    if kind is None:
        return signature.parameters[0].default is None
    if kind in (list, tuple):  # people write list for a tuple, and give both to NumPy
        wanted = without_optional(signature.accepts)
        return fits(list, wanted) or hasattr(wanted, "__array__")
    return signature.takes_several and fits(kind, Mapping)


def _behind(returns: Any) -> Any:
    """The type of the value behind a reference that is returned."""
    if (typing.get_origin(returns) or returns) is not Ref:
        return returns
    return next(iter(typing.get_args(returns)), UNKNOWN)


def _check_combinator(
    taker: Each | Assign | Pick, given: Iterable[_Given], keys: tuple[str, ...] | None
) -> None:
    """Refuse what is no list, or no mapping, or has not the keys."""
    wanted = list | tuple if isinstance(taker, Each) else Mapping
    for said, kind, _, _, advice in given:
        if not fits(kind, wanted):
            what = "a list" if isinstance(taker, Each) else "a mapping"
            raise CompositionError(
                f"{said} {type_name(kind)}, but {taker.label!r} takes {what}: {advice}"
            )
        if isinstance(taker, Each):
            for inner in _takers(taker.branches[0]):
                if isinstance(inner, Stage):
                    item = _Given(f"an item of what {said}", item_type(kind), is_annotated=False)
                    _check_types([item], inner)
    missing = [k for k in taker.keys if k not in keys] if keys and isinstance(taker, Pick) else ()
    if missing and keys:
        raise CompositionError(
            f"{taker.label!r} finds no {', '.join(map(repr, missing))}; the mapping before it has "
            f"{', '.join(map(repr, keys))}"
        )


def _keys_given(node: Node) -> tuple[str, ...] | None:
    """The keys of the mapping that a node gives, where they are known."""
    if isinstance(node, Sequence):
        return _keys_given(_giver(node))
    if isinstance(node, Wrapping):
        return _keys_given(node.body)
    if isinstance(node, Pick):
        return node.keys if len(node.keys) > 1 else None
    return node.keys if type(node) is Parallel else None


def seal(root: Node) -> Sealed[Node]:
    """Return a graph as it is sent to its replica.

    Raises:
        CompositionError: A stage holds what cannot be pickled.
    """
    try:
        return Sealed(root)
    except Exception as error:
        stage = next((s.label for s in stages(root) if not _is_sendable(s.target)), None)
        what = "the pipeline" if stage is None else f"stage {stage!r}"
        raise CompositionError(
            f"{what} cannot be sent to a replica: {error}. Create what it holds where it runs: in "
            "the function, or in the constructor of a deployment"
        ) from error


def _is_sendable(value: Any) -> bool:
    try:
        Sealed(value)
    except Exception:  # whatever its own pickling raises
        return False
    return True


def check_takes_one(stage: Stage) -> None:
    """Refuse a stage that cannot be called with one value, where it gets one value.

    Raises:
        CompositionError: It has no parameter for the value, or needs more than one.
    """
    needs = stage.signature.beyond_one
    if needs is None and stage.signature.parameters:
        names = ", ".join(p.name for p in stage.signature.parameters)
        raise CompositionError(
            f"stage {stage.label!r} takes keyword arguments alone ({names}), but gets the value of "
            "what is before it: give it a mapping of them, as rc.pick and rc.parallel do, or a "
            "parameter before its '*'"
        )
    if needs is None:
        raise CompositionError(
            f"stage {stage.label!r} takes no argument, but gets the value of what is before it: "
            "give it a parameter"
        )
    if needs:
        raise CompositionError(
            f"stage {stage.label!r} gets one value here, but also requires {', '.join(needs)}: "
            "give those a default, bind them with functools.partial, take one dict or tuple, or "
            "put before it rc.parallel(...), with a keyword for each, or, behind a stage that "
            "returns a dict, rc.pick(...), with the keys"
        )


def check_constructor(app: Application) -> None:
    """Refuse arguments that a deployment's constructor does not take. Nothing is constructed.

    Raises:
        CompositionError: One is missing or unknown, here or in an application among them.
    """
    deployment = _serve.deployment_of(app)
    if inspect.isclass(deployment.func_or_class):
        args, kwargs = deployment.init_args, deployment.init_kwargs
        problem = _constructor_problem(deployment.func_or_class, args, kwargs)
        if problem is not None:
            raise CompositionError(
                f"{deployment.name!r} cannot be constructed with the arguments of "
                f"{deployment.name}.bind(...): {problem}"
            )
        for argument in (*args, *kwargs.values()):
            if type(argument) is Application:
                check_constructor(argument)


def _constructor_problem(definition: type, args: Any, kwargs: Any) -> str | None:
    constructor = _serve.constructor(definition)
    if constructor is object.__init__:
        return "it takes none" if args or kwargs else None
    try:
        signature = inspect.signature(constructor)
    except (TypeError, ValueError):  # builtins and C extensions may have none
        return None
    try:
        signature.bind(None, *args, **kwargs)
    except TypeError as error:
        return f"{error}; it takes {signature.replace(return_annotation=signature.empty)}"
    return None


def refuse_streams(node: str, branches: tuple[Node, ...]) -> None:
    """Refuse branches that stream, where each has to give one result.

    Raises:
        CompositionError: One streams.
    """
    for branch in branches:
        if branch.streams:
            name = branch.label or (branch.exits[0].label if branch.exits else "a branch")
            raise CompositionError(
                f"rc.{node}(): {name!r} streams, and its items have no place in one result. "
                "End the branch with rc.collect to put them in a list"
            )


def check_name(name: Any, called: str) -> None:
    """Refuse a name that is not one.

    Raises:
        CompositionError: It is not a ``str``, or empty.
    """
    if name is not None and not (isinstance(name, str) and name):
        raise CompositionError(f"stage {called!r}: name={name!r} is not a str that names it")


def check_count(call: str, name: str, value: Any) -> None:
    """Refuse a number of things that is not one.

    Raises:
        CompositionError: It is not a whole number of 1 or more.
    """
    if not is_count(value):
        raise CompositionError(f"{call}: {name} must be a whole number of 1 or more, got {value!r}")
