"""Starting Ray and Serve for tests, and the options of what they deploy."""

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # no token to set up on the machine that tests
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # num_gpus=0 says nothing of accelerators
# What a dashboard shows, Serve's metrics, and how often a controller looks: less than Ray does.
os.environ["RAY_task_events_report_interval_ms"] = "0"  # noqa: SIM112  # Ray's spelling
os.environ["RAY_SERVE_METRICS_EXPORT_INTERVAL_MS"] = "1000"
os.environ["RAY_SERVE_CONTROL_LOOP_INTERVAL_S"] = "0.2"

import ray
from ray import serve
from ray._private import node, ray_constants  # noqa: TID251  # nothing public starts less
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

import raycompose as rc

Deploy = Callable[..., rc.Client]

FREE: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}}
"""Options of a deployment that asks for no CPU, so that any number of them starts."""
HERE: dict[str, Any] = {**FREE, "graceful_shutdown_timeout_s": 0}
"""The same, ended at once, whatever it is doing."""


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_serialize = RequestRouterConfig._serialize_request_router_cls
_routers: dict[Any, RequestRouterConfig] = {}


def _serialize_once(self: RequestRouterConfig) -> None:
    """Pickle the class of a router once, rather than for every deployment that is written."""
    asked = self.request_router_class
    if asked not in _routers:
        _serialize(self)
        _routers[asked] = self
    self.request_router_class = _routers[asked].request_router_class
    self.set_serialized_request_router_cls(_routers[asked].get_serialized_request_router_cls())


RequestRouterConfig._serialize_request_router_cls = _serialize_once

FOR_NOBODY = ("start_log_monitor", "start_monitor", "start_api_server")
"""What Ray starts for those who read the driver's output, scale the cluster or look at it."""


def is_copied() -> bool:
    """Tell whether workers are copies of one that has imported Ray; see ``worker_template``."""
    return sys.platform == "linux" and "COVERAGE_FILE" not in os.environ


def start_less(*but: str) -> None:
    """Have every Ray that this process starts cost less; all that stages meet stays Ray's own.

    Args:
        but: What is started nevertheless, of ``FOR_NOBODY``.
    """
    for name in set(FOR_NOBODY).difference(but):
        setattr(node.Node, name, lambda *_, **__: None)
    if is_copied():
        template = str(Path(__file__).with_name("worker_template.py"))
        ray_constants.SETUP_WORKER_FILENAME = template


def start_ray(num_cpus: int, **options: Any) -> None:
    """Start a Ray, never join one that happens to run here, and a quiet Serve on it."""
    start_less()
    ray.init(
        address="local",
        num_cpus=num_cpus,
        log_to_driver=False,
        logging_level=logging.ERROR,
        include_dashboard=False,
        **options,
    )
    start_serve()


def start_serve(**options: Any) -> None:
    """Start Serve on a free port, with its log kept out of the output."""
    serve.start(http_options={"port": free_port()}, **options)
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)


def hide_ray(monkeypatch: Any) -> None:
    """Have this thread find no Ray that runs; others may be ending applications on it."""
    here, is_initialized = threading.current_thread(), ray.is_initialized
    monkeypatch.setattr(
        "ray.is_initialized", lambda: threading.current_thread() is not here and is_initialized()
    )


ENGINES = ("local", "fused", "distributed")


def open_on(engine: str, app: Any, deploy: Callable[[], Deploy]) -> Any:
    """Open a pipeline on an engine.

    Args:
        engine: One of ``ENGINES``.
        app: The pipeline.
        deploy: Gives the fixture of that name; called only where a cluster is needed.
    """
    if engine == "local":
        return rc.local(app)
    opened: Application = app.fuse() if engine == "fused" else app
    return deploy()(opened)
