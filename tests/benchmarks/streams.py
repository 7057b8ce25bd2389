"""Streams through three stages, and of tokens over HTTP."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

import raycompose as rc
from benchmarks import load
from benchmarks.registry import registry
from benchmarks.results import Line, at_least, at_most
from benchmarks.rounds import Bench, Way
from benchmarks.samples import Sample
from benchmarks.stages import OPTIONS, First

AHEAD = 16
"""How many items the better relay has under way."""
TOKENS = 100
"""How many an answer has."""


@serve.deployment(**OPTIONS)
class Producer:
    async def __call__(self, count: int) -> AsyncIterator[dict[str, int]]:
        for n in range(count):
            yield {"n": n}


class Items:
    """A stage that returns its input: whole streams, or item by item."""

    async def whole(self, items: rc.Stream[Any]) -> AsyncIterator[Any]:
        async for item in items:
            yield item

    async def one(self, item: Any) -> Any:
        return item


Second = serve.deployment(**OPTIONS, name="Second")(Items)
Third = serve.deployment(**OPTIONS, name="Third")(Items)


@serve.deployment(**OPTIONS)
class Relay:
    """What Ray Serve has for streams through stages: the ingress hands every item on."""

    def __init__(
        self,
        producer: DeploymentHandle[Any],
        second: DeploymentHandle[Any],
        third: DeploymentHandle[Any],
        ahead: int,
        by_reference: bool,
    ) -> None:
        self._producer = producer.options(stream=True, _by_reference=by_reference)
        self._second = second.one.options(_by_reference=by_reference)
        self._third = third.one.options(_by_reference=by_reference)
        self._ahead = ahead

    async def __call__(self, count: int) -> AsyncIterator[Any]:
        running: deque[Any] = deque()
        async for item in self._producer.remote(count):
            running.append(self._third.remote(self._second.remote(item)))
            if len(running) == self._ahead:
                yield await running.popleft()
        while running:
            yield await running.popleft()


@serve.deployment(**OPTIONS)
class Tokens:
    """Stands for a language model."""

    async def __call__(self, count: int) -> AsyncIterator[str]:
        for _ in range(count):
            yield "token "


def apps() -> dict[str, serve.Application]:
    """Return every way to do the same, each with deployments of its own."""

    def relay(ahead: int, by_reference: bool) -> serve.Application:
        stages = Producer.bind(), Second.bind(), Third.bind()
        return Relay.bind(*stages, ahead=ahead, by_reference=by_reference)

    items = Second.bind(), Third.bind()
    tokens = rc.pipeline(First.bind(), Tokens.bind())
    return {
        "ours": rc.pipeline(Producer.bind(), *(rc.stage(s, method="whole") for s in items)),
        "relay": relay(1, by_reference=True),
        "relay-ahead": relay(AHEAD, by_reference=False),
        "tokens": tokens,
        "tokens-fused": tokens.fuse("Tokens"),
    }


async def items_per_s(client: Any, seconds: float) -> Sample:
    """Items a second of streams that follow one another."""
    handle, count, items = client.handle.options(stream=True), 300, 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        got = [item["n"] async for item in handle.remote(count)]
        if got != list(range(count)):
            return Sample(0.0, 1, {"got": got[:10]})
        items += count
    return Sample(items / (time.perf_counter() - began))


async def first_item_ms(client: Any, times: int) -> Sample:
    """Milliseconds to the first item."""
    handle, took_ms = client.handle.options(stream=True), []
    for _ in range(times):
        began = time.perf_counter()
        async for _item in handle.remote(1):
            took_ms.append(1000 * (time.perf_counter() - began))
    return Sample(sorted(took_ms)[len(took_ms) // 2])


@registry.row("7", "streams through three stages, against a relay in the ingress")
def relayed(bench: Bench) -> Iterator[Line]:
    """Items a second, and the time to the first."""
    bench.sites.keep(("streams", "defaults"))
    ask = bench.sites.get("streams").ask
    rate = partial(ask, "items_per_s", seconds=bench.seconds)
    found = bench.alternate({w: partial(rate, w) for w in ("ours", "relay", "relay-ahead")})
    ours, relay, ahead = found["ours"], found["relay"], f"relay by gRPC, {AHEAD} ahead"
    what = "streaming through three stages"
    yield Line("7", what, "items/s", ours, relay, "relay", at_least(3))
    yield Line(
        "7", f"{what}, against the better relay", "items/s", ours, found["relay-ahead"], ahead
    )
    first = partial(ask, "first_item_ms", times=max(3, int(bench.seconds * 7)))
    found = bench.alternate({way: partial(first, way) for way in ("ours", "relay")})
    yield Line("7", f"{what}, to the first item", "ms", found["ours"], found["relay"], "relay",
               at_most(1.2))  # fmt: skip


@registry.row("7b", "tokens a second through the front, against a fused last stage")
def tokens(bench: Bench) -> Iterator[Line]:
    """At 1, 16 and 64 requests at once, over HTTP."""
    bench.sites.keep(("streams", "defaults"))
    urls = bench.sites.get("streams").urls
    for clients in (1, 16, 64):
        ask = partial(_tokens_per_s, clients=clients, seconds=bench.seconds / 2)
        ways: dict[str, Way] = {way: partial(ask, urls[way]) for way in ("tokens-fused", "tokens")}
        found = bench.alternate(ways)
        yield Line("7b", f"tokens over HTTP, the last stage fused, {clients} at once", "tokens/s",
                   found["tokens-fused"], found["tokens"], "through the front",
                   note="fused, a token makes no hop between replicas")  # fmt: skip


def _tokens_per_s(url: str, clients: int, seconds: float) -> Sample:
    answers = load.over_http(url, clients, seconds, body=TOKENS, answer="token " * TOKENS)
    return Sample(answers.value * TOKENS, answers.failed, answers.details)
