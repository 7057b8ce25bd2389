"""Fixtures: one Ray cluster for the whole run, and applications that go with their test."""

import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from ray import serve
from ray.serve import Application
from support.cluster import Deploy, start_ray
from support.gate import build_gate
from support.producers import Ledger

import raycompose as rc

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray cluster, with Serve on a free port, for every test that needs one."""
    start_ray(num_cpus=16, resources={"left": 8, "right": 8})
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


@pytest.fixture(scope="module")
def _gate(cluster: None) -> Iterator[object]:
    actor = build_gate()
    yield actor
    ray.kill(actor)


@pytest.fixture
def closed(_gate: object) -> object:
    """The gate at which stages wait, closed."""
    ray.get(_gate.close.remote())  # type: ignore[attr-defined]  # an actor's method
    return _gate


@pytest.fixture(scope="module")
def word(cluster: None) -> Iterator[None]:
    """The actor that carries word between streams and the tests."""
    actor = ray.remote(Ledger).options(
        name="ledger", namespace="streams", num_cpus=0, max_concurrency=1000
    )
    kept = actor.remote()
    ray.get(kept.say.remote("ready"))
    yield
    ray.kill(kept)


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    """Keep Ray Serve's log out of the tests' output; pytest shows what fails."""
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
