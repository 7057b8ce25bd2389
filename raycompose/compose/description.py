"""A pipeline's graph described as plain data: what pictures, checks and reports are made of."""

import ast
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import singledispatch
from types import CodeType
from typing import Any, TypeAlias

from ray.serve import Deployment

from raycompose import _serve
from raycompose.graph.affinity import Sticky
from raycompose.graph.annotations import UNKNOWN, type_name
from raycompose.graph.applications import Elsewhere
from raycompose.graph.attempts import Fallback, Hedged
from raycompose.graph.branches import Assign, Parallel, Shadow
from raycompose.graph.choices import Decider, Split, Switch
from raycompose.graph.limits import Limits
from raycompose.graph.loops import Loop
from raycompose.graph.nodes import Node, Stage, stages
from raycompose.graph.sequences import Sequence
from raycompose.graph.targets import Deployed, Hosted, Inline, Target, Task
from raycompose.graph.wrappers import Gated, Limited, Named
from raycompose.http.settings import Settings

Description: TypeAlias = dict[str, Any]
"""What ``json.dumps`` takes: dicts, lists, texts, numbers, booleans and ``None``."""


def describe(root: Node, front: Deployment, settings: Settings) -> Description:
    """Return the description of a pipeline: ``name``, ``replicas``, ``resources`` and ``graph``.

    Args:
        root: Its graph.
        front: The deployment that fronts it.
        settings: Those of its edge; each is described by its name where it is not the default.
    """
    edge = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name != "pipeline" and getattr(settings, field.name) != field.default
    }
    return {"name": front.name, **_scale(front), **edge, "graph": node(root, _taken(root))}


def node(part: Node, receives: str) -> Description:
    """Return the description of a part of a graph.

    Every part has ``kind``; ``name`` if it goes by one; ``receives``, how its input reaches it:
    as the ``value``, a ``reference``, a ``stream``, the single ``items`` of one, or a ``request``;
    ``streams`` if its result is a stream. What is inside it is in ``steps``, one after the other,
    or in ``branches``, each with the ``label`` of its condition.
    """
    described: Description = {"kind": type(part).__name__.lower()}
    if part.name:
        described["name"] = part.name
    described["receives"] = receives
    if part.streams:
        described["streams"] = True
    return {**described, **_details(part, receives)}


@singledispatch
def _details(part: Node, receives: str) -> Description:
    """What is particular to a kind of node; here, of one that branches: all of its settings."""
    settings = {
        field.name: _setting(getattr(part, field.name))
        for field in dataclasses.fields(part)
        if field.name not in _STRUCTURE and getattr(part, field.name) != field.default
    }
    described: Description = {"settings": settings} if settings else {}
    if part.children:
        described["branches"] = [
            {"label": "", "node": node(child, _taken(child))} for child in part.children
        ]
    return described


_STRUCTURE = frozenset(("label", "name", "branches", "body", "steps", "limits"))


@_details.register
def _(part: Stage, receives: str) -> Description:
    signature = part.signature
    accepts = type_name(signature.accepts) if signature.accepts is not UNKNOWN else None
    returns = type_name(signature.returns) if signature.returns is not UNKNOWN else None
    types = {"accepts": accepts, "returns": returns}
    return {**{k: v for k, v in types.items() if v}, **_target(part.target)}


@_details.register
def _(part: Sequence, receives: str) -> Description:
    return {"steps": list(_steps(part, receives))}


def _steps(sequence: Sequence, receives: str) -> Iterator[Description]:
    streaming = False
    for before, step in zip((None, *sequence.steps), sequence.steps, strict=False):
        if before is not None:
            receives = _taken(step)
            if receives == "value" and streaming:
                receives = "stream" if step.takes_stream else "items"
            elif receives == "value" and _stays_in_object_store(before, step):
                receives = "reference"
        yield node(step, receives)
        streaming = step.streams or (streaming and not step.takes_stream)


