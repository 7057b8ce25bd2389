"""Places that one request holds several of at once, of the same deployment.

A stage that takes a stream whole holds a place of its deployment (``max_ongoing_requests``) until
the stream's end. When the stream comes from the same deployment it takes another place meanwhile:
requests that all hold the first and wait for the second would wait for ever.
"""

from collections.abc import Sequence as Steps
from typing import Any

from raycompose.errors import CompositionError
from raycompose.graph.hosting import HostedDeployment
from raycompose.graph.nodes import Node, deployments, stages
from raycompose.graph.targets import Hosted
from raycompose.graph.wrappers import Gated


def with_gates(steps: Steps[Node]) -> list[Node]:
    """Return the steps, those gated that would fill their deployment's places while they wait.

    Raises:
        CompositionError: One request alone takes more places than the deployment has.
    """
    plain = [step.body if isinstance(step, Gated) else step for step in steps]
    gated: list[Node] = []
    for position, step in enumerate(plain):
        at_once = _at_once(step, _sources(plain[:position])) if step.takes_stream else None
        gated.append(step if at_once is None else Gated("", step, at_once))
    return gated


def _sources(before: Steps[Node]) -> list[Node]:
    """The steps whose calls are under way while the stream that they make is taken."""
    sources: list[Node] = []
    for step in reversed(before):
        if sources and not step.streams:
            break
        sources.append(step)
    return sources


def _at_once(taker: Node, sources: list[Node]) -> int | None:
    """How many requests may be in the taker at once; ``None``: as many as come."""
    least = None
    for deployment in deployments(taker):
        makers = [s for source in sources for s in stages(source)]
        held = 1 + sum(s.target.deployment == deployment for s in makers)
        if held == 1:
            continue
        own = next(s for s in stages(taker) if s.target.deployment == deployment)
        places = _places(own.target)
        if places < held:
            raise CompositionError(
                f"stage {own.label!r} takes a stream of its own deployment: a request holds "
                f"{held} of its places at once, and max_ongoing_requests={places}, so it would "
                "wait for itself. Raise max_ongoing_requests, bind the class twice, so that each "
                "stage has replicas of its own, or put rc.collect between them"
            )
        least = min(places // held, least or places)
    return least


def _places(target: Any) -> int:
    hosted = target.hosted if isinstance(target, Hosted) else HostedDeployment.of(target.app)
    places: int = hosted.deployment.max_ongoing_requests
    return places
