"""The functions that make pipelines of which one branch answers."""

import inspect
from collections.abc import Mapping
from typing import Any

from ray.serve import Application, Deployment

from raycompose.compose.checks import refuse_streams
from raycompose.compose.combinators import passthrough
from raycompose.compose.pipeline import Pipeline
from raycompose.compose.stages import make_branches, make_decider
from raycompose.errors import CompositionError
from raycompose.graph.attempts import Fallback, Optional, Race
from raycompose.graph.choices import Split, Switch
from raycompose.graph.limits import is_count, is_duration, is_number


def switch(on: Any, cases: Mapping[Any, Any], default: Any = None) -> Pipeline[Any, Any]:
    """Return the pipeline that runs the one target whose key the value has.

    ``rc.switch(on, cases)`` called with ``x`` returns ``cases[on(x)](x)``.

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
    return Pipeline(
        Switch("switch", make_branches("switch", targets, tuple(cases)), by, tuple(cases))
    )


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
        shares: ``(target, percent)`` pairs; percents sum to 100. One of 0 is never chosen.
        key: A function of the value; a string: a key of the value if that is a mapping, else an
            attribute; or any other target. The same key always goes the same way, in every
            process, until the weights change; by default every call is drawn anew.

    Raises:
        CompositionError: The weights do not sum to 100, or one is no number or below 0.
    """
    if not shares or not all(isinstance(s, tuple) and len(s) == 2 for s in shares):
        raise CompositionError(
            f"rc.split() takes (target, percent) pairs: rc.split((a, 90), (b, 10)); got {shares!r}"
        )
    by = key if key is None or isinstance(key, str) else make_decider("rc.split(): key", key)
    weights = tuple(weight for _, weight in shares)
    for weight in weights:
        if not is_number(weight) or not weight >= 0:
            raise CompositionError(f"rc.split(): a weight is a number from 0, got {weight!r}")
    total = sum(weights)
    if abs(total - 100) > 1e-6:
        raise CompositionError(
            f"rc.split(): weights are percent; they sum to {total:g}, and must sum to 100"
        )
    branches = make_branches("split", tuple(target for target, _ in shares))
    return Pipeline(Split("split", branches, by, weights))


def fallback(
    *targets: Any, on: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Pipeline[Any, Any]:
    """Return the pipeline that returns the result of the first target that succeeds.

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


def optional(
    target: Any, default: Any = None, timeout_s: float | None = None
) -> Pipeline[Any, Any]:
    """Return the pipeline that returns ``target``'s result, or a default if it fails or is late.

    An error that is the client's fault (4xx) is raised. Each default is logged, and counted in
    ``raycompose_optional_defaults``.

    Args:
        target: What ``rc.stage`` takes.
        default: What stands for the result.
        timeout_s: Seconds that the target may take; by default as long as it takes.

    Raises:
        CompositionError: The target streams, the default is a stage, or ``timeout_s`` is no number
            of seconds above 0.
    """
    if isinstance(default, Application | Deployment) or inspect.isroutine(default):
        raise CompositionError(
            f"rc.optional(): default={default!r} would be returned, not called: rc.fallback(a, b) "
            "runs b when a fails"
        )
    if timeout_s is not None and not is_duration(timeout_s):
        raise CompositionError(
            f"rc.optional(): timeout_s must be a number of seconds above 0, got {timeout_s!r}"
        )
    branches = make_branches("optional", (target,))
    refuse_streams("optional", branches)
    return Pipeline(Optional("optional", branches, default, timeout_s))


def race(*targets: Any, need: int = 1) -> Pipeline[Any, Any]:
    """Return the pipeline that runs all targets at once and returns the first result.

    The calls that are not needed any more are cancelled, in their replicas too. When too many fail
    the first error is raised, with the others in its notes; a client's error (4xx) at once.

    Args:
        targets: What ``rc.stage`` takes; the same input to each.
        need: How many results to wait for; more than one are a tuple, in the order they came.

    Raises:
        CompositionError: There are no targets, fewer than ``need``, or one streams.
    """
    if not targets:
        raise CompositionError("rc.race() needs at least one target: rc.race(a, b)")
    if not is_count(need) or need > len(targets):
        raise CompositionError(
            f"rc.race(): need must be a whole number from 1 to the {len(targets)} targets there "
            f"are, got {need!r}"
        )
    branches = make_branches("race", targets)
    refuse_streams("race", branches)
    return Pipeline(Race("race", branches, need))
