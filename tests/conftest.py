"""Fixtures: one Ray cluster for the whole run, and applications that go with their test."""

import gc
import itertools
import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import ray
from ray import serve
from ray.serve import Application
from support.cluster import ENGINES, Deploy, start_ray
from support.gate import build_gate
from support.producers import Ledger

import raycompose as rc

_numbers = itertools.count(1)

# Started in the background of a script the tests would ignore it, and with them all that they
# start: `raycompose run` would not hear Ctrl-C, nor a Ray task that it is cancelled.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST_FIRST = (
    "test_cancellation.py",
    "test_conformance.py",
    "test_deadlines.py",
    "test_http_edge.py",
    "test_failures.py",
    "test_leaks.py",
    "test_other_applications.py",
    "test_transport.py",
    "test_hosting.py",
    "test_http_deployed.py",
    "test_http_problems.py",
    "test_streams_in_graphs.py",
    "test_benchmarks.py",
)
"""So that at the end no worker waits long for another: they take most of the time."""


# Ray Serve itself loses a call that is cancelled at the very moment at which it is assigned, about
# once in a thousand (seen in 2.60): `make chaos` looks at that, a gate cannot.
IN_CHAOS = ["test_budgets_deployed.py", "test_deadlines_deployed.py"]
collect_ignore = [] if os.environ.get("RAYCOMPOSE_CHAOS") == "1" else IN_CHAOS
if "COVERAGE_FILE" in os.environ:  # what measures it takes memory in every process
    collect_ignore = [*collect_ignore, "test_leaks.py"]
if "RAYCOMPOSE_BROWSER" not in os.environ:  # `make test-browser` says where Chromium is
    collect_ignore = [*collect_ignore, "examples/test_browser.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files that take longest before the others, and mark what needs a cluster."""
    for item in items:
        if needs_cluster(item):
            item.add_marker("cluster")
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def needs_cluster(item: pytest.Item) -> bool:
    """Tell whether a test uses the cluster, or is one of those on an engine that does."""
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    engines = {param for param in params if isinstance(param, str)}
    deployed = not engines.isdisjoint(ENGINES[1:])
    return deployed or "cluster" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray cluster, with Serve on a free port, for every test that needs one."""
    start_ray(num_cpus=16, resources={"left": 8, "right": 8})
    yield
    with warnings.catch_warnings():
        # Ray does not wait for the processes that it kills when they do not end by themselves.
        warnings.simplefilter("ignore", ResourceWarning)
        serve.shutdown()
        ray.shutdown()
        gc.collect()


@pytest.fixture(scope="session")
def end_later(cluster: None) -> Iterator[Callable[[Callable[[], None]], None]]:
    """End applications while the next tests run, for each waits until its replicas have stopped."""
    ending: list[Future[None]] = []
    with ThreadPoolExecutor(16) as threads:
        yield lambda end: ending.append(threads.submit(end))
    for ended in ending:
        ended.result()


@pytest.fixture(scope="module")
def deploy(cluster: None, end_later: Callable[[Callable[[], None]], None]) -> Iterator[Deploy]:
    """Deploy applications, each under a name and a route of its own, and delete them at the end."""
    clients = []

    def deploy(app: Application) -> rc.Client:
        name = f"app{next(_numbers)}"
        clients.append(rc.run(app, name=name, route_prefix=f"/{name}"))
        return clients[-1]

    yield deploy
    for client in clients:
        end_later(client.close)


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
