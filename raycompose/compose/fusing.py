"""Rewriting a graph so that stages run in the pipeline's own replica."""

from collections.abc import Iterator
from typing import Any

from ray.serve import Application

from raycompose import _serve
from raycompose.errors import CompositionError
from raycompose.graph.hosting import HostedDeployment
from raycompose.graph.nodes import Node, stages
from raycompose.graph.opening import connected, hosted_deployments, retarget
from raycompose.graph.targets import Deployed, Hosted, Target


def fuse(root: Node, names: tuple[str, ...]) -> Node:
    """Return the graph with the named stages' deployments (all, with no names) hosted in-process.

    Raises:
        CompositionError: There is no stage of that name, or it is not a deployment.
    """
    deployed = {s.name: s.target.app for s in _own(root)}
    unknown = [name for name in names if not isinstance(name, str) or name not in deployed]
    if unknown:
        raise CompositionError(
            f"fuse({', '.join(map(repr, unknown))}): there is no such deployment stage in this "
            f"pipeline; it has {', '.join(map(repr, deployed)) or 'none'}"
        )
    chosen = [deployed[name] for name in names or deployed]

    def fused(target: Target) -> Target:
        if isinstance(target, Deployed) and any(target.app is app for app in chosen):
            return Hosted(HostedDeployment.of(target.app), target.method)
        return target

    return retarget(root, fused)


def _own(root: Node) -> Iterator[Any]:
    """The stages whose deployments are the pipeline's own, in replicas of their own."""
    return (s for s in stages(root) if isinstance(s.target, Deployed) and s.target.is_bound)


def joined(root: Node) -> Node:
    """Return the graph whose fused deployments hold handles to one another in the same replica.

    What they are bound to, and is itself bound to a fused one, joins them there.

    Raises:
        CompositionError: A stage that keeps replicas of its own is bound to a fused one.
    """
    fused = set(hosted_deployments(root).values())
    if not fused:
        return root
    for stage in _own(root):
        for holder, held in _bindings(stage.target.app):
            if HostedDeployment.of(held) in fused:
                _refuse(holder, held)

    def host_of(app: Application) -> HostedDeployment | None:
        bound = (app, *(held for _, held in _bindings(app)))
        joins = any(HostedDeployment.of(a) in fused for a in bound)
        return HostedDeployment.of(app) if joins else None

    return connected(root, host_of)


def _bindings(app: Application) -> Iterator[tuple[Application, Application]]:
    """What an application is bound to, at any depth: each holder with what it holds."""
    deployment = _serve.deployment_of(app)
    for held in _serve.found((deployment.init_args, deployment.init_kwargs), Application):
        yield app, held
        yield from _bindings(held)


def _refuse(holder: Application, held: Application) -> None:
    name, by = (_serve.deployment_of(app).name for app in (held, holder))
    raise CompositionError(
        f"fuse(): {name!r} is fused, but {by!r}, which has replicas of its own, is bound to it, "
        f"too: one application cannot be in both places. Fuse {by!r} as well, leave {name!r} out, "
        f"or bind {by!r} to an application of its own"
    )
