"""Finding and starting Ray for an application, and where it then answers."""

import logging
import math
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import ray
from ray.serve import Application

from raycompose import _serve
from raycompose.client import fast as settings
from raycompose.client import logs

logger = logging.getLogger(__name__)

UNKNOWN_CPUS = 16
"""Logical CPUs for an application that is not known yet: enough for a few default replicas."""

_CONNECT_S = 3.0
_ANSWER_S = 6.0
_RAY_CLIENT = "ray://"


def start_ray(
    cpus: int,
    address: str | None = None,
    *,
    write: Callable[[str], None] | None = logs.to_stderr,
    fast: bool = False,
    **options: Any,
) -> str | None:
    """Start Ray, or join the cluster that ``ray.init`` would join.

    A Ray that is started here gets at least ``cpus`` logical CPUs: on a machine with fewer cores
    Ray would wait for ever for replicas that ask for more.

    Args:
        cpus: How many CPUs the application asks for, as ``cpus_needed`` counts them.
        address: As in ``ray.init``.
        fast: Give a Ray that is started here Ray Serve's settings for high throughput.
        write: Shows a line that a replica has written; ``None``: Ray shows all that it would.
        options: Further arguments of ``ray.init``.

    Returns:
        The address of the cluster that was joined; ``None`` when Ray was started here.

    Raises:
        ConnectionError: Nobody answers at the address, or the cluster wants a token.
    """
    joined = cluster_to_join(address)
    if joined is not None:
        ray.init(address=joined, **options)
    else:
        with settings.environment() if fast else nullcontext():
            ray.init(address="local", num_cpus=max(os.cpu_count() or 1, cpus), **options)
    if write is not None:
        _serve.show_worker_logs(logs.printer(write))
    return joined


def cluster_to_join(address: str | None) -> str | None:
    """Return where the cluster is that ``ray.init(address)`` would join; ``None``: there is none.

    What a Ray that crashed has left behind (``/tmp/ray/ray_current_cluster``) is not waited for.

    Raises:
        ConnectionError: An address was given, and nobody answers there, or wants a token.
    """
    given = address if address not in (None, "auto") else os.environ.get("RAY_ADDRESS") or address
    try:
        found = given if (given or "").startswith(_RAY_CLIENT) else _serve.cluster_address(address)
    except (ValueError, OSError) as error:
        raise ConnectionError(f"{given!r} is not the address of a Ray cluster: {error}") from None
    if found is None:
        return None
    problem = _why_unreachable(found)
    if problem is None:
        return found
    if given is not None:
        raise ConnectionError(f"no Ray cluster at {given}: {problem}")
    logger.warning(
        "The Ray cluster that /tmp/ray/ray_current_cluster names, %s, is gone (%s): "
        "starting Ray here.",
        found,
        problem,
    )
    return None


def _why_unreachable(address: str) -> str | None:
    """Why there is no joining the cluster, found within seconds; ``None`` when it answers."""
    host, _, port = address.removeprefix(_RAY_CLIENT).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, ValueError) as error:
        return str(error)
    if address.startswith(_RAY_CLIENT):
        return None
    failures: list[str | None] = ["it does not answer as one"]

    def ask() -> None:
        try:
            _serve.ask_cluster(address)
        except Exception as error:  # Ray raises what its core does
            failures.append(_in_short(error))
        else:
            failures.append(None)

    asking = threading.Thread(target=ask, name="raycompose-ask", daemon=True)
    asking.start()
    asking.join(_ANSWER_S)
    return failures[-1]


def _in_short(error: Exception) -> str:
    text = str(error)
    if "auth" in text.lower():
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        return (
            f"it wants a token, and RAY_AUTH_MODE is {mode}: set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token) to the cluster's token"
        )
    return (text.splitlines() or [type(error).__name__])[0]


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
        cpus = options.get("num_cpus")
        total += replicas * float(1 if cpus is None else cpus)
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
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(found.host, found.host)
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{found.port}{prefix.rstrip('/')}/"
