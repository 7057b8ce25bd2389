"""The words on a picture: what a part of a graph is called, and what is said of it."""

from collections.abc import Mapping
from typing import Any

from raycompose.compose.description import Description

_RUNS = {
    "deployment": "deployment",
    "application": "application",
    "fused": "fused",
    "function": "function",
    "task": "Ray task",
    "actor": "actor method",
}
_UNITS = {"num_cpus": "CPU", "num_gpus": "GPU"}
_CONDITIONS = {"switch": "on", "when": "predicate", "split": "key", "loop": "until"}
_BEFORE = {"switch": "on ", "split": "by ", "loop": "until "}


def title(node: Description) -> str:
    """Return the heading of a part: a stage's name, or what a branching decides by."""
    kind = str(node["kind"])
    name = str(node.get("name") or kind)
    if name.partition("_")[0] == "switch" and kind == "when":
        name = name.replace("switch", "when", 1)
    condition = _settings(node).get(_CONDITIONS.get(kind, ""))
    return f"{name} {_BEFORE.get(kind, '')}{condition}" if condition is not None else name


def details(node: Description) -> list[str]:
    """Return what is said of a part, in short pieces, the most important first."""
    pieces = []
    if "runs" in node:
        pieces += _running(node)
    decided_by = _CONDITIONS.get(str(node["kind"]))
    pieces += [_said(k, v) for k, v in _settings(node).items() if k != decided_by]
    pieces += [_limit(name, value) for name, value in (node.get("limits") or {}).items()]
    if node["kind"] == "stage" and node.get("streams"):
        pieces.append("streams")
    return pieces


def scale(described: Description) -> list[str]:
    """Return how many replicas something has, what each asks for, and a pipeline's settings.

    >>> scale({"replicas": [1, 4], "resources": {"num_gpus": 0.5, "num_cpus": 2}})
    ['1 to 4 replicas', '0.5 GPU', '2 CPU']
    """
    pieces = []
    replicas = described.get("replicas")
    if isinstance(replicas, list):
        pieces.append(f"{replicas[0]} to {replicas[1]} replicas")
    elif replicas is not None:
        pieces.append(f"{replicas} replica{'s' * (replicas != 1)}")
    pieces += resources(described.get("resources") or {})
    settings = ("timeout_s", "stream", "max_body_bytes", "debug")
    return pieces + [_said(name, described[name]) for name in settings if name in described]


def resources(asked: Mapping[str, float]) -> list[str]:
    """Return amounts of resources in words, the scarcest first.

    >>> resources({"num_cpus": 1, "memory": 2**31, "TPU": 4})
    ['4 TPU', '2 GiB memory', '1 CPU']
    """
    ordered = sorted(asked.items(), key=lambda item: _RANK.get(item[0], 1))
    return [
        f"{amount / 2**30:.3g} GiB memory"
        if name == "memory"
        else f"{amount:g} {_UNITS.get(name, name)}"
        for name, amount in ordered
    ]


_RANK = {"num_gpus": 0, "GPU": 0, "memory": 2, "num_cpus": 3, "CPU": 3}


def received(node: Description) -> str:
    """Return how a part's input reaches it, in a word; empty for a plain value."""
    words = {"value": "", "items": "each item"}
    return words.get(str(node["receives"]), str(node["receives"]))


def colour(node: Description) -> str:
    """Return the kind of a stage that pictures tell apart by colour."""
    runs = str(node["runs"])
    return {"actor": "task", "application": "other"}.get(runs, runs if runs in _RUNS else "other")


def is_around(node: Description) -> bool:
    """Tell whether a part is drawn around its one branch, as it has nothing to choose or join."""
    branches = node.get("branches", ())
    if len(branches) != 1 or node["kind"] in ("shadow", "loop"):
        return False
    return bool(branches[0]["node"]["kind"] != "passthrough")


def _running(node: Description) -> list[str]:
    runs = _RUNS.get(str(node["runs"]), str(node["runs"]))
    if node.get("application") not in (None, node.get("name")):
        runs = f"{runs} {node['application']},"
    if node.get("deployment") not in (None, node.get("name")):
        runs = f"{runs} {node['deployment']}"
    pieces = [runs + (f" .{node['method']}()" if "method" in node else "")]
    return pieces if node["runs"] == "fused" else pieces + scale(node)


def _settings(node: Description) -> Mapping[str, Any]:
    return node.get("settings") or {}


_PHRASES = {
    "max_concurrency": "{} at once",
    "max_in_flight": "{} in flight",
    "max_iterations": "{} rounds",
    "timeout_s": "timeout {} s",
    "stream": "streams as {}",
    "max_body_bytes": "bodies up to {} bytes",
    "debug": "debug",
}


def _said(name: str, value: Any) -> str:
    """A setting in words."""
    phrase = _PHRASES.get(name)
    return phrase.format(_value(value)) if phrase else f"{_name(name)} {_value(value)}"


def _limit(name: str, value: Any) -> str:
    if name == "retry" and isinstance(value, Mapping):
        on = f" on {', '.join(value['on'])}" if value.get("on") else ""
        return f"{value.get('attempts', 3)} attempts{on}"
    return _said(name, value)


def _name(name: str) -> str:
    return name.removesuffix("_s").replace("_", " ")


def _value(value: Any) -> str:
    if value in ("", [], {}):
        return repr(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_name(key)} {_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
