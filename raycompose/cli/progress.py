"""How far replicas are, and what those that wait are waiting for: in words."""

from collections.abc import Iterable, Mapping
from typing import Any


def line(deployment: Any, total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """Return how far a deployment is: ``Model: 0/2 replicas, needs 1 GPU each, the cluster has 0``.

    Args:
        deployment: Its state.
        total: The cluster's resources.
        free: Those that are not in use.
    """
    wanted = deployment.wanted
    said = f"{deployment.name}: {deployment.running}/{wanted} replica{'s' * (wanted != 1)}"
    why = reason(deployment, total, free)
    return f"{said}, {why}" if why else said


def reason(deployment: Any, total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """Return why a deployment is not up yet; empty when it is."""
    if deployment.running >= deployment.wanted and deployment.status == "HEALTHY":
        return ""
    if "fail" in deployment.message.lower():
        return "its constructor failed, Ray tries again"
    each = " each" if deployment.wanted > 1 else ""
    if deployment.placed < deployment.wanted:
        for name, amount in sorted(deployment.needs.items(), reverse=True):
            if amount > total.get(name, 0):
                return f"needs {_amount(name, amount)}{each}, the cluster has {_had(name, total)}"
        for name, amount in sorted(deployment.needs.items(), reverse=True):
            if amount > free.get(name, 0) + 1e-9:
                return (
                    f"needs {_amount(name, amount)}{each}, "
                    f"{_had(name, free)} of {_had(name, total)} free"
                )
    return "starting"


def is_up(deployment: Any) -> bool:
    """Tell whether a deployment has all its replicas."""
    return bool(deployment.status == "HEALTHY" and deployment.running >= deployment.wanted)


def summary(deployments: Iterable[Any]) -> str:
    """Return a line that counts what is up."""
    found = list(deployments)
    return f"Starting: {sum(map(is_up, found))} of {len(found)} deployments are up"


def _amount(name: str, amount: float) -> str:
    if "memory" in name:
        return f"{amount / 2**30:.3g} GiB {name.replace('_', ' ')}"
    return f"{amount:g} {name}"


def _had(name: str, resources: Mapping[str, float]) -> str:
    amount = resources.get(name, 0)
    return f"{amount / 2**30:.3g} GiB" if "memory" in name else f"{amount:g}"
