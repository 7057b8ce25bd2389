"""Making stages: what may be one, how it is called, and what fits behind what."""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray.serve import Application, Deployment

from raycompose import _serve
from raycompose.errors import CompositionError
from raycompose.limits import Limits, Retry
from raycompose.nodes import Limited, Node, Sequence, Stage
from raycompose.signatures import PASS_BY, PassBy, Signature, describe, fits, type_name
from raycompose.targets import Deployed, Inline, Target, Task

ACCEPTED = (
    "a bound deployment (X.bind(...)), a deployment (X), a function or other callable, "
    "a @ray.remote function, a method of a Ray actor, a pipeline, or a dict of these"
)


def limited(
    node: Node,
    called: str,
    name: str | None,
    timeout_s: float | None,
    retry: int | Retry | None,
) -> Node:
    """The node within its limits; a sub-pipeline is wrapped to carry a name, too."""
    label = "" if isinstance(node, Stage) else name or ("pipeline" if not node.label else "")
    if timeout_s is None and retry is None and (name is None or isinstance(node, Stage)):
        return node
    if timeout_s is not None and not (_is_number(timeout_s) and 0 < timeout_s < math.inf):
        raise CompositionError(
            f"stage {called!r}: timeout_s={timeout_s!r} is not a number of seconds above 0"
        )
    try:
        policy = retry if retry is None or isinstance(retry, Retry) else Retry(attempts=retry)
    except (TypeError, ValueError) as error:
        raise CompositionError(
            f"stage {called!r}: retry={retry!r} is neither a number of attempts nor an rc.Retry: "
            f"{error}"
        ) from error
    return Limited(label, node, Limits(timeout_s, policy))


def check_name(name: Any, called: str) -> None:
    """Refuse a name that is not one.

    Raises:
        CompositionError: It is not a ``str``, or empty.
    """
    if name is not None and not (isinstance(name, str) and name):
        raise CompositionError(f"stage {called!r}: name={name!r} is not a str that names it")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def make_stage(
    target: Any, name: str | None, method: str, pass_by: PassBy | None, stream: bool | None
) -> Stage:
    """Return the stage for something that is not a pipeline; the arguments are ``rc.stage``'s.

    Raises:
        CompositionError: It cannot be a stage, or an option does not fit it.
    """
    made, function, own_name = _target(target, method)
    check_name(name, own_name)
    label = name or own_name
    try:
        signature = function() if function else Signature()
    except CompositionError as error:
        raise CompositionError(f"stage {label!r}: {error}") from error
    changes: dict[str, Any] = {}
    if pass_by is not None and pass_by not in PASS_BY:
        accepted = ", ".join(map(repr, PASS_BY))
        raise CompositionError(f"stage {label!r}: pass_by={pass_by!r} is not one of {accepted}")
    if pass_by is not None:
        changes["takes"] = pass_by
    if stream is not None:
        changes["streams"] = stream
    return Stage(label, made, replace(signature, **changes))


def _target(target: Any, method: str) -> tuple[Target, Callable[[], Signature] | None, str]:
    """The target that a stage calls, how to read its signature, and what it calls itself."""
    if isinstance(target, Deployment):
        target = target.bind()
    if isinstance(target, Application):
        return _deployed(target, method)
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
    if callable(target) and not inspect.isclass(target):
        return Inline(target), lambda: describe(target), _function_name(target)
    raise CompositionError(
        f"not a stage: got {_described(target)}. Accepted: {ACCEPTED}.{_hint(target)}"
    )


def _deployed(app: Application, method: str) -> tuple[Target, Callable[[], Signature] | None, str]:
    deployment = _serve.deployment_of(app)
    definition, name = deployment.func_or_class, deployment.name
    target = Deployed(app, method)
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
        methods = [m for m in dir(definition) if not m.startswith("_")
                   and callable(getattr(definition, m))]  # fmt: skip
        raise CompositionError(
            f"deployment {name!r} has no method {method!r}. "
            f"Its methods: {', '.join(methods) or 'none'}. Choose one with "
            f"rc.stage({name}.bind(), method=...)"
        )
    static = isinstance(inspect.getattr_static(definition, method), staticmethod | classmethod)
    return target, lambda: describe(function, skip_self=not static), name


def check_fit(before: Sequence, after: Node) -> None:
    """Refuse a node behind others when what they give cannot be what it takes."""
    for taker in after.entries:
        check_takes_one(taker)
        if taker.signature.takes == "stream" and before.exits and not before.streams:
            raise CompositionError(
                f"stage {taker.label!r} takes a stream, but {before.exits[0].label!r} does not "
                "give one: yield the items in it, or take the value instead"
            )
        if taker.signature.takes == "stream" and not after.takes_stream:
            raise CompositionError(
                f"stage {taker.label!r} takes a stream whole, but {after.label!r} gives its "
                "branches the items one by one: take the item, or put the stage behind it"
            )
        if taker.signature.takes == "request" or taker.takes_stream:
            continue
        for giver in before.exits:
            given, wanted = giver.signature.returns, taker.signature.accepts
            if not fits(given, wanted):
                raise CompositionError(
                    f"{giver.label!r} gives {type_name(given)}, but {taker.label!r} takes "
                    f"{type_name(wanted)}: put a stage between them that converts one into the "
                    "other, or correct the annotation"
                )


def check_takes_one(stage: Stage) -> None:
    """Refuse a stage that cannot be called with one value, where it gets one value.

    Raises:
        CompositionError: It has no parameter for the value, or needs more than one.
    """
    needs = stage.signature.beyond_one
    if needs is None:
        raise CompositionError(
            f"stage {stage.label!r} takes no argument, but gets the value of what is before it: "
            "give it a parameter"
        )
    if needs:
        raise CompositionError(
            f"stage {stage.label!r} gets one value here, but also requires {', '.join(needs)}: "
            "give those a default, bind them with functools.partial, or take one dict or tuple"
        )


def _function_name(function: Any) -> str:
    while hasattr(function, "func"):  # functools.partial
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
        return f" Decorate {target.__name__} with @serve.deployment and .bind() it."
    if inspect.iscoroutine(target):
        return " Give the function itself, without calling it."
    if isinstance(target, ray.actor.ActorHandle):
        return " Give one of the actor's methods: actor.method."
    if isinstance(target, str):
        return " Give the object itself, not its name."
    return ""
