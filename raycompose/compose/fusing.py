"""Rewriting a graph so that stages run in the pipeline's own replica."""

from raycompose.errors import CompositionError
from raycompose.graph.hosting import HostedDeployment
from raycompose.graph.nodes import Node, stages
from raycompose.graph.opening import retarget
from raycompose.graph.targets import Deployed, Hosted, Target


def fuse(root: Node, names: tuple[str, ...]) -> Node:
    """Return the graph with the named stages' deployments (all, with no names) hosted in-process.

    Raises:
        CompositionError: There is no stage of that name, or it is not a deployment.
    """
    deployed = {s.name: s.target.app for s in stages(root) if isinstance(s.target, Deployed)}
    unknown = [name for name in names if name not in deployed]
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
