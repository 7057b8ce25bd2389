"""A graph made ready to run: what runs is made when an engine opens, and goes with it."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ray import ObjectRef
from ray.serve import Application

from raycompose import _serve
from raycompose.errors import ApplicationUnavailableError
from raycompose.flow.references import Ref, awaited
from raycompose.flow.request import plain
from raycompose.graph.applications import Elsewhere
from raycompose.graph.context import Context
from raycompose.graph.engines import Engine
from raycompose.graph.hosting import HandleTo, Host, HostedDeployment
from raycompose.graph.nodes import Node, Stage, stages, transform
from raycompose.graph.targets import Hosted, Running, Target


@dataclass(frozen=True)
class OpenGraph:
    """A graph whose hosted deployments run in this process, on one event loop.

    Args:
        root: The graph to call.
        hosts: The hosted deployments, by name: as ``hosted_deployments`` has it.
        engine: What its nodes keep between requests.
    """

    root: Node
    hosts: Mapping[str, Host]
    engine: Engine = field(default_factory=Engine)

    async def start(self) -> None:
        """Construct the hosted deployments, all at once, and look up the other applications.

        When one cannot be constructed those that were are torn down.
        """
        try:
            await asyncio.gather(*(host.start() for host in self.hosts.values()))
        except BaseException:
            await self.close()
            raise
        for stage in stages(self.root):
            if isinstance(stage.target, Elsewhere):
                with suppress(ApplicationUnavailableError):  # it may be deployed later
                    await stage.target.find(self.engine)

    async def close(self) -> None:
        """Tear the hosted deployments down, as Ray Serve does when it stops a replica."""
        await asyncio.gather(*(host.close() for host in self.hosts.values()))


def open_graph(root: Node, user_configs: Mapping[str, Any] | None = None) -> OpenGraph:
    """Return the graph with a host for each hosted deployment, whose stages share it.

    Args:
        root: The graph.
        user_configs: What to configure stages with, by name, rather than with their own.
    """
    uses = Counter(stage.target.hosted for stage in _hosted(root))
    named = hosted_deployments(root)
    configs = {
        named[name]: config for name, config in (user_configs or {}).items() if name in named
    }
    hosts: dict[HostedDeployment, Host] = {}
    loop = asyncio.get_running_loop()

    def handle_to(place: HandleTo) -> Any:
        callee = _Callee(hosts[place.hosted])
        return _serve.handle_to(callee, place.hosted.name, loop)

    for hosted in named.values():
        config = configs.get(hosted, hosted.deployment.user_config)
        hosts[hosted] = Host(hosted, handle_to, config)

    def run(target: Target) -> Target:
        if not isinstance(target, Hosted):
            return target
        return Running(hosts[target.hosted], target.method, uses[target.hosted] > 1)

    by_name = {name: hosts[hosted] for name, hosted in named.items()}
    return OpenGraph(retarget(root, run), by_name)


class _Callee:
    """What a handle in this process leads to: a host, called as its stages call it."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def call(self, method: str, args: Any, kwargs: Any) -> Any:
        args, kwargs = await _fetched(args, kwargs)
        return await Running(self._host, method, False).call(args, kwargs, Context())

    async def stream(self, method: str, args: Any, kwargs: Any) -> AsyncGenerator[Any, None]:
        args, kwargs = await _fetched(args, kwargs)
        items = Running(self._host, method, True).stream(args, kwargs, Context())
        async with aclosing(items):
            async for item in items:
                yield item


async def _fetched(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with the values of references, which Ray fetches for its callees, too."""
    named = {name: await _value(value) for name, value in kwargs.items()}
    return tuple([await _value(value) for value in args]), named


async def _value(argument: Any) -> Any:
    value = await (Ref(argument) if isinstance(argument, ObjectRef) else awaited(argument))
    return plain(value)


def _with_held(found: Mapping[HostedDeployment, Any]) -> dict[HostedDeployment, None]:
    """The hosted deployments, after those that they hold handles to."""
    seen: dict[HostedDeployment, None] = {}

    def add(hosted: HostedDeployment) -> None:
        for held in hosted.holds:
            add(held)
        seen.setdefault(hosted)

    for hosted in found:
        add(hosted)
    return seen


def connected(root: Node, host_of: Callable[[Application], HostedDeployment | None]) -> Node:
    """Return the graph whose hosted deployments hold handles to one another in this process.

    So an application that is a stage and an argument of another is one instance.

    Args:
        root: The graph.
        host_of: The description of an application that runs in the same process, ``None`` for one
            that has replicas of its own.
    """
    made: dict[HostedDeployment, HostedDeployment] = {}

    def connect(hosted: HostedDeployment) -> HostedDeployment:
        if hosted not in made:
            holds: dict[HostedDeployment, None] = {}

            def place(app: Application) -> Any:
                held = host_of(app)
                if held is None:
                    return app
                holds[connect(held)] = None
                return HandleTo(connect(held))

            arguments = _serve.replaced(hosted.arguments, Application, place)
            made[hosted] = replace(hosted, arguments=arguments, holds=tuple(holds))
        return made[hosted]

    def change(target: Target) -> Target:
        if isinstance(target, Hosted):
            return Hosted(connect(target.hosted), target.method)
        return target

    return retarget(root, change)


def hosted_deployments(root: Node) -> dict[str, HostedDeployment]:
    """Return the deployments to run in the graph's process, by their first stage's name.

    Those that others are bound to follow, by the deployment's own name, made unique.
    """
    names: dict[HostedDeployment, str] = {}
    for stage in _hosted(root):
        names.setdefault(stage.target.hosted, stage.name)
    for hosted in _with_held(dict(names)):
        if hosted not in names:
            names[hosted] = _unique(hosted.name, set(names.values()))
    return {name: hosted for hosted, name in names.items()}


def _unique(name: str, taken: set[str]) -> str:
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return name if name not in taken else next(n for n in numbered if n not in taken)


def _hosted(root: Node) -> Iterator[Any]:
    return (stage for stage in stages(root) if isinstance(stage.target, Hosted))


def retarget(root: Node, change: Callable[[Target], Target]) -> Node:
    """Return the graph with ``change`` applied to the target of each stage."""
    return transform(
        root, lambda n: replace(n, target=change(n.target)) if isinstance(n, Stage) else n
    )
