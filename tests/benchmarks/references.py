"""Results by reference: what is done while they are made, and what they leave behind."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import psutil
import ray
from numpy.typing import NDArray
from ray import ObjectRef, serve
from ray.serve.handle import DeploymentHandle

import raycompose as rc
from benchmarks.registry import registry
from benchmarks.results import Line, at_most
from benchmarks.rounds import Bench
from benchmarks.samples import Sample
from benchmarks.stages import OPTIONS

Array = NDArray[np.uint8]
RAY_OPTIONS = {"object_store_memory": 1_500_000_000}
LARGE, MIDDLING = 100_000_000, 200_000
"""Bytes of arrays; the smaller is still one that Ray keeps in the object store."""
STAGE_S = 0.1
"""What the upstream takes, and what its downstream prepares meanwhile."""
REQUESTS = 10_000
CALM_S = 10.0
"""How long Ray may take to free what it no longer needs."""


@serve.deployment(**OPTIONS)
class Make:
    async def __call__(self, size: int) -> Array:
        return np.zeros(size, np.uint8)

    async def slowly(self, value: Any) -> Any:
        await asyncio.sleep(STAGE_S)
        return value


@serve.deployment(**OPTIONS)
class Forward:
    async def __call__(self, refs: list[ObjectRef[Array]]) -> Array:
        array: Array = await refs[0]
        return array


@serve.deployment(**OPTIONS)
class Measure:
    async def __call__(self, refs: list[ObjectRef[Array]]) -> int:
        return len(await refs[0])

    async def prepared(self, refs: list[ObjectRef[Any]]) -> Any:
        await asyncio.sleep(STAGE_S)
        return await refs[0]


@serve.deployment(**OPTIONS)
class Arrays:
    """What Ray Serve allows: its own conversion of a response, the reference in a list."""

    def __init__(self, *stages: DeploymentHandle[Any]) -> None:
        self._make, self._forward, self._measure = stages

    async def __call__(self, size: int) -> int:
        made = await self._make.remote(size)._to_object_ref()
        forwarded = await self._forward.remote([made])._to_object_ref()
        length: int = await self._measure.remote([forwarded])
        return length


@serve.deployment(**OPTIONS)
class Eager:
    """The same for a stage that prepares while its upstream runs."""

    def __init__(self, make: DeploymentHandle[Any], measure: DeploymentHandle[Any]) -> None:
        self._make, self._measure = make.slowly, measure.prepared

    async def __call__(self, value: Any) -> Any:
        made = await self._make.remote(value)._to_object_ref()
        return await self._measure.remote([made])


def apps() -> dict[str, serve.Application]:
    """Return both ways to do the same, each with deployments of its own."""
    slowly = rc.stage(Make.bind(), method="slowly")
    return {
        "arrays": rc.pipeline(Make.bind(), Forward.bind(), Measure.bind()),
        "arrays-theirs": Arrays.bind(Make.bind(), Forward.bind(), Measure.bind()),
        "eager": rc.pipeline(slowly, rc.stage(Measure.bind(), method="prepared")),
        "eager-theirs": Eager.bind(Make.bind(), Measure.bind()),
    }


async def call_s(client: Any, argument: Any, times: int) -> Sample:
    """Seconds of a call."""
    took_s = []
    for _ in range(times):
        began = time.perf_counter()
        if await client.handle.remote(argument) != argument:
            return Sample(0.0, 1)
        took_s.append(time.perf_counter() - began)
    return Sample(sorted(took_s)[len(took_s) // 2])


@registry.row("8", "a stage that prepares while its upstream runs; 100 MB by reference")
def eager(bench: Bench) -> Iterator[Line]:
    """Against the longer of the two; against Ray Serve's own conversion."""
    bench.sites.keep(("references", "defaults"))
    call, times = (
        partial(bench.sites.get("references").ask, "call_s"),
        max(1, int(bench.seconds * 2)),
    )
    found = bench.alternate(
        {w: partial(call, w, argument="x", times=times) for w in ("eager", "eager-theirs")}
    )
    longer = [Sample(STAGE_S)] * len(found["eager"])
    what = f"{STAGE_S:g} s of preparation behind a stage of {STAGE_S:g} s"
    yield Line("8", what, "s", found["eager"], longer, "the longer", at_most(1.3),
               others={"without raycompose": found["eager-theirs"]})  # fmt: skip
    found = bench.alternate(
        {w: partial(call, w, argument=LARGE, times=times) for w in ("arrays", "arrays-theirs")}
    )
    yield Line("8", "100 MB by reference through three stages", "s", found["arrays"],
               found["arrays-theirs"], "_to_object_ref()", at_most(1.1))  # fmt: skip


async def left_behind(client: Any, requests: int) -> Sample:
    """Megabytes that the replicas have grown by after so many requests; the store in details."""
    handle = client.handle
    calls = iter(range(requests + requests // 10))

    async def caller(until: int) -> None:
        for number in calls:
            if await handle.remote(MIDDLING) != MIDDLING:
                raise ValueError("not the array that was made")
            if number >= until:
                return

    await asyncio.gather(*(caller(requests // 10) for _ in range(16)))
    store_bytes, memory = _store_bytes(), _replicas_bytes()
    await asyncio.gather(*(caller(2 * requests) for _ in range(16)))
    end = time.monotonic() + CALM_S
    while (more := _store_bytes() - store_bytes) > 0 and time.monotonic() < end:  # noqa: ASYNC110  # Ray tells nobody
        await asyncio.sleep(0.2)
    grown = {name: (now - memory[name]) / 1e6 for name, now in _replicas_bytes().items()}
    return Sample(max(grown.values()), details={"store_mb": more / 1e6, "grown_mb": grown})


def _store_bytes() -> int:
    from ray._private.internal_api import node_stats  # noqa: TID251  # nothing public sees the store

    (node,) = ray.nodes()
    stats: Any = node_stats(
        node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
    )
    return int(stats.store_stats.object_store_bytes_used)


def _replicas_bytes() -> dict[str, int]:
    """The memory of each replica that is its own: not what it sees of the object store."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        title = (process.cmdline() or [""])[0]
        if title.startswith("ray::ServeReplica:"):
            memory = process.memory_info()
            name = ":".join(title.split(".")[0].split(":")[3:5])
            found[name] = memory.rss - memory.shared
    return found


@registry.row("10", "what 10,000 requests through a pipeline by reference leave behind")
def memory(bench: Bench) -> Iterator[Line]:
    """In the object store, and in the replica that grew most."""
    bench.sites.keep(("references", "defaults"))
    requests = max(10, int(REQUESTS * min(1.0, bench.seconds)))
    bench.announce(f"{requests:,} requests by reference")
    found = bench.sites.get("references").ask("left_behind", "arrays", requests=requests)
    store = Sample(found.details["store_mb"])
    after = f"after {requests:,} requests by reference"
    yield Line("10", f"growth of the object store {after}", "MB", [store], target=at_most(1))
    yield Line("10", f"growth of the replica that grew most {after}", "MB", [found],
               target=at_most(10))  # fmt: skip
