"""Stages of one deployment that feed each other: no request waits for its own place."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
from ray import serve

import raycompose as rc

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import it

Deploy = Callable[..., rc.Client]
TIMEOUT_S = 60


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Both:
    """Makes what it takes."""

    def __init__(self) -> None:
        self.made = 0
        self.failed: set[int] = set()

    async def numbers(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0.001)
            self.made += 1
            yield i

    async def add(self, items: rc.Stream[int]) -> int:
        return sum([item async for item in items])

    async def doubled(self, items: rc.Stream[int]) -> AsyncIterator[int]:
        async for item in items:
            yield item * 2

    async def slow(self, n: int) -> int:
        await asyncio.sleep(0.05)
        if n >= 100 and n not in self.failed:
            self.failed.add(n)
            raise ValueError("the first time")
        return n

    async def taken(self, ref: rc.Ref[int]) -> int:
        return await ref + 1


def pipelines(bound: Any) -> dict[str, rc.Pipeline[Any, Any]]:
    def method(name: str, **options: Any) -> rc.Pipeline[Any, Any]:
        return rc.stage(bound, method=name, **options)

    again = rc.Retry(3, on=(ValueError,), initial_s=0.01, min_per_s=100)
    return {
        "a stream": rc.pipeline(method("numbers"), method("add")),
        "a stream on": rc.pipeline(method("numbers"), method("doubled"), rc.collect, sum),
        "a reference": rc.pipeline(method("slow"), method("taken")),
        "a reference, with a retry": rc.pipeline(method("slow", retry=again), method("taken")),
    }


RESULTS = {
    "a stream": (10, 45),
    "a stream on": (10, 90),
    "a reference": (7, 8),
    "a reference, with a retry": (100, 101),
}


@pytest.fixture(scope="module", params=["local", "fused", "distributed"])
def client(request: pytest.FixtureRequest, deploy: Deploy) -> rc.Client:
    cases = pipelines(Both.bind())
    chosen = {name: rc.pipeline(lambda call: call["n"], graph) for name, graph in cases.items()}
    app = rc.switch("case", chosen)
    if request.param == "local":
        return rc.local(app)
    return deploy(app.fuse() if request.param == "fused" else app)


@pytest.mark.parametrize("case", RESULTS)
def test_a_deployment_may_feed_itself(client: rc.Client, case: str) -> None:
    """Twelve requests at once end, though a deployment has five places by default."""
    n, result = RESULTS[case]
    with ThreadPoolExecutor(12) as pool:
        ask = [{"case": case, "n": n} for _ in range(12)]
        results = pool.map(lambda call: client.call(call, timeout_s=TIMEOUT_S), ask)
        assert list(results) == [result] * 12


@pytest.mark.parametrize("fused", [False, True])
def test_what_must_wait_for_itself_is_refused(fused: bool) -> None:
    """With one place a stage cannot take a stream of its own deployment: it says what can."""
    bound = Both.options(max_ongoing_requests=1).bind()
    numbers, add = rc.stage(bound, method="numbers"), rc.stage(bound, method="add")
    with pytest.raises(
        rc.CompositionError, match=r"'Both'.*max_ongoing_requests=1.*bind the class"
    ):
        rc.pipeline(numbers.fuse(), add.fuse()) if fused else rc.pipeline(numbers, add)


@serve.deployment(max_ongoing_requests=1, ray_actor_options={"num_cpus": 0})
class One:
    async def __call__(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i + 1


def test_a_fused_generator_twice_with_one_place(deploy: Deploy) -> None:
    """Composed again after it was fused, a deployment is still known to be used twice."""
    one = rc.stage(One.bind()).fuse()
    for client in (rc.local(rc.pipeline(one, one)), deploy(rc.pipeline(one, one))):
        assert list(client.stream(3)) == [1, 1, 2, 1, 2, 3]


def test_a_stage_used_twice_runs_few_items_ahead() -> None:
    """A slow consumer slows its producer, although another stage is of the same deployment."""
    state = {"made": 0}

    @serve.deployment
    class Endless:
        async def __call__(self, n: int) -> AsyncIterator[int]:
            while True:
                state["made"] += 1
                yield n

    bound = Endless.bind()
    app = rc.when(lambda n: n > 0, rc.stage(bound), rc.stage(bound))
    items = rc.local(app).stream(1)
    assert [next(items) for _ in range(3)] == [1, 1, 1]
    items.close()
    assert state["made"] < 400
