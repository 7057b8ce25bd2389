"""The functions that make branching pipelines. Each equals a few lines of plain Python."""

from dataclasses import replace
from functools import partial
from typing import Any

from raycompose.compose.checks import check_count, refuse_streams
from raycompose.compose.pipeline import Pipeline
from raycompose.compose.stages import make_branches, make_decider, make_parallel
from raycompose.errors import CompositionError
from raycompose.flow.streams import Stream, in_batches
from raycompose.graph.branches import Assign, Each, Passthrough, Pick, Shadow
from raycompose.graph.limits import is_duration, is_number
from raycompose.graph.loops import Loop
from raycompose.graph.nodes import Stage
from raycompose.graph.signatures import describe
from raycompose.graph.targets import Inline

passthrough: Pipeline[Any, Any] = Pipeline(Passthrough())
"""The identity, ``lambda x: x``, for use inside ``parallel`` and ``when``."""


def parallel(*targets: Any, **named: Any) -> Pipeline[Any, Any]:
    """Return the pipeline that sends the same input to all targets at once.

    ``rc.parallel(f, g)`` called with ``x`` returns ``(f(x), g(x))``; ``rc.parallel(a=f, b=g)``
    returns ``{"a": f(x), "b": g(x)}``. The first failure cancels the others and is raised.

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


def shadow(target: Any, percent: float = 100, max_in_flight: int = 16) -> Pipeline[Any, Any]:
    """Return the pipeline that passes its input on and mirrors a share of it to ``target``.

    ``rc.shadow(f)`` called with ``x`` returns ``x``, while ``f(x)`` runs beside it: its latency,
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

    ``rc.each(f)`` called with ``xs`` returns ``[f(x) for x in xs]``, in order.

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


async def _collect(items: Stream[Any]) -> list[Any]:
    return [item async for item in items]


collect: Pipeline[Any, Any] = Pipeline(Stage("collect", Inline(_collect), describe(_collect)))
"""Turns a stream into a list: ``[item async for item in stream]``."""


def assign(**targets: Any) -> Pipeline[Any, Any]:
    """Return the pipeline that returns its input, a mapping, with each target's result added.

    ``rc.assign(n=f)`` called with ``x`` returns ``{**x, "n": f(x)}``. All run at once; the first
    failure cancels the others and is raised.

    Args:
        targets: What ``rc.stage`` takes, by the key of its result.

    Raises:
        CompositionError: There are no targets, or one streams.
    """
    if not targets:
        raise CompositionError("rc.assign() needs at least one target: rc.assign(score=f)")
    branches = make_branches("assign", tuple(targets.values()), tuple(targets))
    refuse_streams("assign", branches)
    return Pipeline(Assign("assign", branches, tuple(targets)))


def pick(*keys: Any) -> Pipeline[Any, Any]:
    """Return the pipeline that takes values out of a mapping.

    ``rc.pick("a")`` called with ``x`` returns ``x["a"]``; ``rc.pick("a", "b")`` returns
    ``{"a": x["a"], "b": x["b"]}``.

    Args:
        keys: Which.

    Raises:
        CompositionError: There are no keys, or one cannot be a key.
    """
    if not keys:
        raise CompositionError('rc.pick() needs at least one key: rc.pick("score")')
    for key in keys:
        if isinstance(key, list | set | dict):
            raise CompositionError(f"rc.pick() takes the keys one by one, got {key!r}")
    return Pipeline(Pick("pick", keys))


def loop(body: Any, until: Any, max_iterations: int = 8) -> Pipeline[Any, Any]:
    """Return the pipeline that runs ``body`` on its own result until a predicate holds of it.

    ``rc.loop(f, until=done)`` called with ``x`` returns the first of ``f(x)``, ``f(f(x))``, ... for
    which ``done`` holds.

    Args:
        body: What ``rc.stage`` takes.
        until: A function or an ``async def`` of the result, or any other target, that decides.
        max_iterations: How often the body runs at most; then a ``LoopError`` (HTTP 500).

    Raises:
        CompositionError: The body streams, ``until`` cannot decide, or ``max_iterations`` is
            below 1.
    """
    check_count("rc.loop()", "max_iterations", max_iterations)
    branches = make_branches("loop", (body,))
    refuse_streams("loop", branches)
    decider = make_decider("rc.loop(): until", until)
    return Pipeline(Loop("loop", branches[0], decider, max_iterations))


def batched(size: int, max_wait_s: float | None = None) -> Pipeline[Any, Any]:
    """Return the pipeline that groups a stream's items into lists, in order, as they come.

    Args:
        size: Items in a list at most; the last may have fewer.
        max_wait_s: Seconds after a list's first item when it is given as it is; by default a list
            waits until it is full.

    Raises:
        CompositionError: ``size`` is below 1, or ``max_wait_s`` is no number of seconds above 0.
    """
    check_count("rc.batched()", "size", size)
    if max_wait_s is not None and not is_duration(max_wait_s):
        raise CompositionError(
            f"rc.batched(): max_wait_s must be a number of seconds above 0, got {max_wait_s!r}"
        )
    function = partial(in_batches, size=size, max_wait_s=max_wait_s)
    return Pipeline(Stage("batched", Inline(function), describe(function)))
