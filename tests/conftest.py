"""Fixtures: one Ray cluster for the whole run, and applications that go with their test."""

import itertools
import logging
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"  # no token to set up on the machine that tests
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # num_gpus=0 says nothing of accelerators

import ray
from ray import serve
from ray.serve import Application

import raycompose as rc

Deploy = Callable[..., rc.Client]
_numbers = itertools.count(1)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray cluster, with Serve on a free port, for every test that needs one."""
    ray.init(
        address="local",  # never somebody's cluster that happens to run here
        num_cpus=16,
        resources={"left": 8, "right": 8},
        log_to_driver=False,
        logging_level=logging.ERROR,
        include_dashboard=False,
    )
    serve.start(http_options={"port": free_port()})
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def deploy(cluster: None) -> Iterator[Deploy]:
    """Deploy applications, each under a name and a route of its own, and delete them at the end."""
    clients = []

    def deploy(app: Application) -> rc.Client:
        name = f"app{next(_numbers)}"
        clients.append(rc.run(app, name=name, route_prefix=f"/{name}"))
        return clients[-1]

    yield deploy
    with ThreadPoolExecutor() as pool:  # each waits for its replicas to stop
        list(pool.map(lambda client: client.close(), clients))


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    """Keep Ray Serve's log out of the tests' output; pytest shows what fails."""
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
