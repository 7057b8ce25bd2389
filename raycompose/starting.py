"""Starting Ray for an application, and where it then answers."""

import os
from typing import Any

import ray
from ray.serve import Application

from raycompose import _serve


def start_ray(app: Application | None, address: str | None = None, **options: Any) -> bool:
    """Start Ray, or join the cluster that ``ray.init`` would join.

    A Ray that is started here gets as many logical CPUs as the application's replicas ask for:
    on a machine with fewer cores Ray would wait for them for ever.

    Args:
        app: What is going to run; ``None`` when not known.
        address: As in ``ray.init``.
        options: Further arguments of ``ray.init``.

    Returns:
        Whether a new local Ray was started.
    """
    joined = _serve.cluster_address(address)
    if joined is not None:
        ray.init(address=joined, **options)
        return False
    cores = os.cpu_count() or 1
    needed = cpus_needed(app) if app is not None else 0
    ray.init(address="local", num_cpus=max(cores, needed), **options)
    return True


def cpus_needed(app: Application) -> int:
    """Return how many logical CPUs the application's replicas ask for together."""
    total = 0.0
    for deployment in _serve.build(app, "default").deployments:
        config = _serve.autoscaling_config(deployment)
        replicas = config.max_replicas if config else deployment.num_replicas
        total += replicas * float((deployment.ray_actor_options or {}).get("num_cpus", 1))
    return int(-(-total // 1))


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
