"""Items per second through three stages, and the time to the first, against relays by hand.

The first way of a relay by hand awaits each item's calls before the next item's; the second keeps
a few in flight.
"""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from harness import HERE, Row, deployed, in_turn
from ray import serve
from ray.serve.handle import DeploymentHandle

import raycompose as rc
from raycompose.flow.streams import IN_FLIGHT

ITEMS = 300


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


async def items_per_s(client: rc.Client) -> float:
    started = time.perf_counter()
    got = [item["n"] async for item in client.handle.options(stream=True).remote(ITEMS)]
    took_s = time.perf_counter() - started
    if got != list(range(ITEMS)):
        raise RuntimeError(f"asked for {ITEMS} items in order, got {len(got)}")
    return ITEMS / took_s


async def first_item_ms(client: rc.Client) -> float:
    started = time.perf_counter()
    response = client.handle.options(stream=True).remote(1)
    await anext(aiter(response))
    return 1000 * (time.perf_counter() - started)


def rows(rounds: int) -> list[Row]:
    """Measure."""
    with deployed(__name__, apps()) as clients:

        async def measured(measure: Any, rounds: int) -> dict[str, float]:
            return await in_turn({w: partial(measure, c) for w, c in clients.items()}, rounds)

        rates = asyncio.run(measured(items_per_s, rounds))
        firsts = asyncio.run(measured(first_item_ms, 5 * rounds))
    others = ", ".join(f"{way}: {rate:.0f}" for way, rate in rates.items() if way != "ours")
    return [
        Row("7", "streaming through three stages, items/s", rates["ours"], rates["relay"], 3.0,
            notes=others),
        Row("7", "the same, to the first item, ms", firsts["ours"], firsts["relay"], 1.5,
            less_is_better=True),
    ]  # fmt: skip
