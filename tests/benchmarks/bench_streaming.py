"""Items per second through three stages, and the time to the first, against relays by hand.

Run it: ``python tests/benchmarks/bench_streaming.py [--items 300] [--rounds 5]``. It prints
one row of the table of benchmarks, and writes all that it measured as JSON. The first way of a
relay by hand awaits each item's calls before the next item's; the second keeps a few in flight.
"""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import argparse
import asyncio
import json
import logging
import statistics
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

import raycompose as rc
from raycompose.streams import IN_FLIGHT

TARGET = 3.0
FIRST_ITEMS = 10
"""How many times in a round the time to the first item is taken."""
HERE: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": 100}


@serve.deployment(**HERE)
class Producer:
    async def __call__(self, count: int) -> AsyncIterator[dict[str, int]]:
        for n in range(count):
            yield {"n": n}


class Stage:
    """A stage that returns its input: whole streams, or item by item."""

    async def whole(self, items: rc.Stream[Any]) -> AsyncIterator[Any]:
        async for item in items:
            yield item

    async def one(self, item: Any) -> Any:
        return item


Second = serve.deployment(**HERE, name="Second")(Stage)
Third = serve.deployment(**HERE, name="Third")(Stage)


@serve.deployment(**HERE)
class Relay:
    """What is written by hand today: the ingress hands every item on."""

    def __init__(
        self,
        producer: DeploymentHandle[Any],
        second: DeploymentHandle[Any],
        third: DeploymentHandle[Any],
        in_flight: int,
    ) -> None:
        self._producer = producer.options(stream=True)
        self._second = second
        self._third = third
        self._in_flight = in_flight

    async def __call__(self, count: int) -> AsyncIterator[Any]:
        running: deque[Any] = deque()
        async for item in self._producer.remote(count):
            running.append(self._third.one.remote(self._second.one.remote(item)))
            if len(running) == self._in_flight:
                yield await running.popleft()
        while running:
            yield await running.popleft()


def apps() -> dict[str, serve.Application]:
    """Return every way to do the same, each with deployments of its own."""
    producer, second, third = Producer.bind(), Second.bind(), Third.bind()
    mapped = Producer.bind(), Second.bind(), Third.bind()
    return {
        "ours": rc.pipeline(
            producer, rc.stage(second, method="whole"), rc.stage(third, method="whole")
        ),
        "ours, item by item": rc.pipeline(
            mapped[0], rc.stage(mapped[1], method="one"), rc.stage(mapped[2], method="one")
        ),
        "relay": Relay.bind(Producer.bind(), Second.bind(), Third.bind(), 1),
        f"relay, {IN_FLIGHT} in flight": Relay.bind(
            Producer.bind(), Second.bind(), Third.bind(), IN_FLIGHT
        ),
    }


async def items_per_s(client: rc.Client, count: int) -> float:
    started = time.perf_counter()
    got = [item["n"] async for item in client.handle.options(stream=True).remote(count)]
    took_s = time.perf_counter() - started
    if got != list(range(count)):
        raise RuntimeError(f"asked for {count} items in order, got {len(got)}")
    return count / took_s


async def first_item_ms(client: rc.Client) -> float:
    started = time.perf_counter()
    response = client.handle.options(stream=True).remote(1)
    await anext(aiter(response))
    return 1000 * (time.perf_counter() - started)


async def measure(clients: dict[str, rc.Client], count: int, rounds: int) -> dict[str, Any]:
    """Take every way in turn, round by round, and return the medians."""
    rates: dict[str, list[float]] = {way: [] for way in clients}
    firsts: dict[str, list[float]] = {way: [] for way in clients}
    for client in clients.values():
        await items_per_s(client, max(1, count // 10))  # connections, imports
    for _ in range(rounds):
        for way, client in clients.items():
            firsts[way] += [await first_item_ms(client) for _ in range(FIRST_ITEMS)]
            rates[way].append(await items_per_s(client, count))
    return {
        way: {
            "items_per_s": statistics.median(rates[way]),
            "first_item_ms": statistics.median(firsts[way]),
            "rounds_items_per_s": rates[way],
        }
        for way in clients
    }


def row(measured: dict[str, Any]) -> dict[str, Any]:
    ours, theirs = (measured[way]["items_per_s"] for way in ("ours", "relay"))
    return {
        "row": 7,
        "what": "streaming through three stages, items/s",
        "ours": ours,
        "theirs": theirs,
        "ratio": ours / theirs,
        "target": TARGET,
        "met": ours / theirs >= TARGET,
        "measured": measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark streams between deployments.")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("build/streaming.json"))
    options = parser.parse_args()

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import it
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        serve.start(proxy_location="Disabled")
        clients = {
            way: rc.run(app, name=f"app{n}", route_prefix=None)
            for n, (way, app) in enumerate(apps().items())
        }
        result = row(asyncio.run(measure(clients, options.items, options.rounds)))
    finally:
        serve.shutdown()
        ray.shutdown()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2))
    first_ms = [result["measured"][way]["first_item_ms"] for way in ("ours", "relay")]
    print(
        f"| 7 | {result['what']} (first item: {first_ms[0]:.1f} ms, by hand {first_ms[1]:.1f} ms) "
        f"| {result['ours']:.0f} | {result['theirs']:.0f} | {result['ratio']:.1f} x "
        f"| >= {TARGET:g} x | {'met' if result['met'] else 'NOT met'} |"
    )


if __name__ == "__main__":
    main()