def _stays_in_object_store(before: Node, step: Node) -> bool:
    """Whether a result goes from a Ray task, or to one, without passing through the pipeline."""
    if not (isinstance(before, Stage) and isinstance(step, Stage)) or before.streams:
        return False
    tasks = before.target.takes_object_refs or step.target.takes_object_refs
    return tasks and before.target.remote and step.target.remote


def _taken(part: Node) -> str:
    """How the first stage of a part asks for its input."""
    if part.takes_reference:
        return "reference"
    return part.first.signature.takes if part.first else "value"


@_details.register
def _(part: Named, receives: str) -> Description:
    return {"steps": [node(part.body, receives)]}


@_details.register
def _(part: Limited, receives: str) -> Description:
    body = node(part.body, receives)
    if not part.name and body["kind"] != "limited":  # the limits are the body's own
        return {**body, **_limits(part.limits)}
    return {**_limits(part.limits), "steps": [body]}


@_details.register
def _(part: Parallel, receives: str) -> Description:
    return {"branches": _labelled(part, part.keys or ("",) * len(part.branches))}


@_details.register
def _(part: Switch, receives: str) -> Description:
    default = ("otherwise",) * (len(part.branches) - len(part.keys))
    if part.by_truth:
        return {
            "kind": "when",
            "settings": {"predicate": _decider(part.by)},
            "branches": _labelled(part, ("yes", "no")),
        }
    return {
        "settings": {"on": _decider(part.by)},
        "branches": _labelled(part, (*map(repr, part.keys), *default)),
    }


@_details.register
def _(part: Split, receives: str) -> Description:
    settings = {"settings": {"key": _decider(part.by)}} if part.by else {}
    return {**settings, "branches": _labelled(part, [f"{w:g} %" for w in part.weights])}


@_details.register
def _(part: Fallback, receives: str) -> Description:
    settings = {} if part.on == (Exception,) else {"settings": {"on": _setting(part.on)}}
    others = ("if that fails",) * (len(part.branches) - 1)
    return {**settings, "branches": _labelled(part, ("first", *others))}


@_details.register
def _(part: Shadow, receives: str) -> Description:
    settings = {"max_in_flight": part.max_in_flight}
    return {"settings": settings, "branches": _labelled(part, [f"{part.percent:g} % mirrored"])}


@_details.register
def _(part: Gated, receives: str) -> Description:
    return node(part.body, receives)


@_details.register
def _(part: Hedged, receives: str) -> Description:
    return _with_limit(node(part.body, receives), "hedge", part.hedge)


@_details.register
def _(part: Sticky, receives: str) -> Description:
    return _with_limit(node(part.body, receives), "affinity", part.by)


def _with_limit(body: Description, name: str, limit: Any) -> Description:
    return {**body, "limits": {**body.get("limits", {}), name: _setting(limit)}}


@_details.register
def _(part: Loop, receives: str) -> Description:
    settings = {"until": _decider(part.until), "max_iterations": part.max_iterations}
    return {"settings": settings, "branches": _labelled(part, ("again",))}


@_details.register
def _(part: Assign, receives: str) -> Description:
    return {"branches": _labelled(part, part.keys or ())}


def _decider(by: Decider) -> str:
    """What decides on a branch, in a few words; a graph that does is a branch of its own."""
    return by if isinstance(by, str) else str(_setting(by))


def _labelled(part: Node, labels: Any) -> list[Description]:
    deciding = ("decides",) * (len(part.children) - len(labels))
    return [
        {"label": str(label), "node": node(child, _taken(child))}
        for label, child in zip((*labels, *deciding), part.children, strict=True)
    ]


def _limits(limits: Limits) -> Description:
    """What limits a node, as its options are called."""
    given = {
        field.name: _setting(value)
        for field in dataclasses.fields(limits)
        if (value := getattr(limits, field.name)) is not None
    }
    return {"limits": given}


