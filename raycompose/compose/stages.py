"""Making stages: what may be one, and how it is called."""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Any, TypedDict, cast

import ray
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle
from typing_extensions import Unpack

from raycompose import _serve
from raycompose.compose.callers import may_call
from raycompose.compose.checks import (
    check_constructor,
    check_name,
    check_takes_one,
    refuse_streams,
)
from raycompose.errors import CompositionError
from raycompose.graph.affinity import Sticky
from raycompose.graph.annotations import type_name
from raycompose.graph.attempts import Hedged
from raycompose.graph.branches import Parallel
from raycompose.graph.choices import Decider
from raycompose.graph.limits import Hedge, Limits, Retry, is_duration
from raycompose.graph.nodes import Node, Stage
from raycompose.graph.signatures import (
    PASS_BY,
    SCALARS,
    PassBy,
    Signature,
    describe,
    is_request,
)
from raycompose.graph.targets import Deployed, Inline, Target, Task
from raycompose.graph.wrappers import Limited, Named

ACCEPTED = (
    "a bound deployment (X.bind(...)), a deployment (X), a function or other callable, "
    "a @ray.remote function, a method of a Ray actor, a DeploymentHandle, rc.app(...), a pipeline, "
    "or a dict of these"
)


class StageOptions(TypedDict, total=False):
    """The options that ``rc.stage`` takes by keyword."""

    name: str | None
    method: str
    pass_by: PassBy | None
    stream: bool | None
    timeout_s: float | None
    retry: int | Retry | None
    affinity: Callable[[Any], Any] | str | None
    hedge: Hedge | None


