"""Graphs become Ray Serve applications: ``Pipeline``, ``pipeline()``, ``stage()``."""

import copy
import inspect
import math
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar, overload

import ray
from ray import serve
from ray.serve import Application, Deployment

from raycompose import _serve, fusing
from raycompose.errors import CompositionError
from raycompose.ingress import Embedded, Ingress, Settings
from raycompose.limits import Limits, Retry
from raycompose.nodes import Limited, Node, Sequence, Stage, named, stages
from raycompose.signatures import (
    PASS_BY,
    PassBy,
    Signature,
    describe,
    fits,
    type_name,
)
from raycompose.targets import Deployed, Inline, Target, Task

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
T = TypeVar("T")

ACCEPTED = (
    "a bound deployment (X.bind(...)), a deployment (X), a function or other callable, "
    "a @ray.remote function, a method of a Ray actor, a pipeline, or a dict of these"
)
_SETTINGS = {"debug", "max_body_bytes"}
_FRONT: dict[str, Any] = {
    "name": "Pipeline",
    "ray_actor_options": {"num_cpus": 0},
    # Ray's default of 5 would throttle the stages: this replica only awaits others.
    "max_ongoing_requests": 1000,
}


class Pipeline(_serve.LazyApplication, Generic[In, Out]):
    """Stages composed into one Ray Serve application. Immutable.

    A pipeline **is** a ``ray.serve.Application``: give it to ``serve.run``, ``serve build``,
    another deployment's ``.bind(...)`` or ``rc.local``. In plain Ray Serve it is a small ingress
    deployment that holds the handles of the others and awaits them in turn.

    Pipelines are made by ``rc.pipeline``, ``.then``, ``|`` and the combinators.
    """

    def __init__(self, root: Node, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.root = named(root)
        self.given = dict(options or {})
        """The options that ``options()`` has set."""

    @overload
    def then(self, target: "Pipeline[Out, T]", **options: Any) -> "Pipeline[In, T]": ...
    @overload
    def then(
        self, target: Callable[[Out], Coroutine[Any, Any, T]], **options: Any
    ) -> "Pipeline[In, T]": ...
    @overload
    def then(self, target: Callable[[Out], T], **options: Any) -> "Pipeline[In, T]": ...
    @overload
    def then(self, target: Any, **options: Any) -> "Pipeline[In, Any]": ...
    def then(self, target: Any, **options: Any) -> "Pipeline[In, Any]":
        """Return this pipeline followed by one more stage.

        ``app.then(target, **options)`` is ``rc.pipeline(app, rc.stage(target, **options))``.

        Args:
            target: What ``rc.stage`` takes.
            options: What ``rc.stage`` takes by keyword.

        Raises:
            CompositionError: ``target`` is not a stage, or does not fit behind this pipeline.
        """
        return pipeline(self, stage(target, **options) if options else target)

    @overload
    def __or__(self, target: "Pipeline[Out, T]") -> "Pipeline[In, T]": ...
    @overload
    def __or__(self, target: Callable[[Out], Coroutine[Any, Any, T]]) -> "Pipeline[In, T]": ...
    @overload
    def __or__(self, target: Callable[[Out], T]) -> "Pipeline[In, T]": ...
    @overload
    def __or__(self, target: Any) -> "Pipeline[In, Any]": ...
    def __or__(self, target: Any) -> "Pipeline[In, Any]":
        return pipeline(self, target)

    def __ror__(self, target: Any) -> "Pipeline[Any, Out]":
        return pipeline(target, self)

    def options(self, **options: Any) -> "Pipeline[In, Out]":
        """Return this pipeline with options of the deployment that fronts it.

        Args:
            options: What ``Deployment.options`` takes (``name``, ``num_replicas``,
                ``max_ongoing_requests``, ``autoscaling_config``, ``ray_actor_options``, ...), and
                ``debug=True`` to show error messages to HTTP clients, ``max_body_bytes`` to limit
                what they may send.

        Raises:
            CompositionError: There is no such option, or Ray refuses its value.
        """
        given = {**self.given, **options}
        _check_settings(given)
        try:
            # What fused stages ask for is merged later: it may still be overridden.
            serve.deployment(Ingress).options(**copy.deepcopy(_of_the_front(given)))
        except (TypeError, ValueError) as error:
            raise CompositionError(f"options of the pipeline: {error}") from error
        return Pipeline(self.root, given)

    def fuse(self, *names: str) -> "Pipeline[In, Out]":
        """Return this pipeline with stages run inside its own replica: no hop between them.

        The replica asks for the largest ``num_cpus`` and the sum of ``num_gpus``, ``memory`` and
        custom resources of the stages it takes in, and keeps their ``max_ongoing_requests``,
        ``user_config``, health checks, ``@serve.batch`` and ``@serve.multiplexed``. Values are
        not copied between fused stages, so a stage must not change its input in place.

        Args:
            names: The stages' names; none: all of them.

        Raises:
            CompositionError: There is no stage of that name. What cannot be merged (two different
                ``runtime_env``s, several autoscaled stages) and is not given by ``.options(...)``
                is refused when the pipeline is deployed or checked.
        """
        return Pipeline(fusing.fuse(self.root, names), self.given)

    def embed(self) -> "Embedded[In, Out]":
        """Return the pipeline as a callable for your own deployment: no extra replica, no hop.

        ``Api.bind(app.embed())``, then in the deployment ``await self.pipeline(x)`` or
        ``async for item in self.pipeline.stream(x)``.
        """
        return Embedded(self.root)

    def bind_front(self) -> Deployment:
        """Return the deployment that fronts the pipeline, with the graph bound to it."""
        return _serve.deployment_of(self._front().bind(self.root, self.settings))

    def _front(self) -> Deployment:
        merged = fusing.front_options(self.root, _FRONT, _of_the_front(self.given))
        return serve.deployment(Ingress).options(**copy.deepcopy(merged))  # Ray changes them

    @property
    def settings(self) -> Settings:
        """The settings of the pipeline's edge, from ``options()``."""
        given = {k: v for k, v in self.given.items() if k in _SETTINGS}
        return Settings(pipeline=self.given.get("name", _FRONT["name"]), **given)

    def __repr__(self) -> str:
        steps = self.root.steps if isinstance(self.root, Sequence) else (self.root,)
        return f"Pipeline({' | '.join(step.name for step in steps)})"

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_bound_deployment", None)  # made again from the rest
        return state


def _of_the_front(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are the deployment's rather than the edge's."""
    return {k: v for k, v in given.items() if k not in _SETTINGS}


def _check_settings(given: Mapping[str, Any]) -> None:
    if not isinstance(given.get("debug", False), bool):
        raise CompositionError(f"options(debug={given['debug']!r}): it is True or False")
    limit = given.get("max_body_bytes", 1)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise CompositionError(
            f"options(max_body_bytes={limit!r}): it is a whole number of bytes, 1 or more"
        )


@overload
def pipeline(a: Pipeline[A, B], /) -> Pipeline[A, B]: ...
@overload
def pipeline(a: Callable[[A], Coroutine[Any, Any, B]], /) -> Pipeline[A, B]: ...
@overload
def pipeline(a: Callable[[A], B], /) -> Pipeline[A, B]: ...
@overload
def pipeline(a: Pipeline[A, B], b: Pipeline[B, C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(a: Pipeline[A, B], b: Callable[[B], Coroutine[Any, Any, C]], /) -> Pipeline[A, C]: ...
@overload
def pipeline(a: Pipeline[A, B], b: Callable[[B], C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(a: Callable[[A], Coroutine[Any, Any, B]], b: Pipeline[B, C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(
    a: Callable[[A], Coroutine[Any, Any, B]], b: Callable[[B], Coroutine[Any, Any, C]], /
) -> Pipeline[A, C]: ...
@overload
def pipeline(
    a: Callable[[A], Coroutine[Any, Any, B]], b: Callable[[B], C], /
) -> Pipeline[A, C]: ...
@overload
def pipeline(a: Callable[[A], B], b: Pipeline[B, C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(
    a: Callable[[A], B], b: Callable[[B], Coroutine[Any, Any, C]], /
) -> Pipeline[A, C]: ...
@overload
def pipeline(a: Callable[[A], B], b: Callable[[B], C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(
    a: Callable[[A], Coroutine[Any, Any, B]],
    b: Callable[[B], Coroutine[Any, Any, C]],
    c: Callable[[C], Coroutine[Any, Any, D]],
    /,
) -> Pipeline[A, D]: ...
@overload
def pipeline(
    a: Callable[[A], B], b: Callable[[B], C], c: Callable[[C], D], /
) -> Pipeline[A, D]: ...
@overload
def pipeline(*targets: Any) -> Pipeline[Any, Any]: ...
def pipeline(*targets: Any) -> Pipeline[Any, Any]:
    """Return the targets composed one after the other.

    ``rc.pipeline(f, g, h)`` called with ``x`` gives ``h(g(f(x)))``. In plain Ray Serve::

        class Ingress:
            def __init__(self, f, g): self.f, self.g = f, g
            async def __call__(self, x): return await self.g.remote(await self.f.remote(x))
        app = Ingress.bind(F.bind(), G.bind())

    Args:
        targets: What ``rc.stage`` takes, at least one. Pipelines are flattened.

    Raises:
        CompositionError: A target is not a stage, or does not fit behind the one before it.
    """
    if not targets:
        raise CompositionError("rc.pipeline() needs at least one stage; it takes " + ACCEPTED)
    steps: list[Node] = []
    for position, target in enumerate(targets):
        try:
            made = stage(target)
        except CompositionError as error:
            raise CompositionError(f"stage {position + 1}: {error}") from error
        if position and made.given:
            raise CompositionError(
                f"{made!r} has front options of its own ({', '.join(made.given)}), but becomes "
                "part of this pipeline: set .options(...) on the whole pipeline, or on the "
                "deployments of its stages"
            )
        steps += made.root.steps if isinstance(made.root, Sequence) else [made.root]
    for position in range(1, len(steps)):
        _check_fit(Sequence("", tuple(steps[:position])), steps[position])
    options = targets[0].given if isinstance(targets[0], Pipeline) else {}
    return Pipeline(steps[0] if len(steps) == 1 else Sequence("", tuple(steps)), options)


@overload
def stage(
    target: Pipeline[A, B],
    *,
    name: str | None = ...,
    method: str = ...,
    pass_by: PassBy | None = ...,
    stream: bool | None = ...,
    timeout_s: float | None = ...,
    retry: int | Retry | None = ...,
) -> Pipeline[A, B]: ...
@overload
def stage(
    target: Callable[[A], Coroutine[Any, Any, B]],
    *,
    name: str | None = ...,
    method: str = ...,
    pass_by: PassBy | None = ...,
    stream: bool | None = ...,
    timeout_s: float | None = ...,
    retry: int | Retry | None = ...,
) -> Pipeline[A, B]: ...
@overload
def stage(
    target: Callable[[A], B],
    *,
    name: str | None = ...,
    method: str = ...,
    pass_by: PassBy | None = ...,
    stream: bool | None = ...,
    timeout_s: float | None = ...,
    retry: int | Retry | None = ...,
) -> Pipeline[A, B]: ...
@overload
def stage(
    target: Any,
    *,
    name: str | None = ...,
    method: str = ...,
    pass_by: PassBy | None = ...,
    stream: bool | None = ...,
    timeout_s: float | None = ...,
    retry: int | Retry | None = ...,
) -> Pipeline[Any, Any]: ...
def stage(
    target: Any,
    *,
    name: str | None = None,
    method: str = "__call__",
    pass_by: PassBy | None = None,
    stream: bool | None = None,
    timeout_s: float | None = None,
    retry: int | Retry | None = None,
) -> Pipeline[Any, Any]:
    """Return ``target`` as a pipeline of one stage, with options.

    Args:
        target: A bound deployment (runs in its own replicas), a deployment (as ``X.bind()``), a
            function or other callable (runs in the pipeline's replica), a ``@ray.remote``
            function or a method of a Ray actor (runs as a task or actor call), a pipeline
            (becomes part of this one), or a dict of these (as ``rc.parallel(**dict)``).
        name: What errors, metrics, timings and pictures call the stage; by default the
            deployment's or the function's own name.
        method: The deployment's method to call.
        pass_by: How the stage receives its input; by default its first parameter's annotation
            decides: ``"value"``, ``"reference"``, ``"stream"`` or ``"request"``.
        stream: Whether the stage is a generator; by default as the method is written.
        timeout_s: A deadline in seconds, over all attempts. Past it the call is cancelled.
        retry: A number of attempts, or an ``rc.Retry``.

    Raises:
        CompositionError: The target is not a stage, or an option does not fit it.
    """
    if isinstance(target, dict):
        from raycompose.combinators import parallel  # the combinators stand on this module

        if not all(isinstance(key, str) for key in target):
            keys = ", ".join(map(repr, target))
            raise CompositionError(f"a dict of stages has str keys, got {keys}")
        target = parallel(**target)
    if isinstance(target, Pipeline):
        if method != "__call__" or pass_by is not None or stream is not None:
            raise CompositionError(
                f"{target!r} is a pipeline: method=, pass_by= and stream= belong to its stages"
            )
        node = target.root
        options = target.given
        _check_name(name, repr(target))
        if name is not None:
            node = replace(node, label=name) if isinstance(node, Stage) else node
    else:
        node, options = _stage(target, name, method, pass_by, stream), {}
    called = name or node.label or repr(target)
    limited = _limited(node, called, name, timeout_s, retry)
    return Pipeline(limited, options)


def _limited(
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


def _check_name(name: Any, called: str) -> None:
    if name is not None and not (isinstance(name, str) and name):
        raise CompositionError(f"stage {called!r}: name={name!r} is not a str that names it")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _stage(
    target: Any, name: str | None, method: str, pass_by: PassBy | None, stream: bool | None
) -> Stage:
    made, function, own_name = _target(target, method)
    _check_name(name, own_name)
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
    if isinstance(target, ray.remote_function.RemoteFunction):
        function: Any = _serve.task_function(target)
        return Task(target), lambda: describe(function), function.__name__
    if isinstance(target, ray.actor.ActorMethod):
        return Task(target), None, _serve.actor_method_name(target)
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


def _check_fit(before: Sequence, after: Node) -> None:
    """Refuse a node behind others when what they give cannot be what it takes."""
    for taker in after.entries:
        check_takes_one(taker)
        if taker.signature.takes == "stream" and before.exits and not before.streams:
            raise CompositionError(
                f"stage {taker.label!r} takes a stream, but {before.exits[0].label!r} does not "
                "give one: yield the items in it, or take the value instead"
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


def stage_names(node: Node) -> list[str]:
    """Return the names of a graph's stages, in reading order."""
    return [s.name for s in stages(node)]
