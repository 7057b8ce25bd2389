"""What one front replica takes, and several."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ray import serve

import raycompose as rc
from benchmarks import load
from benchmarks.executor import first
from benchmarks.registry import registry
from benchmarks.results import Line
from benchmarks.rounds import Bench

REPLICAS = (1, 2, 4)
CLIENTS = 64


def apps() -> dict[str, serve.Application]:
    """Return a pipeline that is all front, by its number of replicas."""
    return {f"replicas-{n}": _front(n) for n in REPLICAS}


def _front(replicas: int) -> Any:
    return rc.pipeline(first).options(num_replicas=replicas)


@registry.row("fronts", "requests a second of one, two and four front replicas", optional=True)
def fronts(bench: Bench) -> Iterator[Line]:
    """Over HTTP, fast, 64 clients; each against one replica."""
    bench.sites.keep(("fronts", "fast"))
    urls = bench.sites.get("fronts", "fast").urls
    send = partial(load.over_http, clients=CLIENTS, seconds=bench.seconds)
    found = bench.alternate({way: partial(send, url) for way, url in urls.items()})
    for replicas in REPLICAS:
        ours = found[f"replicas-{replicas}"]
        yield Line("fronts", f"front replicas: {replicas}, fast, HTTP, {CLIENTS} clients", "/s",
                   ours, found["replicas-1"] if replicas > 1 else [], "one replica")  # fmt: skip
