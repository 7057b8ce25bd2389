"""Values of every size between the stages: when gRPC is faster, when the object store."""

# mypy does not see what Ray's decorators add: .bind.
# mypy: disable-error-code="attr-defined"

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve.handle import DeploymentHandle

import raycompose as rc
from benchmarks import load
from benchmarks.registry import registry
from benchmarks.results import Line, at_least
from benchmarks.rounds import Bench, Way, best, rates
from benchmarks.samples import Sample
from benchmarks.sites import Settings
from benchmarks.stages import OPTIONS, EachAwaited, PassedOn
from raycompose.flow.weights import HEAVY_BYTES

Array = NDArray[np.uint8]
RAY_OPTIONS = {"object_store_memory": 3_000_000_000}
PASSED_ON, BY_GRPC, BY_REFERENCE = "passed-on", "by-grpc", "by-reference"
MB = 1_000_000
ROW_2 = (1_000, 100_000, 1 * MB, 4 * MB, 20 * MB, 200 * MB)
CROSSOVER = (1_000, 10_000, 100_000, 300_000, 1 * MB, 2 * MB, 4 * MB, 10 * MB, 20 * MB, 200 * MB)
IN_FLIGHT_BYTES = 320 * MB


@serve.deployment(**OPTIONS)
class Make:
    """Returns an array of the size that it is asked for, made once."""

    def __init__(self) -> None:
        self._made: dict[int, Array] = {}

    async def __call__(self, size: int) -> Array:
        if size not in self._made:
            self._made[size] = np.ones(size, np.uint8)
        return self._made[size]


@serve.deployment(**OPTIONS)
class Forward:
    """Returns the array that it is given."""

    async def __call__(self, array: Array) -> Array:
        return array


@serve.deployment(**OPTIONS)
class Measure:
    """Returns the size of the array that it is given."""

    async def __call__(self, array: Array) -> int:
        return len(array)


def apps() -> dict[str, serve.Application]:
    """Return every way to do the same, each with deployments of its own."""

    def stages() -> tuple[DeploymentHandle[Any], ...]:
        return Make.bind(), Forward.bind(), Measure.bind()

    return {
        "ours": rc.pipeline(*stages()),
        PASSED_ON: PassedOn.bind(*stages()),
        BY_GRPC: EachAwaited.bind(*stages(), by_reference=False),
        BY_REFERENCE: EachAwaited.bind(*stages(), by_reference=True),
    }


async def sized(client: Any, size: int, callers: int, seconds: float) -> Sample:
    """Calls a second with arrays of one size."""
    handle = client.handle

    async def call() -> None:
        if await handle.remote(size) != size:
            raise ValueError("not the array that was made")

    return await load.closed_loop(call, callers, seconds)


def in_flight(size: int) -> int:
    """As many requests at once as memory allows."""
    return max(1, min(16, IN_FLIGHT_BYTES // (4 * size)))


def text(size: int) -> str:
    """Return a size for people."""
    return f"{size // MB} MB" if size >= MB else f"{size // 1000} KB"


def compared(
    bench: Bench, row: str, settings: Settings, sizes: tuple[int, ...], ways: tuple[str, ...]
) -> Iterator[Line]:
    """Yield a line per size: ours against the best of the other ways at that size."""
    bench.sites.keep(("sizes", settings))
    ask = bench.sites.get("sizes", settings).ask
    for size in sizes:
        callers = in_flight(size)
        measure = partial(ask, "sized", size=size, callers=callers, seconds=bench.seconds / 2)
        asked: dict[str, Way] = {way: partial(measure, way) for way in ("ours", *ways)}
        found = bench.alternate(asked)
        fastest = best(found, *ways)
        yield Line(
            row, f"{text(size)} between three deployments, {settings}, {callers} in flight", "/s",
            found["ours"], found[fastest], fastest, at_least(1.0), rates(found, *ways),
            {way: found[way] for way in ways},
        )  # fmt: skip


@registry.row("2", "arrays of 1 KB to 200 MB between the stages, by handle")
def arrays(bench: Bench) -> Iterator[Line]:
    """Against the idiomatic chain."""
    yield from compared(bench, "2", "defaults", ROW_2, (PASSED_ON,))


@registry.row(
    "size", "the crossover by size: ours, by gRPC, through the object store", optional=True
)
def crossover(bench: Bench) -> Iterator[Line]:
    """Against each transport alone, each response awaited, at both settings."""
    ways = (BY_GRPC, BY_REFERENCE, PASSED_ON)
    all_settings: tuple[Settings, ...] = ("defaults", "fast")
    for settings in all_settings:
        faster = [0]
        for size, line in zip(
            CROSSOVER, compared(bench, "size", settings, CROSSOVER, ways), strict=True
        ):
            yield line
            if best(line.others, BY_GRPC, BY_REFERENCE) == BY_GRPC:
                faster.append(size)
        yield Line("size", f"largest value for which gRPC is faster, {settings}", "KB",
                   [Sample(max(faster) / 1000)],
                   note=f"raycompose changes over at {HEAVY_BYTES // 1000} KB")  # fmt: skip
