"""The cluster, Serve on it, and what its workers write."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ray
from ray._private import worker
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Cython
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema


def cluster_address(address: str | None) -> str | None:
    """Return the running cluster that ``ray.init(address)`` would join; ``None``: it starts one."""
    found: str | None = canonicalize_bootstrap_address(address)
    return found


def ask_cluster(address: str) -> None:
    """Ask the cluster at ``host:port`` whether it is one; it may take its time to say no.

    Raises:
        Exception: It is none, or wants a token that this process does not have.
    """
    GcsClient(address=address).get_all_node_info(timeout=5)


def settings_in_force(names: tuple[str, ...]) -> dict[str, bool]:
    """Return which of Ray Serve's switches are on in the processes of the joined cluster."""

    def look() -> dict[str, bool]:
        from ray.serve._private import constants

        return {name: bool(getattr(constants, name, False)) for name in names}

    found: dict[str, bool] = ray.get(ray.remote(num_cpus=0)(look).remote())
    return found


def show_worker_logs(show: Callable[[dict[str, Any]], None]) -> None:
    """Have ``show`` print what workers write, in the place of Ray.

    It is given ``actor_name``, ``lines`` and ``is_err``, among others.
    """
    global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
    global_worker_stdstream_dispatcher.remove_handler("raycompose")
    global_worker_stdstream_dispatcher.add_handler("raycompose", show)


def hush_worker_logs() -> None:
    """Show nothing more of what workers write: how Serve's own end is nobody's concern."""
    worker._worker_logs_enabled = False


def deploy_config(config: Mapping[str, Any]) -> None:
    """Deploy a Serve config's applications on the running Serve, without waiting for them."""
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))


class DeploymentState(NamedTuple):
    """How far a deployment is: its replicas, and what each asks for."""

    name: str
    status: str
    message: str
    wanted: int
    running: int
    placed: int
    needs: dict[str, float]


class ApplicationState(NamedTuple):
    """How far an application is."""

    status: str
    message: str
    declared: bool
    deployments: tuple[DeploymentState, ...]


def applications() -> dict[str, ApplicationState]:
    """Return the state of every application on the running Serve, by name."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return {}
    details = client.get_serve_details()["applications"]
    return {
        name: ApplicationState(
            app["status"].value,
            app["message"],
            app["source"] == "declarative",
            tuple(map(_deployment_state, app["deployments"].values())),
        )
        for name, app in details.items()
    }


def _deployment_state(details: dict[str, Any]) -> DeploymentState:
    replicas = details["replicas"]
    return DeploymentState(
        details["name"],
        details["status"].value,
        details["message"],
        details["target_num_replicas"],
        sum(replica["state"] == "RUNNING" for replica in replicas),
        sum(replica.get("pid") is not None for replica in replicas),
        dict(details["required_resources"] or {}),
    )


class Running(NamedTuple):
    """A running Serve instance: where it listens, and each application's route prefix."""

    host: str
    port: int
    route_prefixes: dict[str, str | None]


def running() -> Running | None:
    """Return what runs on the cluster that this process has joined; ``None`` without Serve."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    apps = client.get_serve_details()["applications"]
    prefixes = {name: app["route_prefix"] for name, app in apps.items()}
    return Running(client.http_config.host, client.http_config.port, prefixes)
