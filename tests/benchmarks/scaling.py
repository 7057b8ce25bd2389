"""Cost against the size of a graph: stages in a row, stages at once, branches; front replicas."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

import raycompose as rc
from benchmarks import load
from benchmarks.executor import first, timed_us
from benchmarks.registry import registry
from benchmarks.results import Line, at_most
from benchmarks.rounds import Bench, Way, median
from benchmarks.samples import Sample
from benchmarks.stages import OPTIONS, First

STAGES, WIDTHS, BRANCHES = (1, 5, 10, 20), (1, 10, 25, 50), (1, 10, 100)
CALLERS = 16


@serve.deployment(**OPTIONS)
class HandWritten:
    """The same without a graph: by gRPC, each response awaited."""

    def __init__(self, stage: DeploymentHandle[Any]) -> None:
        self._stage = stage.options(_by_reference=False)

    async def __call__(self, value: dict[str, Any]) -> Any:
        kind, count = value["graph"].split()
        if kind == "width":
            return await asyncio.gather(*(self._stage.remote(value) for _ in range(int(count))))
        for _ in range(int(count)):
            value = await self._stage.remote(value)
        return value


def apps() -> dict[str, serve.Application]:
    """Return one pipeline that has every graph, with one deployment, and the same without it."""
    stage = First.bind()
    graphs: dict[str, Any] = {f"stages {n}": rc.pipeline(*[stage] * n) for n in STAGES}
    graphs |= {f"width {n}": rc.parallel(*[stage] * n) for n in WIDTHS}
    return {"ours": rc.switch("graph", graphs), "theirs": HandWritten.bind(First.bind())}


async def request_ms(client: Any, graph: str, seconds: float) -> Sample:
    """Milliseconds that the whole takes for a request, 16 in flight."""
    handle, value = client.handle, {"graph": graph}

    async def call() -> None:
        await handle.remote(value)

    found = await load.closed_loop(call, CALLERS, seconds)
    return Sample(1000 / found.value if found.value else 0.0, found.failed, found.details)


async def graph_us(graph: str, calls: int) -> Sample:
    """Microseconds of a call of a graph of functions, in one process."""
    kind, count = graph.split()
    n = int(count)
    graphs = {
        "stages": lambda: rc.pipeline(*[first] * n),
        "width": lambda: rc.parallel(*[first] * n),
        "branches": lambda: rc.switch("key", dict.fromkeys(range(n), first)),
    }
    return await timed_us(graphs[kind]().embed(), {"key": n - 1}, max(10, calls // n))


@registry.row("scale", "cost against the number of stages, the width, the branches", optional=True)
def scale(bench: Bench) -> Iterator[Line]:
    """Distributed, against the same calls without a graph; and alone, in one process."""
    bench.sites.keep(("scaling", "defaults"))
    ask = partial(bench.sites.get("scaling").ask, "request_ms", seconds=bench.seconds)
    for kind, counts in (("stages", STAGES), ("width", WIDTHS)):
        for count in counts:
            graph = partial(ask, graph=f"{kind} {count}")
            found = bench.alternate({way: partial(graph, way) for way in ("ours", "theirs")})
            yield Line("scale", f"distributed, {kind}: {count}, a request", "ms", found["ours"],
                       found["theirs"], "by gRPC", at_most(1.05))  # fmt: skip
    bench.sites.keep(("scaling", "no ray"))
    alone = partial(bench.sites.get("scaling", "no ray").ask, "graph_us")
    calls = max(100, int(bench.seconds * 10_000))
    sizes = [*(("stages", n) for n in STAGES), *(("width", n) for n in WIDTHS),
             *(("branches", n) for n in BRANCHES)]  # fmt: skip
    ways: dict[str, Way] = {
        f"{kind}: {count}": partial(alone, f"{kind} {count}", calls=calls) for kind, count in sizes
    }
    found = bench.alternate(ways)
    for (_, count), (way, samples) in zip(sizes, found.items(), strict=True):
        each = f"{median(samples) / count:.2f} µs each"
        yield Line("scale", f"in one process, {way}, a call", "µs", samples, note=each)
