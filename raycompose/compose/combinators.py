"""The functions that make branching pipelines. Each equals a few lines of plain Python."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raycompose.compose.checks import check_count, refuse_streams
from raycompose.compose.pipeline import Pipeline
from raycompose.compose.stages import make_branches, make_decider, make_parallel
from raycompose.errors import CompositionError
from raycompose.flow.streams import Stream
from raycompose.graph.branches import Each, Passthrough, Shadow
from raycompose.graph.choices import Fallback, Split, Switch
from raycompose.graph.limits import is_number
from raycompose.graph.nodes import Stage
from raycompose.graph.signatures import describe
from raycompose.graph.targets import Inline

passthrough: Pipeline[Any, Any] = Pipeline(Passthrough())
"""The identity, ``lambda x: x``, for use inside ``parallel`` and ``when``."""


def parallel(*targets: Any, **named: Any) -> Pipeline[Any, Any]:
    """Return the pipeline that gives the same input to all targets at once.

    ``rc.parallel(f, g)`` called with ``x`` gives ``(f(x), g(x))``; ``rc.parallel(a=f, b=g)``
    gives ``{"a": f(x), "b": g(x)}``. The first failure cancels the others and is raised.

    Args:
        targets: What ``rc.stage`` takes; the result is a tuple in this order.
        named: The same by name; the result is a dict in this order.

    Raises:
        CompositionError: No targets, positional and named ones mixed, or a target that streams.
    """
    if targets and named:
        raise CompositionError(
            "rc.parallel(): give all targets by position, for a tuple, or all by name, for a dict"
        )
    node = make_parallel(named or dict(zip(map(str, range(len(targets))), targets, strict=True)))
    return Pipeline(node if named else replace(node, keys=None))


def switch(on: Any, cases: Mapping[Any, Any], default: Any = None) -> Pipeline[Any, Any]:
    """Return the pipeline that runs the one target whose key the value has.

    ``rc.switch(on, cases)`` called with ``x`` gives ``cases[on(x)](x)``.

    Args:
        on: A function or an ``async def`` of the value, run on the event loop, so it must be
            quick; a string: a key of the value if that is a mapping, else an attribute; or any
            other target, a deployment say, whose result for the value is the key. The chosen
            target gets the value itself.
        cases: What ``rc.stage`` takes, by key.
        default: What runs when no key matches; without it that is a ``NoMatchError`` (HTTP 422).

    Raises:
        CompositionError: There are no cases, or ``on`` cannot decide.
    """
    if not isinstance(cases, Mapping) or not cases:
        raise CompositionError(
            f"rc.switch(): cases is a dict of at least one key and target, got {cases!r}"
        )
    by = on if isinstance(on, str) else make_decider("rc.switch(): on", on)
    targets = (*cases.values(), default) if default is not None else tuple(cases.values())
    return Pipeline(Switch("switch", make_branches("switch", targets), by, tuple(cases)))


def when(predicate: Any, then: Any, otherwise: Any = passthrough) -> Pipeline[Any, Any]:
    """Return the pipeline that is ``then(x) if predicate(x) else otherwise(x)``.

    Args:
        predicate: A function or an ``async def`` of the value, run on the event loop, so it must
            be quick; or any other target, a deployment say, whose result for the value decides.
        then: What ``rc.stage`` takes.
        otherwise: The same; by default the value itself. Nest another ``rc.when`` for elif.

    Raises:
        CompositionError: The predicate cannot decide, or a target is not a stage.
    """
    by = make_decider("rc.when(): predicate", predicate)
    branches = make_branches("when", (then, otherwise))
    return Pipeline(Switch("when", branches, by, (True, False), by_truth=True))


def split(*shares: tuple[Any, float], key: Any = None) -> Pipeline[Any, Any]:
    """Return the pipeline that runs one target, chosen by weight: A/B tests and canaries.

    Args:
        shares: ``(target, percent)`` pairs; percents are above 0 and sum to 100.
        key: A function of the value, or any other target. The same key always goes the same way,
            in every process, until the weights change; by default every call is drawn anew.

    Raises:
        CompositionError: The weights do not sum to 100, or one is not a number above 0.
    """
    if not shares or not all(isinstance(s, tuple) and len(s) == 2 for s in shares):
        raise CompositionError(
            f"rc.split() takes (target, percent) pairs: rc.split((a, 90), (b, 10)); got {shares!r}"
        )
    by = None if key is None else make_decider("rc.split(): key", key)
    weights = tuple(weight for _, weight in shares)
    for weight in weights:
        if not is_number(weight) or not weight > 0:
            raise CompositionError(f"rc.split(): a weight is a number above 0, got {weight!r}")
    total = sum(weights)
    if abs(total - 100) > 1e-6:
        raise CompositionError(f"rc.split(): the weights sum to {total:g}, and must sum to 100")
    branches = make_branches("split", tuple(target for target, _ in shares))
    return Pipeline(Split("split", branches, by, weights))


def shadow(target: Any, percent: float = 100, max_in_flight: int = 16) -> Pipeline[Any, Any]:
    """Return the pipeline that passes its input on and mirrors a share of it to ``target``.

    ``rc.shadow(f)`` called with ``x`` gives ``x``, while ``f(x)`` runs beside it: its latency,
    result and failure change nothing.

    Args:
        target: What ``rc.stage`` takes.
        percent: The share of inputs that is mirrored, above 0 and up to 100.
        max_in_flight: How many mirrored calls may run at once in one replica of the pipeline;
            more are dropped, and counted in ``raycompose_shadow_dropped``.

    Raises:
        CompositionError: ``percent`` or ``max_in_flight`` is out of range.
    """
    if not is_number(percent) or not 0 < percent <= 100:
        raise CompositionError(f"rc.shadow(): percent is above 0 and up to 100, got {percent!r}")
    check_count("rc.shadow()", "max_in_flight", max_in_flight)
    return Pipeline(Shadow("shadow", make_branches("shadow", (target,)), percent, max_in_flight))


def each(
    target: Any, max_concurrency: int = 8, return_exceptions: bool = False
) -> Pipeline[Any, Any]:
    """Return the pipeline that applies ``target`` to every item of a list, concurrently.

    ``rc.each(f)`` called with ``xs`` gives ``[f(x) for x in xs]``, in order.

    Args:
        target: What ``rc.stage`` takes.
        max_concurrency: How many items are under way at once.
        return_exceptions: Put an item's error at its own index rather than raise the first.

    Raises:
        CompositionError: ``max_concurrency`` is below 1, or the target streams.
    """
    check_count("rc.each()", "max_concurrency", max_concurrency)
    branches = make_branches("each", (target,))
    refuse_streams("each", branches)
    return Pipeline(Each("each", branches, max_concurrency, return_exceptions))


def fallback(
    *targets: Any, on: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Pipeline[Any, Any]:
    """Return the pipeline that gives the result of the first target that succeeds.

    When all fail the first error is raised, with the others in its notes. An error that is the
    client's fault (4xx) is raised at once. A stream is settled once its first item is there.

    Args:
        targets: What ``rc.stage`` takes, at least one, in order of preference.
        on: The exceptions that go on to the next target.

    Raises:
        CompositionError: There are no targets, or ``on`` is not an exception type.
    """
    if not targets:
        raise CompositionError("rc.fallback() needs at least one target: rc.fallback(a, b)")
    types = on if isinstance(on, tuple) else (on,)
    if not types or not all(isinstance(t, type) and issubclass(t, Exception) for t in types):
        raise CompositionError(f"rc.fallback(): on is an exception type or several, got {on!r}")
    return Pipeline(Fallback("fallback", make_branches("fallback", targets), on=types))


async def _collect(items: Stream[Any]) -> list[Any]:
    return [item async for item in items]


collect: Pipeline[Any, Any] = Pipeline(Stage("collect", Inline(_collect), describe(_collect)))
"""Turns a stream into a list: ``[item async for item in stream]``."""
