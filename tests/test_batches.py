"""`@serve.batch` in a pipeline's process means what it means in a replica."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ray import serve
from starlette.testclient import TestClient
from support.composing import local

import raycompose as rc

# --- Batches --------------------------------------------------------------------------------------


class Batches:
    """What ``@serve.batch`` promises, a method for each case."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.running = 0

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=10)  # type: ignore[untyped-decorator]
    async def pairs(self, a: list[Any], b: list[Any]) -> list[Any]:
        return [(*both, len(a)) for both in zip(a, b, strict=True)]

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=1000)  # type: ignore[untyped-decorator]
    async def alone(self, xs: list[Any]) -> list[Any]:
        return [1 / x for x in xs]

    @serve.batch(max_batch_size=3, batch_wait_timeout_s=10)  # type: ignore[untyped-decorator]
    async def three(self, xs: list[Any]) -> list[Any]:
        return [(1 / x, len(xs)) for x in xs]

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def no_list(self, xs: list[Any]) -> Any:
        return len(xs)

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def too_few(self, xs: list[Any]) -> list[Any]:
        return xs[1:]

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=10, batch_wait_timeout_s=0.01, batch_size_fn=sum
    )
    async def sized(self, xs: list[int]) -> list[Any]:
        return [sum(xs) <= 10 for _ in xs]

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=1, batch_wait_timeout_s=0, max_concurrent_batches=2
    )
    async def two_at_once(self, xs: list[Any]) -> list[Any]:
        self.running += 1
        await asyncio.sleep(0.02)
        running, self.running = self.running, self.running - 1
        return [running <= 2 for _ in xs]

    @serve.batch(max_batch_size=3, batch_wait_timeout_s=10)  # type: ignore[untyped-decorator]
    async def by_model(self, xs: list[int]) -> list[Any]:
        return [(serve.get_multiplexed_model_id(), sorted(xs)) for _ in xs]

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.2)  # type: ignore[untyped-decorator]
    async def noted(self, xs: list[Any]) -> list[Any]:
        self.batches.append(list(xs))
        return [list(self.batches)] * len(xs)

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=10)  # type: ignore[untyped-decorator]
    async def numbered(self, xs: list[Any]) -> AsyncIterator[list[Any]]:
        for i in range(3):
            yield [f"{x}{i}" for x in xs]

    @serve.batch(max_batch_size=3, batch_wait_timeout_s=10)  # type: ignore[untyped-decorator]
    async def until_its_number(self, xs: list[int]) -> AsyncIterator[list[Any]]:
        for i in range(max(xs)):
            yield [x if i < x else StopIteration for x in xs]

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def empty(self, xs: list[Any]) -> AsyncIterator[list[Any]]:
        for _ in range(0):
            yield xs

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def broken(self, xs: list[Any]) -> AsyncIterator[list[Any]]:
        yield xs
        raise KeyError("the end")

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def doubled(self, xs: list[Any]) -> AsyncIterator[list[Any]]:
        yield xs
        yield xs * 2


def outcomes(client: rc.Client, values: list[Any]) -> list[Any]:
    found = client.map(values, return_exceptions=True)
    return [type(f).__name__ if isinstance(f, Exception) else f for f in found]


BATCHES: dict[str, tuple[str, list[Any], list[Any]]] = {
    "one that waits for nobody": ("alone", [1, 0, 2], [1.0, "ZeroDivisionError", 0.5]),
    "full before its time": ("three", [1, 2, 4, 1, 2, 4], [(1.0, 3), (0.5, 3), (0.25, 3)] * 2),
    "one error is everybody's": ("three", [1, 0, 2], ["ZeroDivisionError"] * 3),
    "no list": ("no_list", [1, 2], ["TypeError"] * 2),
    "too few results": ("too_few", [1, 2], ["RayServeException"] * 2),
    "a size of its own": ("sized", [6, 6, 3, 12], [True, True, True, "RuntimeError"]),
    "two at once": ("two_at_once", [1] * 6, [True] * 6),
}


@pytest.mark.parametrize("case", BATCHES)
def test_a_batch(case: str) -> None:
    """Batches fill, end and fail on the local engine as in a replica."""
    method, values, expected = BATCHES[case]
    assert outcomes(local(Batches, method), values) == expected


def test_arguments_of_a_batch_by_position_and_by_name() -> None:
    """Each call's arguments stay together, however each call is written, in one batch."""
    client = local(Batches, "pairs")

    async def call_both(*calls: Any) -> Any:
        return await asyncio.gather(*calls)

    first = asyncio.run(call_both(client.acall("a", "b"), client.acall("c", b="d")))
    second = asyncio.run(call_both(client.acall(b="b", a="a"), client.acall({"a": "c", "b": "d"})))
    assert first == second == [("a", "b", 2), ("c", "d", 2)]


STREAMED: dict[str, tuple[str, list[Any], list[Any]]] = {
    "to each its own": ("numbered", ["a", "b"], [["a0", "a1", "a2"], ["b0", "b1", "b2"]]),
    "one ends before the other": ("until_its_number", [1, 2, 3], [[1], [2, 2], [3, 3, 3]]),
    "nothing": ("empty", ["a"], [[]]),
    "an error after an item": ("broken", ["a"], [["a", "KeyError"]]),
    "too many in one step": ("doubled", ["a"], [["a", "RayServeException"]]),
}


@pytest.mark.parametrize("case", STREAMED)
def test_a_batch_that_streams(case: str) -> None:
    """A batched generator streams to each of its callers."""
    method, values, expected = STREAMED[case]
    client = local(Batches, method)

    async def items(value: Any) -> list[Any]:
        found: list[Any] = []
        try:
            async for item in client.astream(value):
                found.append(item)  # those before an error count
        except Exception as error:
            found.append(type(error).__name__)
        return found

    async def all_items() -> Any:
        return await asyncio.gather(*map(items, values))

    assert asyncio.run(all_items()) == expected


def test_who_has_left_is_left_out_of_the_batch() -> None:
    """A call that was cancelled while its batch filled is not in it."""
    client = local(Batches, "noted")

    async def leave() -> Any:
        left = asyncio.ensure_future(client.acall("left"))
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.wait({left})
        return await client.acall("stays")

    assert asyncio.run(leave()) == [["stays"]]


def post_at_once(client: Any, requests: list[Any]) -> list[Any]:
    """Send requests, each its value and headers, at once."""
    http = TestClient(client.asgi)
    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(lambda r: http.post("/", json=r[0], headers=r[1]), requests))


def test_models_do_not_share_a_batch() -> None:
    """Requests for two models that meet in a batch are two batches, each with its model's id."""
    requests = [(x, {"serve_multiplexed_model_id": m}) for x, m in ((1, "a"), (2, "b"), (3, "a"))]
    answers = post_at_once(local(Batches, "by_model"), requests)
    assert [answer.json() for answer in answers] == [["a", [1, 3]], ["b", [2]], ["a", [1, 3]]]
