"""What fits behind what: a graph that cannot work is refused where it is composed."""

import inspect
from types import GenericAlias
from typing import Any

from ray.serve import Application

from raycompose import _serve
from raycompose.errors import CompositionError
from raycompose.graph.annotations import fits, type_name
from raycompose.graph.branches import Parallel, Pick
from raycompose.graph.limits import is_count
from raycompose.graph.nodes import Node, Stage, stages
from raycompose.graph.sealing import Sealed
from raycompose.graph.sequences import Sequence
from raycompose.graph.wrappers import Wrapping


def check_fit(before: Sequence, after: Node) -> None:
    """Refuse a node behind others when what they give cannot be what it takes."""
    keys = _keys_given(before)
    for taker in after.entries:
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
        if taker.signature.takes == "request" or taker.takes_stream:
            continue
        for giver in before.exits:
            given, wanted = giver.signature.returns, taker.signature.accepts
            if not fits(given, wanted):
                verb = "yields" if giver.signature.streams else "returns"
                advice = "a stage between them that converts one into the other"
                if giver.signature.streams and fits(GenericAlias(list, given), wanted):
                    advice = "rc.collect between them, which puts the items in a list"
                raise CompositionError(
                    f"{giver.label!r} {verb} {type_name(given)}, but {taker.label!r} takes "
                    f"{type_name(wanted)}: put {advice}, or correct the annotation"
                )


def _keys_given(node: Node) -> tuple[str, ...] | None:
    """The keys of the mapping that a node gives, where they are known."""
    if isinstance(node, Sequence):
        return _keys_given(node.steps[-1])
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
