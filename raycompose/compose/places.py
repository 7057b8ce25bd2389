"""Places that calls hold while they wait for other calls, which need places, too.

A stage that takes a stream whole holds a place of its deployment (``max_ongoing_requests``) until
the stream's end, and one that takes a reference until its result is there. What they wait for takes
a place meanwhile. Where that leads back to the same deployment, be it by way of another request,
calls that hold all its places could wait for ever. So

- a stage is called with such a reference once the result is there;
- of the calls that wait for such a stream so few run at once that a place is left for those that
  they wait for. That is ordered by level: a call waits for calls of lower levels alone, and each
  level of a deployment leaves a place to each one below it.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Steps
from dataclasses import dataclass, field, replace
from typing import Any

from raycompose.errors import CompositionError
from raycompose.graph.hosting import HostedDeployment
from raycompose.graph.nodes import Node, Stage, deployments, stages, transform
from raycompose.graph.sequences import Sequence, travels_by_reference
from raycompose.graph.targets import Deployed, Hosted
from raycompose.graph.wrappers import Gated


def placed(root: Node) -> Node:
    """Return a graph whose requests do not wait for one another's places for ever.

    Args:
        root: The graph; its nodes have their names.

    Raises:
        CompositionError: A deployment has too few places for that.
    """
    plain = transform(root, lambda node: node.body if isinstance(node, Gated) else node)
    waits = _Waits()
    waits.visit(plain, [], frozenset())
    lines = _lines(plain, waits)

    def change(node: Node) -> Node:
        if isinstance(node, Sequence):
            return replace(node, ends_first=waits.ends_first(node))
        lined = isinstance(node, Stage) and lines.get(node.name)
        return Gated("", node, lined) if lined else node

    return _changed(plain, change)


def _changed(node: Node, change: Any) -> Node:
    """The graph with ``change`` applied to its nodes, and not again to what that puts inside."""
    changed: Node = change(node)
    if not node.children:
        return changed
    return changed.with_children(tuple(_changed(child, change) for child in node.children))


@dataclass
class _Waits:
    """What waits for what in a graph.

    Args:
        takers: The stages that hold a place while they take a stream, by name, with the stages
            whose calls are under way meanwhile.
        streams: Each deployment with one that it waits for, for a stream.
        references: The same, for references.
        referred: A sequence, the position of a step whose result is referred to, the deployments
            that are called with it, and those that may have yet to begin.
    """

    takers: dict[str, tuple[Stage, list[Stage]]] = field(default_factory=dict)
    streams: set[tuple[Any, Any]] = field(default_factory=set)
    references: set[tuple[Any, Any]] = field(default_factory=set)
    referred: list[tuple[Sequence, int, set[Any], frozenset[Any]]] = field(default_factory=list)

    def visit(self, node: Node, sources: list[Stage], pending: frozenset[Any]) -> None:
        """Note what waits in a node.

        Args:
            node: The node.
            sources: The stages that its input comes from, if that is a stream.
            pending: The deployments whose calls its input waits for, if that is a reference.
        """
        if not node.takes_stream:
            sources = []
        if isinstance(node, Sequence):
            self._visit_steps(node, sources, pending)
        elif not isinstance(node, Stage):
            for child in node.children:
                self.visit(child, sources, pending)
        elif (own := node.target.deployment) is not None:
            if node.takes_stream and sources:
                self.takers[node.name] = (node, sources)
                self.streams |= {(own, source.target.deployment) for source in sources}
            if node.takes_reference:
                self.references |= {(own, other) for other in pending}

    def _visit_steps(self, node: Sequence, sources: list[Stage], pending: frozenset[Any]) -> None:
        for position, step in enumerate(node.steps):
            self.visit(step, _sources(node.steps[:position], sources), pending)
            after = node.steps[position + 1] if position + 1 < len(node.steps) else None
            if after is None or not travels_by_reference(step, after):
                pending = frozenset()
                continue
            begun = isinstance(step, Stage) and isinstance(step.target, Deployed | Hosted)
            own = frozenset() if begun else frozenset(deployments(step))
            pending = own | (pending if step.takes_reference else frozenset())
            self.referred.append((node, position, deployments(after), pending))

    def ends_first(self, node: Sequence) -> frozenset[int]:
        """Return the steps that end before what follows is called with a reference to them."""
        edges = self.streams | self.references
        return frozenset(
            position
            for sequence, position, takers, pending in self.referred
            if sequence is node and any(_leads(edges, p, t) for p in pending for t in takers)
        )

    def levels(self) -> dict[str, int]:
        """Return how many calls, each waiting for the next, a call of each taker waits for."""
        levels: dict[str, int] = {}
        for name, (stage, sources) in self.takers.items():
            own = stage.target.deployment
            below = [s for s in sources if _leads(self.streams, s.target.deployment, own)]
            levels[name] = max((1 + levels.get(s.name, 0) for s in below), default=0)
        return levels


def _sources(before: Steps[Node], outer: list[Stage]) -> list[Stage]:
    """The stages with places whose calls are under way while what the steps make is taken."""
    found: list[Stage] = []
    for position in reversed(range(len(before))):
        found += [s for s in stages(before[position]) if s.target.deployment is not None]
        if position and not before[position - 1].streams:
            return found
    return found + outer


def _leads(edges: Iterable[tuple[Any, Any]], start: Any, end: Any) -> bool:
    """Whether one gets from a deployment to another along the edges, or is there already."""
    seen, ahead = {start}, [start]
    while ahead:
        here = ahead.pop()
        if here == end:
            return True
        further = {to for origin, to in edges if origin == here} - seen
        seen |= further
        ahead += further
    return False


def _lines(root: Node, waits: _Waits) -> dict[str, tuple[tuple[str, int], ...]]:
    """The lines that each stage waits in, by its name."""
    level = waits.levels()
    levels: dict[Any, set[int]] = {}
    first: dict[Any, str] = {}
    for stage in stages(root):
        levels.setdefault(stage.target.deployment, set()).add(level.get(stage.name, 0))
        first.setdefault(stage.target.deployment, stage.name)
    lines = {}
    for name, (stage, _) in waits.takers.items():
        deployment, places = stage.target.deployment, _places(stage.target)
        below = sorted(levels[deployment]).index(level[name])
        if places is None or not below:
            continue
        if places <= below:
            raise CompositionError(
                f"stage {stage.label!r} takes a stream, for which it waits for calls of its own "
                f"deployment: they need {below + 1} places at once, and max_ongoing_requests="
                f"{places}, so requests would wait for themselves or for one another. Raise "
                "max_ongoing_requests, bind the class twice, so that each stage has replicas of "
                "its own, or put rc.collect between them"
            )
        # The highest first: who waits in one line holds up nobody in those below.
        lines[name] = tuple(
            (f"line {n} of {first[deployment]}", places - n) for n in range(below, 0, -1)
        )
    return lines


def _places(target: Any) -> int | None:
    """How many calls a deployment takes at once; ``None``: unknown, for it runs elsewhere."""
    if isinstance(target, Hosted):
        hosted = target.hosted
    elif isinstance(target, Deployed) and target.is_bound:
        hosted = HostedDeployment.of(target.app)
    else:
        return None
    places: int = hosted.deployment.max_ongoing_requests
    return places
