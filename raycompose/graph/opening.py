"""A graph made ready to run: what runs is made when an engine opens, and goes with it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from raycompose.graph.engines import Engine
from raycompose.graph.hosting import Host, HostedDeployment
from raycompose.graph.nodes import Node, Stage, stages, transform
from raycompose.graph.targets import Hosted, Running, Target


@dataclass(frozen=True)
class OpenGraph:
    """A graph whose hosted deployments run in this process, on one event loop.

    Args:
        root: The graph to call.
        hosts: The hosted deployments, by name.
        engine: What its nodes keep between requests.
    """

    root: Node
    hosts: dict[str, Host]
    engine: Engine = field(default_factory=Engine)

    async def start(self) -> None:
        """Construct the hosted deployments, all at once."""
        await asyncio.gather(*(host.start() for host in self.hosts.values()))


def open_graph(root: Node) -> OpenGraph:
    """Return the graph with a host for each hosted deployment, whose stages share it."""
    uses = Counter(stage.target.hosted for stage in _hosted(root))
    hosts = {hosted: Host(hosted) for hosted in uses}

    def run(target: Target) -> Target:
        if not isinstance(target, Hosted):
            return target
        return Running(hosts[target.hosted], target.method, uses[target.hosted] > 1)

    by_name = {name: hosts[hosted] for name, hosted in hosted_deployments(root).items()}
    return OpenGraph(retarget(root, run), by_name)


def hosted_deployments(root: Node) -> dict[str, HostedDeployment]:
    """Return the deployments to run in the graph's process, by their first stage's name."""
    names: dict[HostedDeployment, str] = {}
    for stage in _hosted(root):
        names.setdefault(stage.target.hosted, stage.name)
    return {name: hosted for hosted, name in names.items()}


def _hosted(root: Node) -> Iterator[Any]:
    return (stage for stage in stages(root) if isinstance(stage.target, Hosted))


def retarget(root: Node, change: Callable[[Target], Target]) -> Node:
    """Return the graph with ``change`` applied to the target of each stage."""
    return transform(
        root, lambda n: replace(n, target=change(n.target)) if isinstance(n, Stage) else n
    )
