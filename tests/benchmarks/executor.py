"""What runs a graph, alone: in one process, without Ray, a network or a pickle."""

# mypy does not see what Ray's decorators add: .bind.
# mypy: disable-error-code="attr-defined"

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from ray import serve

import raycompose as rc
from benchmarks.load import PAYLOAD
from benchmarks.peers import LANGCHAIN
from benchmarks.registry import registry
from benchmarks.results import Line, at_most
from benchmarks.rounds import Bench, Way
from benchmarks.samples import Sample
from benchmarks.stages import OPTIONS, First, Second, Third

ITEMS = 100


async def first(value: Any) -> Any:
    return value


async def second(value: Any) -> Any:
    return value


async def third(value: Any) -> Any:
    return value


async def by_reference(ref: rc.Ref[Any]) -> Any:
    return await ref


async def produce(value: Any) -> AsyncIterator[Any]:
    for _ in range(ITEMS):
        yield value


def embedded(way: str) -> Any:
    """Return the graph of a way as a callable of this process."""
    graphs: dict[str, Callable[[], Any]] = {
        "functions": lambda: rc.pipeline(first, second, third),
        "fused": lambda: rc.pipeline(First.bind(), Second.bind(), Third.bind()).fuse(),
        "one": lambda: rc.pipeline(first),
        "timeout_s": lambda: rc.pipeline(rc.stage(first, timeout_s=60)),
        "retry": lambda: rc.pipeline(rc.stage(first, retry=3)),
        "stream": lambda: rc.pipeline(produce),
        "mapped stream": lambda: rc.pipeline(produce, first),
        "by value": lambda: rc.pipeline(first, second),
        "by reference": lambda: rc.pipeline(first, by_reference),
    }
    return graphs[way]().embed()


async def hand_written(value: Any) -> Any:
    return await third(await second(await first(value)))


async def call_us(way: str, calls: int, per: int = 1) -> Sample:
    """Microseconds of a call, and ``per`` so many stages."""
    call = hand_written if way == "hand-written" else embedded(way)
    found = await timed_us(call, PAYLOAD, calls)
    return Sample(found.value / per)


@serve.deployment(**OPTIONS)
class Inside:
    """Measures in a replica, where stages have metrics."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    async def __call__(self, calls: int) -> float:
        return (await timed_us(self._pipeline, PAYLOAD, calls)).value


def apps() -> dict[str, serve.Application]:
    """Return the fused stages, to be called in a replica."""
    return {"fused": Inside.bind(embedded("fused"))}


async def replica_us(client: Any, calls: int) -> Sample:
    """Microseconds of a stage of three fused ones, in a replica."""
    return Sample(await client.handle.remote(calls) / 3)


async def timed_us(call: Callable[[Any], Awaitable[Any]], value: Any, calls: int) -> Sample:
    """Microseconds of a call: of the fastest of ten shares, for what else runs only adds to it."""
    share, took_s = max(1, calls // 10), []
    for _ in range(11):  # in the first the graph opens
        began = time.perf_counter()
        for _ in range(share):
            await call(value)
        took_s.append(time.perf_counter() - began)
    return Sample(min(took_s[1:]) / share * 1e6)


async def item_us(way: str, calls: int) -> Sample:
    """Microseconds of an item of a stream."""
    pipeline = embedded(way)

    async def whole(value: Any) -> None:
        async for _ in pipeline.stream(value):
            pass

    found = await timed_us(whole, PAYLOAD, calls // ITEMS)
    return Sample(found.value / ITEMS)


def _calls(bench: Bench, calls_per_s: int) -> int:
    """As many calls as fill about the time of a measurement."""
    return max(100, int(bench.seconds * calls_per_s))


@registry.row("6", "the executor alone, in one process")
def executor(bench: Bench) -> Iterator[Line]:
    """Three functions, against LangChain's; three fused deployments."""
    bench.sites.keep(("executor", "no ray"))
    ask, calls = bench.sites.get("executor", "no ray").ask, _calls(bench, 20_000)
    ways: dict[str, Way] = {
        "functions": partial(ask, "call_us", "functions", calls=calls),
        "hand-written": partial(ask, "call_us", "hand-written", calls=calls),
        "fused": partial(ask, "call_us", "fused", calls=calls, per=3),
    }
    lcel = LANGCHAIN.missing
    if not lcel:
        lcel_calls = str(_calls(bench, 1_000))
        ways["LCEL"] = lambda: Sample(LANGCHAIN.measured(lcel_calls))
    found = bench.alternate(ways)
    others = {"hand-written": found["hand-written"]}
    yield Line("6", "three async functions, a call", "µs", found["functions"],
               target=at_most(5), others=others)  # fmt: skip
    yield Line("6", "the same against LCEL", "µs", [] if lcel else found["functions"],
               found.get("LCEL", []), LANGCHAIN.version, note=lcel)  # fmt: skip
    yield Line("6", "three fused deployments, a stage", "µs", found["fused"], target=at_most(5))
    bench.sites.keep(("executor", "defaults"))
    replica = partial(bench.sites.get("executor").ask, "replica_us", "fused", calls=calls)
    yield Line("6", "the same in a replica, with metrics", "µs",
               bench.alternate({"replica": replica})["replica"], target=at_most(5))  # fmt: skip


@registry.row("6b", "the extra cost of the executor's options")
def options(bench: Bench) -> Iterator[Line]:
    """Each against the same graph without it, round by round."""
    bench.sites.keep(("executor", "no ray"))
    ask, calls = bench.sites.get("executor", "no ray").ask, _calls(bench, 20_000)
    call, item = partial(ask, "call_us", calls=calls), partial(ask, "item_us", calls=calls)
    for what, measure, with_it, without, limit_us in (
        ("extra cost of timeout_s", call, "timeout_s", "one", 2),
        ("extra cost of retry", call, "retry", "one", 2),
        ("extra cost of a function for each item of a stream", item, "mapped stream", "stream", 5),
        ("extra cost of an edge by reference", call, "by reference", "by value", 10),
    ):
        found = bench.alternate({way: partial(measure, way) for way in (with_it, without)})
        more = [
            Sample(one.value - other.value, details={"with": one.value, "without": other.value})
            for one, other in zip(found[with_it], found[without], strict=True)
        ]
        yield Line("6b", what, "µs", more, target=at_most(limit_us))
