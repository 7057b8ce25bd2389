"""Starting Ray for an application, and where it then answers."""

import math
import os
from collections.abc import Mapping
from typing import Any

import ray
from ray.serve import Application

from raycompose import _serve

UNKNOWN_CPUS = 16
"""Logical CPUs for an application that is not known yet: enough for a few default replicas."""


def start_ray(cpus: int, address: str | None = None, **options: Any) -> None:
    """Start Ray, or join the cluster that ``ray.init`` would join.

    A Ray that is started here gets at least ``cpus`` logical CPUs: on a machine with fewer cores
    Ray would wait for ever for replicas that ask for more.

    Args:
        cpus: How many CPUs the application asks for, as ``cpus_needed`` counts them.
        address: As in ``ray.init``.
        options: Further arguments of ``ray.init``.
    """
    joined = _serve.cluster_address(address)
    if joined is not None:
        ray.init(address=joined, **options)
    else:
        ray.init(address="local", num_cpus=max(os.cpu_count() or 1, cpus), **options)


def cpus_needed(app: Application, overrides: Mapping[str, Any] | None = None) -> int:
    """Return how many logical CPUs the application's replicas ask for together.

    Args:
        app: The application.
        overrides: What a Serve config changes, by deployment name: ``num_replicas`` and
            ``ray_actor_options`` count.
    """
    total = 0.0
    for deployment in _serve.build(app, "default").deployments:
        changed = (overrides or {}).get(deployment.name, {})
        config = _serve.autoscaling_config(deployment)
        replicas = config.max_replicas if config else deployment.num_replicas
        given = changed.get("num_replicas")
        options = {**(deployment.ray_actor_options or {}), **changed.get("ray_actor_options", {})}
        replicas = given if isinstance(given, int) else replicas
        total += replicas * float(options.get("num_cpus", 1))
    return math.ceil(total)


def serve_is_running() -> bool:
    """Tell whether Serve runs on the cluster that this process has joined."""
    return _serve.running() is not None


def url_of(app_name: str) -> str | None:
    """Return where an application answers HTTP; ``None`` when it has no route prefix."""
    found = _serve.running()
    prefix = found and found.route_prefixes.get(app_name)
    if not found or not prefix:
        return None
    host = "127.0.0.1" if found.host in ("0.0.0.0", "::", "") else found.host
    return f"http://{host}:{found.port}{prefix.rstrip('/')}/"
