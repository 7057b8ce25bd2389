"""Results by reference: how often a large one is copied, and what is done while it is made.

By hand is what Ray Serve 2.60 allows: its own conversion of a response, the reference in a list.
"""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import time
from functools import partial
from typing import Any

import numpy as np
import ray
from harness import HERE, Row, deployed, in_turn
from numpy.typing import NDArray
from ray import ObjectRef, serve
from ray.serve.handle import DeploymentHandle

import raycompose as rc

Array = NDArray[np.uint8]
SIZE = 100_000_000  # bytes
STAGE_S = 0.1
"""What the upstream takes, and what its downstream prepares meanwhile."""


@serve.deployment(**HERE)
class Maker:
    def make(self, size: int) -> Array:
        return np.zeros(size, np.uint8)

    async def slowly(self, value: Any) -> Any:
        await asyncio.sleep(STAGE_S)
        return value


@serve.deployment(**HERE)
class Forward:
    async def __call__(self, refs: list[ObjectRef[Array]]) -> Array:
        array: Array = await refs[0]
        return array


@serve.deployment(**HERE)
class Taker:
    async def length(self, refs: list[ObjectRef[Array]]) -> int:
        array = await refs[0]
        if array.flags.writeable:
            raise RuntimeError("the array was copied rather than seen where it lies")
        return len(array)

    async def prepared(self, refs: list[ObjectRef[Any]]) -> Any:
        await asyncio.sleep(STAGE_S)
        return await refs[0]


@serve.deployment(**HERE)
class ByHand:
    """What is written by hand today."""

    def __init__(
        self,
        maker: DeploymentHandle[Any],
        forward: DeploymentHandle[Any],
        taker: DeploymentHandle[Any],
    ) -> None:
        self._maker = maker
        self._forward = forward
        self._taker = taker

    async def large(self, size: int) -> int:
        made = await self._maker.make.remote(size)._to_object_ref()
        forwarded = await self._forward.remote([made])._to_object_ref()
        length: int = await self._taker.length.remote([forwarded])
        return length

    async def eager(self, value: Any) -> Any:
        made = await self._maker.slowly.remote(value)._to_object_ref()
        return await self._taker.prepared.remote([made])


def apps() -> dict[str, serve.Application]:
    """Return the same by raycompose and by hand, each with deployments of its own."""
    maker, forward, taker = Maker.bind(), Forward.bind(), Taker.bind()
    large = rc.pipeline(rc.stage(maker, method="make"), forward, rc.stage(taker, method="length"))
    eager = rc.pipeline(rc.stage(maker, method="slowly"), rc.stage(taker, method="prepared"))
    return {
        "ours": rc.pipeline(lambda value: value, rc.when(is_size, large, eager)),
        "by hand": ByHand.bind(Maker.bind(), Forward.bind(), Taker.bind()),
    }


def is_size(value: Any) -> bool:
    return isinstance(value, int)


def written_bytes() -> int:
    """Bytes that were ever written to the object store."""
    from ray._private.internal_api import node_stats  # noqa: TID251  # nothing public sees the store

    (node,) = ray.nodes()
    stats: Any = node_stats(
        node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
    )
    return int(stats.store_stats.cumulative_created_bytes)


async def copies(call: Any) -> float:
    """How often a large array was written to the object store for one call."""
    before = written_bytes()
    if await call(SIZE) != SIZE:
        raise RuntimeError("the array that arrived is not the one that was made")
    return (written_bytes() - before) / SIZE


async def seconds(call: Any, value: Any) -> float:
    started = time.perf_counter()
    await call(value)
    return time.perf_counter() - started


def rows(rounds: int) -> list[Row]:
    """Measure."""
    with deployed(__name__, apps(), object_store_memory=1_500_000_000) as clients:
        ours, by_hand = clients["ours"].handle, clients["by hand"].handle
        large = {"ours": ours.remote, "by hand": by_hand.large.remote}
        eager = {"ours": ours.remote, "by hand": by_hand.eager.remote}

        async def measured(measure: Any, calls: Any, *args: Any) -> dict[str, float]:
            ways = {way: partial(measure, call, *args) for way, call in calls.items()}
            return await in_turn(ways, rounds)

        copied = asyncio.run(measured(copies, large))
        took_s = asyncio.run(measured(seconds, large, SIZE))
        eager_s = asyncio.run(measured(seconds, eager, "x"))
    return [
        Row("4", "100 MB through three stages by reference, copies", copied["ours"],
            copied["by hand"], 1.01, less_is_better=True),
        Row("4", "the same, s", took_s["ours"], took_s["by hand"], 1.1, less_is_better=True),
        Row("8", f"{STAGE_S} s of preparation behind a stage of {STAGE_S} s, s, and the longer",
            eager_s["ours"], STAGE_S, 1.3, less_is_better=True,
            notes=f"by hand: {eager_s['by hand']:.3f} s"),
    ]  # fmt: skip
