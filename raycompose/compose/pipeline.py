"""Graphs become Ray Serve applications: ``Pipeline``, ``pipeline()``, ``stage()``."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Generic, TypeAlias, TypeVar, overload

from ray.serve import Application, Deployment
from typing_extensions import Unpack

from raycompose import _serve
from raycompose.compose import fusing
from raycompose.compose.checks import check_fit, seal
from raycompose.compose.description import describe
from raycompose.compose.front import check_options, front, settings
from raycompose.compose.notation import written
from raycompose.compose.picture import Graph
from raycompose.compose.places import placed
from raycompose.compose.stages import ACCEPTED, Composed, StageOptions, make_node
from raycompose.errors import CompositionError, Hinting
from raycompose.graph.limits import Hedge, Retry
from raycompose.graph.nodes import Node, named
from raycompose.graph.sequences import Sequence
from raycompose.graph.signatures import PassBy
from raycompose.http.ingress import Embedded
from raycompose.http.settings import Settings

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
T = TypeVar("T")

_Sync: TypeAlias = Callable[[A], B]
_Async: TypeAlias = Callable[[A], Coroutine[Any, Any, B]]


class Pipeline(Composed, Hinting, Generic[In, Out]):
    """Stages composed into one Ray Serve application. Immutable.

    A pipeline **is** a ``ray.serve.Application``: give it to ``serve.run``, ``serve build``,
    another deployment's ``.bind(...)`` or ``rc.local``. In plain Ray Serve it is a small ingress
    deployment that holds the handles of the others and awaits them in turn.

    Pipelines are made by ``rc.pipeline``, ``.then``, ``|`` and the combinators.
    """

    _INSTEAD = dict.fromkeys(
        ("acall", "asgi", "astream", "call", "map", "remote", "run", "stream", "url"),
        "a pipeline is a description of what can run; deploy it with client = rc.run(app), or run "
        "it here with client = rc.local(app), and use client.call(...)",
    )

    def __init__(self, root: Node, options: Mapping[str, Any] | None = None) -> None:
        if not isinstance(root, Node):
            raise TypeError(
                "pipelines are made by rc.pipeline(...), .then(...) and the combinators"
            )
        super().__init__(placed(named(root)), options or {})

    @overload
    def then(
        self, target: "Pipeline[Out, T]", **options: Unpack[StageOptions]
    ) -> "Pipeline[In, T]": ...
    @overload
    def then(
        self, target: "_Async[Out, T]", **options: Unpack[StageOptions]
    ) -> "Pipeline[In, T]": ...
    @overload
    def then(
        self, target: "_Sync[Out, T]", **options: Unpack[StageOptions]
    ) -> "Pipeline[In, T]": ...
    @overload
    def then(self, target: Any, **options: Unpack[StageOptions]) -> "Pipeline[In, Any]": ...
    def then(self, target: Any, **options: Unpack[StageOptions]) -> "Pipeline[In, Any]":
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
    def __or__(self, target: "_Async[Out, T]") -> "Pipeline[In, T]": ...
    @overload
    def __or__(self, target: "_Sync[Out, T]") -> "Pipeline[In, T]": ...
    @overload
    def __or__(self, target: Any) -> "Pipeline[In, Any]": ...
    def __or__(self, target: Any) -> "Pipeline[In, Any]":
        made: Pipeline[In, Any] = piped(self, target)
        return made

    def __ror__(self, target: Any) -> "Pipeline[Any, Out]":
        return pipeline(target, self)

    def options(self, **options: Any) -> "Pipeline[In, Out]":
        """Return this pipeline with options of the deployment that fronts it.

        Args:
            options: What ``Deployment.options`` takes (``name``, ``num_replicas``,
                ``max_ongoing_requests``, ``autoscaling_config``, ``ray_actor_options``, ...), and
                ``timeout_s`` for a deadline of each request in seconds, ``debug=True`` to show
                error messages to HTTP clients, ``max_body_bytes`` to limit what they may send,
                ``stream="sse"``, ``"ndjson"`` or ``"raw"`` to send streams in that form whatever
                they accept.

        Raises:
            CompositionError: There is no such option, or Ray refuses its value.
        """
        given = {**self.given, **options}
        check_options(given)
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
        return Embedded(fusing.joined(self.root), self.settings.timeout_s)

    @property
    def graph(self) -> Graph:
        """The graph as plain data and as pictures: ``print(app.graph)``, ``app.graph.svg()``.

        Raises:
            CompositionError: What ``fuse()`` puts together cannot be merged.
        """
        return Graph(describe(self.root, self.bind_front(), self.settings))

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        """The picture, for Jupyter."""
        return {**self.graph.pictures(), "text/plain": repr(self)}

    def bind_front(self) -> Deployment:
        """Return the deployment that fronts the pipeline, with the graph bound to it."""
        graph = fusing.joined(self.root)
        deployment = front(graph, self.given)
        return _serve.deployment_of(deployment.bind(seal(graph), self.settings))

    @property
    def settings(self) -> Settings:
        """The settings of the pipeline's edge, from ``options()``."""
        return settings(self.given)

    def __repr__(self) -> str:
        return f"Pipeline({written(self.root)})"

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_bound_deployment", None)  # made again from the rest
        return state