def _target(target: Target) -> Description:
    """Where a stage runs, under which name, how often, and on what."""
    if isinstance(target, Elsewhere):
        return _elsewhere(target.app, target.name, target.method)
    if isinstance(target, Deployed) and not target.is_bound:
        return _elsewhere(target.app.app_name, target.app.deployment_name, target.method)
    if isinstance(target, Deployed):
        return {"runs": "deployment", **_deployment(_serve.deployment_of(target.app), target)}
    if isinstance(target, Hosted):
        return {"runs": "fused", **_deployment(target.hosted.deployment, target)}
    if isinstance(target, Inline):
        return {"runs": "function"}
    if isinstance(target, Task):
        return {"runs": "actor" if _serve.method_of_actor(target.function) else "task"}
    return {"runs": type(target).__name__.lower()}


def _elsewhere(app: str, deployment: str | None, method: str) -> Description:
    """What runs already, or will, as another application."""
    described = {"runs": "application", "application": app}
    if deployment is not None:
        described["deployment"] = deployment
    return described if method == "__call__" else {**described, "method": method}


def _deployment(deployment: Deployment, target: Deployed | Hosted) -> Description:
    method = {} if target.method == "__call__" else {"method": target.method}
    return {"deployment": deployment.name, **method, **_scale(deployment)}


def _scale(deployment: Deployment) -> Description:
    """How many replicas a deployment has, a number or ``[min, max]``, and what each asks for."""
    config = _serve.autoscaling_config(deployment)
    replicas = [config.min_replicas, config.max_replicas] if config else deployment.num_replicas
    options = deployment.ray_actor_options or {}
    asked = {**options, **(options.get("resources") or {})}
    resources = {
        name: amount
        for name, amount in asked.items()
        if isinstance(amount, int | float) and amount and not isinstance(amount, bool)
    }
    return {"replicas": replicas, "resources": resources}


def _setting(value: Any) -> Any:
    """A setting as plain data."""
    if isinstance(value, Node):
        return value.name or " | ".join(stage.name for stage in stages(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            f.name: _setting(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if getattr(value, f.name) != f.default
        }
        return changed or {f.name: _setting(getattr(value, f.name)) for f in _head(value)}
    if isinstance(value, Mapping):
        return {str(key): _setting(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_setting(item) for item in value]
    if isinstance(value, type):
        return value.__name__
    if callable(value):
        return condition(value)
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _head(value: Any) -> tuple[Any, ...]:
    """A dataclass's first field: what says most of one that is all defaults."""
    return dataclasses.fields(value)[:1]


def condition(function: Callable[..., Any]) -> str:
    """Return what a function decides by: a lambda's own expression, else its name.

    >>> condition(str.isupper), condition(isinstance)
    ('isupper', 'isinstance')
    """
    name: str = getattr(function, "__name__", type(function).__name__)
    if name != "<lambda>":
        return name
    try:
        tree = ast.parse("".join(inspect.findsource(function)[0]))
    except (OSError, SyntaxError):  # typed at a prompt, or changed since
        return "lambda"
    code = function.__code__
    lambdas = [part for part in ast.walk(tree) if isinstance(part, ast.Lambda)]
    found = [part for part in lambdas if part.lineno == code.co_firstlineno]
    if len(found) > 1:  # several on one line
        found = [part for part in found if _same(_compiled(part), code)]
    texts = {ast.unparse(part.body) for part in found}
    return texts.pop() if len(texts) == 1 else "lambda"


def _compiled(part: ast.Lambda) -> CodeType:
    """A lambda's code, compiled on its own."""
    module = compile(ast.Expression(part), "", "eval")
    return next(const for const in module.co_consts if isinstance(const, CodeType))


def _same(one: CodeType, other: CodeType) -> bool:
    return (one.co_code, one.co_consts, one.co_names) == (
        other.co_code,
        other.co_consts,
        other.co_names,
    )
