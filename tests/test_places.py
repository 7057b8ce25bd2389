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
AGAIN = rc.Retry(3, on=(ValueError,), initial_s=0.01, min_per_s=100)


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

    return {
        "a stream": rc.pipeline(method("numbers"), method("add")),
        "a stream on": rc.pipeline(method("numbers"), method("doubled"), rc.collect, sum),
        "a reference": rc.pipeline(method("slow"), method("taken")),
        "a reference, with a retry": rc.pipeline(method("slow", retry=AGAIN), method("taken")),
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


async def handed_on(ref: rc.Ref[int]) -> int:
    return await ref


def crossing(one: Any, other: Any) -> dict[str, rc.Pipeline[Any, Any]]:
    """Two ways through two deployments, by stream and by reference, and one that comes back."""

    def method(bound: Any, name: str, **options: Any) -> rc.Pipeline[Any, Any]:
        return rc.stage(bound, method=name, **options)

    back = rc.pipeline(method(one, "slow", retry=AGAIN), handed_on, method(one, "taken"))
    return {
        "stream": rc.pipeline(method(one, "numbers"), method(other, "add")),
        "stream back": rc.pipeline(method(other, "numbers"), method(one, "add")),
        "ref": rc.pipeline(method(one, "slow", retry=AGAIN), method(other, "taken")),
        "ref back": rc.pipeline(method(other, "slow", retry=AGAIN), method(one, "taken")),
        "comes back": rc.each(back, max_concurrency=12),
        "named": rc.each(
            rc.pipeline(
                rc.stage(rc.pipeline(method(one, "slow"), lambda n: n), name="part"),
                handed_on,
                method(one, "taken"),
            ),
            max_concurrency=12,
        ),
    }


@pytest.fixture(scope="module", params=["local", "fused", "distributed"])
def crossed(request: pytest.FixtureRequest, deploy: Deploy) -> rc.Client:
    cases = crossing(Both.bind(), Both.bind())
    chosen = {name: rc.pipeline(lambda call: call["n"], graph) for name, graph in cases.items()}
    app = rc.switch("case", chosen)
    if request.param == "local":
        return rc.local(app)
    return deploy(app.fuse() if request.param == "fused" else app)


@pytest.mark.parametrize("kind", ["stream", "ref"])
def test_deployments_may_feed_each_other(crossed: rc.Client, kind: str) -> None:
    """Calls that cross, from one deployment to another and back, do not wait for one another."""
    numbers = [10] * 24 if kind == "stream" else range(200, 224)  # each of which fails at first
    ask = [
        {"case": kind if i % 2 else f"{kind} back", "n": number} for i, number in enumerate(numbers)
    ]
    with ThreadPoolExecutor(24) as pool:
        results = list(pool.map(lambda call: crossed.call(call, timeout_s=TIMEOUT_S), ask))
    assert results == ([45] * 24 if kind == "stream" else [number + 1 for number in numbers])


@pytest.mark.parametrize("case", ["comes back", "named"])
def test_a_reference_may_come_back_to_its_deployment(crossed: rc.Client, case: str) -> None:
    """What is between two calls of a deployment, and what is around them, makes no difference."""
    numbers = range(300, 312) if case == "comes back" else range(12)
    call = {"case": case, "n": list(numbers)}
    assert crossed.call(call, timeout_s=TIMEOUT_S) == [number + 1 for number in numbers]


@pytest.mark.parametrize(("places", "branches", "at_once"), [(2, 2, 1), (5, 3, 6), (2, 4, 12)])
def test_streams_into_their_own_deployment_count_together(
    places: int, branches: int, at_once: int
) -> None:
    """However many branches a request has, a place is left for what they wait for."""
    bound = Both.options(max_ongoing_requests=places).bind()
    add = rc.stage(bound, method="add")
    part = rc.pipeline(rc.stage(bound, method="numbers"), add)
    app = rc.each(rc.parallel(*[part] * branches), max_concurrency=at_once)
    results = rc.local(app).call([10] * at_once, timeout_s=TIMEOUT_S)
    assert results == [(45,) * branches] * at_once


def test_a_stream_through_its_own_deployment_three_times_needs_three_places() -> None:
    """Each call that waits for another leaves it a place: with two it is refused."""

    def app(places: int) -> rc.Pipeline[Any, Any]:
        bound = Both.options(max_ongoing_requests=places).bind()
        steps = [rc.stage(bound, method=name) for name in ("numbers", "doubled", "add")]
        return rc.each(rc.pipeline(*steps), max_concurrency=12)

    assert rc.local(app(3)).call([10] * 12, timeout_s=TIMEOUT_S) == [90] * 12
    with pytest.raises(rc.CompositionError, match=r"need 3 places.*max_ongoing_requests=2"):
        app(2)


def test_one_place_each_is_too_few_for_streams_that_cross() -> None:
    """Two calls at once could wait for each other for ever; one way alone is no such case."""
    bound = [Both.options(max_ongoing_requests=1).bind() for _ in range(2)]
    ways = [
        rc.pipeline(rc.stage(one, method="numbers"), rc.stage(other, method="add"))
        for one, other in (bound, bound[::-1])
    ]
    with pytest.raises(rc.CompositionError, match=r"max_ongoing_requests=1.*bind the class"):
        rc.switch(bool, dict(zip((True, False), ways, strict=True)))
    assert rc.local(rc.each(ways[0], max_concurrency=12)).call([10] * 12) == [45] * 12


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