@overload
def pipeline(a: Pipeline[A, B], /) -> Pipeline[A, B]: ...
@overload
def pipeline(a: _Async[A, B], /) -> Pipeline[A, B]: ...
@overload
def pipeline(a: _Sync[A, B], /) -> Pipeline[A, B]: ...
@overload
def pipeline(a: Pipeline[A, B], b: Pipeline[B, C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(a: Pipeline[A, B], b: _Async[B, C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(a: Pipeline[A, B], b: _Sync[B, C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(a: _Async[A, B], b: Pipeline[B, C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(a: _Async[A, B], b: _Async[B, C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(a: _Async[A, B], b: _Sync[B, C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(a: _Sync[A, B], b: Pipeline[B, C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(a: _Sync[A, B], b: _Async[B, C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(a: _Sync[A, B], b: _Sync[B, C], /) -> Pipeline[A, C]: ...
@overload
def pipeline(a: _Async[A, B], b: _Async[B, C], c: _Async[C, D], /) -> Pipeline[A, D]: ...
@overload
def pipeline(a: _Sync[A, B], b: _Sync[B, C], c: _Sync[C, D], /) -> Pipeline[A, D]: ...
@overload
def pipeline(*targets: Any) -> Pipeline[Any, Any]: ...
def pipeline(*targets: Any) -> Pipeline[Any, Any]:
    """Return the targets composed one after the other.

    ``rc.pipeline(f, g, h)`` called with ``x`` returns ``h(g(f(x)))``. In plain Ray Serve:

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
            node = make_node(target)
        except CompositionError as error:
            raise CompositionError(f"stage {position + 1}: {error}") from error
        if position and isinstance(target, Composed) and target.given:
            raise CompositionError(
                f"{target!r} has front options of its own ({', '.join(target.given)}), but becomes "
                "part of this pipeline: set .options(...) on the whole pipeline, or on the "
                "deployments of its stages"
            )
        steps += node.steps if isinstance(node, Sequence) else [node]
    for position in range(1, len(steps)):
        check_fit(Sequence("", tuple(steps[:position])), steps[position])
    options = targets[0].given if isinstance(targets[0], Pipeline) else {}
    root = steps[0] if len(steps) == 1 else Sequence("", tuple(steps))
    return Pipeline(root, options)


def piped(app: Application, target: Any) -> Any:
    """Return ``app | target``; what is no stage may have an ``__ror__`` of its own that takes it.

    Raises:
        CompositionError: It has none, or does not take an application either.
    """
    try:
        return pipeline(app, target)
    except CompositionError:
        # Not getattr: `type` itself has an __ror__, which is not the target's.
        kinds = () if isinstance(target, Composed) else type(target).__mro__
        own = next((vars(kind)["__ror__"] for kind in kinds if "__ror__" in vars(kind)), None)
        made = NotImplemented if own is None else own(target, app)
        if made is NotImplemented:
            raise
        return made


@overload
def stage(target: Pipeline[A, B], **options: Unpack[StageOptions]) -> Pipeline[A, B]: ...
@overload
def stage(target: _Async[A, B], **options: Unpack[StageOptions]) -> Pipeline[A, B]: ...
@overload
def stage(target: _Sync[A, B], **options: Unpack[StageOptions]) -> Pipeline[A, B]: ...
@overload
def stage(target: Any, **options: Unpack[StageOptions]) -> Pipeline[Any, Any]: ...
def stage(
    target: Any,
    *,
    name: str | None = None,
    method: str = "__call__",
    pass_by: PassBy | None = None,
    stream: bool | None = None,
    timeout_s: float | None = None,
    retry: int | Retry | None = None,
    affinity: Callable[[Any], Any] | str | None = None,
    hedge: Hedge | None = None,
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
        affinity: A function of the value, or a key of it, for the session id of the stage's calls,
            a ``str`` or a number, for Ray Serve's session-aware routers
            (``ConsistentHashRouter``); by default the request's own (``x-session-id``).
        hedge: An ``rc.Hedge``: a second call when the first is slow; the loser is cancelled.

    Raises:
        CompositionError: The target is not a stage, or an option does not fit it.
    """
    node = make_node(
        target,
        name=name,
        method=method,
        pass_by=pass_by,
        stream=stream,
        timeout_s=timeout_s,
        retry=retry,
        affinity=affinity,
        hedge=hedge,
    )
    return Pipeline(node, target.given if isinstance(target, Pipeline) else None)