class Composed(_serve.LazyApplication):
    """An application made of a graph: what a ``Pipeline`` is to what it is composed from.

    Args:
        root: The graph.
        given: The options of the front deployment that the user has set.
    """

    def __init__(self, root: Node, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.root = root
        self.given = dict(given)


def make_node(target: Any, **options: Unpack[StageOptions]) -> Node:
    """Return the graph of whatever ``rc.stage`` takes.

    Raises:
        CompositionError: It cannot be a stage, or an option does not fit it.
    """
    name = options.get("name")
    if isinstance(target, dict):
        node: Node = make_parallel(target)
    elif isinstance(target, Composed):
        node = target.root
    else:
        stage = _make_stage(target, options)
        return _limited(stage, stage.label, None, options)
    if (
        options.get("method", "__call__") != "__call__"
        or options.get("pass_by") is not None
        or options.get("stream") is not None
    ):
        raise CompositionError(
            f"{target!r} is a pipeline: method=, pass_by= and stream= belong to its stages"
        )
    check_name(name, repr(target))
    if name is not None and isinstance(node, Stage):
        node, name = replace(node, label=name), None
    return _limited(node, name or node.label or repr(target), name, options)


def make_parallel(targets: Mapping[Any, Any]) -> Parallel:
    """Return the node that gives the same input to all targets, and a dict of their results.

    Raises:
        CompositionError: A key is not a ``str``, there are no targets, or one is no stage.
    """
    if not all(isinstance(key, str) for key in targets):
        keys = ", ".join(map(repr, targets))
        raise CompositionError(f"a dict of stages must have str keys, got {keys}")
    if not targets:
        raise CompositionError("rc.parallel() needs at least one target: rc.parallel(a, b)")
    branches = make_branches("parallel", tuple(targets.values()), tuple(targets))
    refuse_streams("parallel", branches)
    return Parallel("parallel", branches, tuple(targets))


def make_branches(
    call: str, targets: tuple[Any, ...], keys: tuple[Any, ...] = ()
) -> tuple[Node, ...]:
    """Return the graphs of a combinator's targets, each of which is given one value.

    Args:
        call: The combinator's name.
        targets: What ``rc.stage`` takes.
        keys: Under which they were given, as far as they were.

    Raises:
        CompositionError: One is no stage, has options of the front, or cannot take one value.
    """
    branches = []
    for target, key in zip_longest(targets, keys):
        try:
            branches.append(_make_inner(target))
        except CompositionError as error:
            where = "" if key is None else f"{key!r}: "
            raise CompositionError(f"in rc.{call}(): {where}{error}") from error
    return tuple(branches)


def _make_inner(target: Any) -> Node:
    node = make_node(target)
    if isinstance(target, Composed) and target.given:
        raise CompositionError(
            f"{target!r} has front options of its own; set .options(...) on the whole pipeline"
        )
    for entry in node.entries:
        check_takes_one(entry)
    return node


def make_decider(subject: str, by: Any) -> Decider:
    """Return what decides on a branch: a function as it is, the graph of any other target.

    Args:
        subject: What the decider is, for messages.
        by: A function or an ``async def`` of the value, or what else ``rc.stage`` takes.

    Raises:
        CompositionError: It cannot be called with one value, or streams.
    """
    if _is_function(by) or inspect.isclass(by):
        signature = describe(by)
        check_takes_one(Stage(_function_name(by), Inline(by), signature))
        if signature.streams:
            raise CompositionError(f"{subject} must return one value, but {by!r} is a generator")
        return cast("Decider", by)
    try:
        node = _make_inner(by)
    except CompositionError as error:
        hint = f" To decide by a key of the value: lambda value: value[{by!r}]."
        raise CompositionError(
            f"{subject} must be a function of the value, or a target that decides: {error}"
            f"{hint if isinstance(by, str) else ''}"
        ) from error
    if node.streams:
        raise CompositionError(f"{subject} must return one value, but {by!r} streams")
    return node


def _limited(node: Node, called: str, name: str | None, options: StageOptions) -> Node:
    """The node within its limits, if it has any, and with a name of its own."""
    timeout_s, retry, hedge = options.get("timeout_s"), options.get("retry"), options.get("hedge")
    affinity = options.get("affinity")
    # A part of the graph that has no name has one where it times out.
    label = "" if isinstance(node, Stage) else name or ("" if node.label else "pipeline")
    if affinity is not None:
        node = _sticky(node, called, affinity)
    if hedge is not None:
        node = _hedged(node, called, hedge)
    if timeout_s is None and retry is None:
        return node if name is None else Named(name, node)
    if timeout_s is not None and not is_duration(timeout_s):
        raise CompositionError(
            f"stage {called!r}: timeout_s={timeout_s!r} must be a number of seconds above 0"
        )
    try:
        policy = retry if retry is None or isinstance(retry, Retry) else Retry(attempts=retry)
    except (TypeError, ValueError) as error:
        raise CompositionError(
            f"stage {called!r}: retry={retry!r} must be a number of attempts or an rc.Retry: "
            f"{error}"
        ) from error
    return Limited(label, node, Limits(timeout_s, policy))


def _sticky(node: Node, called: str, affinity: Any) -> Sticky:
    if not isinstance(affinity, str) and not _is_function(affinity):
        raise CompositionError(
            f"stage {called!r}: affinity={affinity!r} must be a function of the value, or the name "
            "of a key or an attribute of it"
        )
    if node.takes_stream:
        raise CompositionError(
            f"stage {called!r} takes a stream, which has no one session: affinity= needs a value"
        )
    return Sticky("", node, affinity)


def _hedged(node: Node, called: str, hedge: Any) -> Hedged:
    if not isinstance(hedge, Hedge):
        raise CompositionError(
            f"stage {called!r}: hedge={hedge!r} must be an rc.Hedge: rc.Hedge(after_s=0.3)"
        )
    if node.streams or node.takes_stream:
        raise CompositionError(
            f"stage {called!r} streams, and cannot be hedged: a stream's items can be had once"
        )
    return Hedged("", node, hedge)


def _make_stage(target: Any, options: StageOptions) -> Stage:
    """Return the stage for something that is not a pipeline."""
    name, pass_by, stream = options.get("name"), options.get("pass_by"), options.get("stream")
    made, function, own_name = _target(target, options.get("method", "__call__"))
    check_name(name, own_name)
    label = name or own_name
    try:
        signature = function() if function else Signature()
    except CompositionError as error:
        raise CompositionError(f"stage {label!r}: {error}") from error
    if pass_by is not None and pass_by not in PASS_BY:
        accepted = ", ".join(map(repr, PASS_BY))
        raise CompositionError(f"stage {label!r}: pass_by={pass_by!r} must be one of {accepted}")
    if stream is not None and not isinstance(stream, bool):
        raise CompositionError(f"stage {label!r}: stream={stream!r} must be True, False or None")
    if stream and not signature.streams and signature.result in (*SCALARS, dict, list, None):
        raise CompositionError(
            f"stage {label!r}: stream=True, but it returns {type_name(signature.result)}: yield "
            "the items, or leave stream= out"
        )
    stage = Stage(label, made, signature.with_options(pass_by, stream))
    _check_request(stage)
    return stage


def _check_request(stage: Stage) -> None:
    """Refuse a request that the stage cannot get, and what it cannot get beside one."""
    signature = stage.signature
    if signature.takes == "request" and (needs := signature.beyond_one):
        raise CompositionError(
            f"stage {stage.label!r} takes a request, and also requires {', '.join(needs)}, which "
            "nothing gives: read it in the request (its query_params, path_params or body), or "
            "give it a default"
        )
    for parameter in signature.parameters[1:]:
        if parameter.name in signature.required and is_request(parameter.annotation):
            raise CompositionError(
                f"stage {stage.label!r}: {parameter.name!r} is a Request, which a stage gets as "
                "its first parameter alone: put it first, and read the rest in it"
            )


def _target(target: Any, method: str) -> tuple[Target, Callable[[], Signature] | None, str]:
    """The target that a stage calls, how to read its signature, and what it calls itself."""
    if isinstance(target, Deployment):
        target = target.bind()
    if isinstance(target, Application):
        return _deployed(target, method)
    if isinstance(target, DeploymentHandle):
        own, streams = _serve.options_of(target)
        called = own if method == "__call__" else method
        return Deployed(target, called), lambda: Signature(streams=streams), target.deployment_name
    if method != "__call__":
        raise CompositionError(
            f"method={method!r} belongs to a deployment, but got {_described(target)}"
        )
    if (task := _serve.task_function(target)) is not None:
        return Task(target), lambda: describe(task), task.__name__
    if (actors := _serve.method_of_actor(target)) is not None:
        return Task(target), lambda: Signature(streams=actors.streams), actors.name
    if isinstance(target, ray.actor.ActorClass):
        raise CompositionError(
            f"got the actor class {_serve.actor_class_name(target)}: start an actor with "
            ".remote(), and give one of its methods: actor.method"
        )
    if _is_function(target):
        _refuse_uncalled(target)
        return Inline(target), lambda: describe(target), _function_name(target)
    raise CompositionError(
        f"not a stage: got {_described(target)}. Accepted: {ACCEPTED}.{_hint(target)}"
    )


def _deployed(app: Application, method: str) -> tuple[Target, Callable[[], Signature] | None, str]:
    deployment = _serve.deployment_of(app)
    definition, name = deployment.func_or_class, deployment.name
    target = Deployed(app, method, may_call(deployment))
    check_constructor(app)
    if isinstance(definition, str):  # an import path: nothing to look at
        return target, None, name
    if method == "__call__" and _serve.is_fastapi_ingress(deployment):
        raise CompositionError(
            f"stage {name!r} is a FastAPI ingress (@serve.ingress), which answers HTTP itself and "
            "cannot be a stage. Bind the pipeline into it instead, "
            f"{name}.bind(app.embed()), or call one of its methods with method=..."
        )
    if not inspect.isclass(definition):
        if method != "__call__":
            raise CompositionError(f"stage {name!r} is a function, and has no method {method!r}")
        return target, lambda: describe(definition), name
    function = getattr(definition, method, None)
    if not callable(function) or (method == "__call__" and "__call__" not in dir(definition)):
        methods = [m for m in dir(definition) if not m.startswith("_") or m == "__call__"]
        methods = [m for m in methods if callable(getattr(definition, m))]
        raise CompositionError(
            f"deployment {name!r} has no method {method!r}. "
            f"Its methods: {', '.join(methods) or 'none'}. Choose one with "
            f"rc.stage({name}.bind(), method=...)"
        )
    static = isinstance(inspect.getattr_static(definition, method), staticmethod | classmethod)
    return target, lambda: describe(function, skip_self=not static), name


def _is_function(target: Any) -> bool:
    """Whether it is a callable that runs where the pipeline runs."""
    ours = Application | Deployment | DeploymentHandle | ray.actor.ActorClass
    return (
        callable(target)
        and not inspect.isclass(typing.get_origin(target) or target)
        and not isinstance(target, ours)
        and _serve.task_function(target) is None
        and _serve.method_of_actor(target) is None
    )


def _refuse_uncalled(function: Any) -> None:
    """Refuse a combinator that is not called."""
    if str(getattr(function, "__module__", "")).startswith("raycompose.compose."):
        name = function.__name__
        raise CompositionError(
            f"rc.{name} makes a stage, and is none: call it, as in rc.{name}(...)"
        )


def _function_name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return "lambda" if name == "<lambda>" else name


def _described(target: Any) -> str:
    if inspect.isclass(target):
        return f"the class {target.__name__}"
    text = repr(target)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(target).__name__})"


def _hint(target: Any) -> str:
    if inspect.isclass(target) and target.__module__ == "builtins":
        return f" Write a function: lambda value: {target.__name__}(value)."
    if inspect.isclass(target):
        return (
            f" Decorate {target.__name__} with @serve.deployment and .bind() it; rc.stage takes "
            "what that gives, and is no decorator."
        )
    if inspect.iscoroutine(target):
        return " Give the function itself, without calling it."
    if isinstance(target, ray.actor.ActorHandle):
        return " Give one of the actor's methods: actor.method."
    if isinstance(target, list | tuple):
        return " Give the stages one by one, with a * before the list."
    if isinstance(target, str):
        return " Give the object itself, not its name."
    return ""
