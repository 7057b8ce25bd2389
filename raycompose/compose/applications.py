"""``app()``: an application that runs on its own, as a stage."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.serve import Application, Deployment

from raycompose.compose.pipeline import Pipeline
from raycompose.compose.stages import make_node
from raycompose.errors import CompositionError, RayComposeError
from raycompose.graph.applications import Elsewhere
from raycompose.graph.nodes import Node, Stage, named, stages, transform
from raycompose.graph.signatures import Signature
from raycompose.graph.wrappers import Named


def app(
    name: str, deployment: str | None = None, *, method: str = "__call__", stream: bool = False
) -> Pipeline[Any, Any]:
    """Return a stage that calls an application which runs on its own, on the same cluster.

    It is found by name when the pipeline's replica starts, or at the first request after it was
    deployed; so teams deploy apart. While it is absent the answer is 503, naming it. In plain Ray
    Serve: ``handle = serve.get_app_handle(name)``, called in an ingress of your own. Without Serve
    something stands in for it: ``rc.local(app, apps={name: stand_in})``.

    Args:
        name: The application's name, as in ``serve.run(..., name=name)``; the stage's, too.
        deployment: The deployment to call; by default the application's ingress.
        method: The deployment's method.
        stream: Whether the method is a generator.

    Raises:
        CompositionError: A name is not a non-empty ``str``.
    """
    for word, given in (("name", name), ("deployment", deployment), ("method", method)):
        if not (isinstance(given, str) and given) and (given is not None or word != "deployment"):
            raise CompositionError(f"rc.app(): {word} must be a non-empty str, got {given!r}")
    target = Elsewhere(name, deployment, method)
    return Pipeline(Stage(name, target, Signature(streams=bool(stream))))


def with_stand_ins(root: Node, apps: Mapping[str, Any]) -> Node:
    """Return the graph with something in the place of the other applications that it calls.

    Args:
        root: The graph.
        apps: What ``rc.stage`` takes, by an application's name, or by ``"name/deployment"``.

    Raises:
        RayComposeError: Something stands in for an application that the graph does not call, or
            nothing for one that it does and no Ray runs on which to find it.
    """
    called = {key for stage in stages(root) for key in _keys(stage)}
    if unknown := [name for name in apps if name not in called]:
        raise RayComposeError(
            f"apps= has {', '.join(map(repr, unknown))}, which the pipeline does not call; it "
            f"calls {', '.join(map(repr, sorted(called))) or 'no other application'}"
        )

    def replaced(node: Node) -> Node:
        keys = _keys(node)
        stand_in = next((apps[key] for key in keys if key in apps), None)
        if keys and stand_in is None and not ray.is_initialized():
            raise RayComposeError(
                f"the application {keys[-1]!r} runs elsewhere, and no Ray is running here: give "
                f"rc.local() what stands in for it, apps={{{keys[-1]!r}: ...}}, or connect to its "
                "cluster with ray.init() before"
            )
        return node if stand_in is None else _standing_in(stand_in, node)

    return named(transform(root, replaced))  # what stands in has names of its own


def _keys(node: Node) -> tuple[str, ...]:
    """What a stage's application goes by in ``apps``, the most particular first."""
    target = node.target if isinstance(node, Stage) else None
    if not isinstance(target, Elsewhere):
        return ()
    return (target.app,) if target.name is None else (f"{target.app}/{target.name}", target.app)


def _standing_in(stand_in: Any, node: Any) -> Node:
    has_methods = isinstance(stand_in, Application | Deployment)
    has_methods = has_methods and not isinstance(stand_in, Pipeline)
    method = node.target.method if has_methods else "__call__"
    made = make_node(stand_in, method=method)
    if made.streams != node.streams:
        raise RayComposeError(
            f"what stands in for the application {node.target.app!r} "
            f"{'streams' if made.streams else 'gives one value'}, unlike rc.app(..., "
            f"stream={node.streams})"
        )
    if isinstance(made, Stage):
        return replace(made, label=node.label, name=node.name)
    return Named(node.label, made, name=node.name)
