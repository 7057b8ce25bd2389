"""What a call by handle means to Ray Serve's own tests, it means on every engine."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
from ray import serve
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import (
    DeploymentHandle,
    DeploymentResponse,
    DeploymentResponseGenerator,
)
from starlette.testclient import TestClient
from support import pickle_by_value
from support.cluster import ENGINES, HERE, open_on
from support.stages import call
from support.waiting import apoll, until

import raycompose as rc
from raycompose import _serve

pickle_by_value(__name__)


class Callee:
    """What is called. It remembers who is waiting in it, and how that ended."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    def plus(self, x: int, by: int = 1) -> int:
        return x + by

    async def slowly(self, x: Any, takes_s: float = 0.2) -> Any:
        await asyncio.sleep(takes_s)
        return x

    async def wait(self, label: str, takes_s: float = 30) -> str:
        self.seen.append(f"{label} started")
        try:
            await asyncio.sleep(takes_s)
        except asyncio.CancelledError:
            self.seen.append(f"{label} cancelled")
            raise
        self.seen.append(f"{label} done")
        return label

    def saw(self) -> list[str]:
        return self.seen

    def fail(self, x: Any) -> Any:
        raise KeyError(x)

    def an_error(self, x: Any) -> Exception:
        return ValueError(x)

    def nothing(self) -> None:
        return None

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def acount(self, n: int, then_fail: bool = False) -> AsyncIterator[int]:
        for i in range(n):
            yield i
        if then_fail:
            raise KeyError("the end")

    async def endless(self, label: str) -> AsyncIterator[int]:
        self.seen.append(f"{label} started")
        try:
            for i in range(100_000):
                yield i
                await asyncio.sleep(0.01)
        finally:
            self.seen.append(f"{label} left")

    def generator(self, n: int) -> Any:
        return (i for i in range(n))

    async def model_id(self) -> str:
        return str(serve.get_multiplexed_model_id())


class Caller:
    """Calls it by its handle, as Ray Serve's own tests do; each method is one of their cases."""

    def __init__(self, callee: DeploymentHandle[Any]) -> None:
        self.callee: Any = callee
        self.kind = isinstance(callee, DeploymentHandle)
        self.ended: dict[str, str] = {}
        self.background = self.callee.slowly.remote("out of band", 0.5)

    async def __call__(self, case: list[str]) -> Any:
        name, *labels = case
        return await getattr(self, name)(*labels)

    async def blocking(self) -> Any:
        return await asyncio.to_thread(self.blocking_in_a_thread)

    async def kinds(self) -> Any:
        response = self.callee.plus.remote(1)
        items = self.callee.options(stream=True).count.remote(1)
        return [
            self.kind,
            isinstance(response, DeploymentResponse),
            isinstance(items, DeploymentResponseGenerator),
            await response,
            [i async for i in items],
        ]

    async def awaited_again(self) -> Any:
        response = self.callee.plus.remote(1)
        return [await response for _ in range(3)]

    async def awaited_at_once(self) -> Any:
        response = self.callee.slowly.remote("a")

        async def wait() -> Any:
            return await response

        return await asyncio.gather(wait(), wait())

    async def failed_again(self) -> Any:
        response = self.callee.fail.remote("a")
        return [await raised(response) for _ in range(2)]

    async def arguments(self) -> Any:
        inner = self.callee.remote("1", a="a")
        return await self.callee.remote("0", inner, x="x", y=self.callee.plus.remote(1, by=2))

    async def out_of_order(self) -> Any:
        a = self.callee.plus.remote(1)
        b = self.callee.plus.remote(a)
        c = self.callee.plus.remote(b)
        return [await c, await b, await a]

    async def in_two_calls(self) -> Any:
        first = self.callee.slowly.remote(1)
        return [await r for r in (self.callee.plus.remote(first), self.callee.plus.remote(first))]

    async def not_in_line(self) -> Any:
        """A call whose argument is late does not hold up the next one."""
        late = self.callee.wait.remote("late")
        self.callee.plus.remote(late)
        prompt = await asyncio.wait_for(self.callee.plus.remote(1), 10)
        late.cancel()
        return prompt

    async def failed_argument(self) -> Any:
        response = self.callee.plus.remote(self.callee.fail.remote("a"))
        error = await raised(response)
        return [error, await self.callee.plus.remote(1)]

    async def inside_a_container(self) -> Any:
        response = self.callee.plus.remote(1)
        items = self.callee.options(stream=True).count.remote(1)
        found = [await raised(self.callee.remote(c)) for c in ([response], {"a": response})]
        return [*found, (await raised(self.callee.remote((1, items)))).endswith("Error")]

    async def a_stream_as_argument(self) -> Any:
        items = self.callee.options(stream=True).count.remote(1)
        return await raised(self.callee.remote(items))

    async def no_such_method(self) -> Any:
        with pytest.raises(RayServeException) as caught:
            await self.callee.nope.remote(1)
        return [name in str(caught.value) for name in ("'nope'", "'plus'", "'_")]

    async def no_such_argument(self) -> Any:
        return [
            await raised(self.callee.plus.remote(nope=1)),
            await raised(self.callee.plus.remote()),
        ]

    async def blocking_on_the_loop(self) -> Any:
        response = self.callee.plus.remote(1)
        items = self.callee.options(stream=True).count.remote(1)
        found = []
        for blocks in (response.result, lambda: next(iter(items))):
            with pytest.raises(RuntimeError) as caught:
                blocks()
            found.append("asyncio" in str(caught.value))
        return found

    def blocking_in_a_thread(self) -> Any:
        response = self.callee.slowly.remote("late", 0.5)
        with pytest.raises(TimeoutError):
            response.result(timeout_s=0.05)
        items = self.callee.options(stream=True).count.remote(3)
        return ["timed out", response.result(), response.result(timeout_s=5), list(items)]

    async def an_awaited_stream(self) -> Any:
        items = self.callee.options(stream=True).count.remote(1)
        return [await raised(items), [i async for i in items]]

    async def eager(self) -> Any:
        response = self.callee.wait.remote("eager", 0)
        await saw(self.callee, "eager done")
        return await response

    async def methods(self) -> Any:
        first = self.callee.options(method_name="plus")
        second = first.options(method_name="model_id", multiplexed_model_id="m")
        return [await first.remote(1), await second.remote(), await self.callee.remote(1)]

    async def another_model(self) -> Any:
        before = serve.get_multiplexed_model_id()
        other = await self.callee.options(multiplexed_model_id="bar").model_id.remote()
        return [before, other, serve.get_multiplexed_model_id()]

    async def streams(self) -> Any:
        handle = self.callee.options(stream=True)
        one, two = handle.count.remote(1), handle.acount.remote(2)
        first = [await anext(one), await anext(two)]
        ends = [await anext(one, "end"), await anext(two), await anext(two, "end")]
        return [first, ends, await anext(one, "end"), [i async for i in handle.acount.remote(0)]]

    async def a_stream_that_fails(self) -> Any:
        items = self.callee.options(stream=True).acount.remote(2, then_fail=True)
        got = [await anext(items), await anext(items)]
        return [got, await raised(anext(items))]

    async def not_a_stream(self) -> Any:
        items = self.callee.options(stream=True).plus.remote(1)
        return await raised(anext(items))

    async def a_returned_generator(self) -> Any:
        items = self.callee.options(stream=True).generator.remote(2)
        return [i async for i in items]

    async def a_stream_unasked(self) -> Any:
        return [
            await raised(self.callee.count.remote(1)),
            await raised(self.callee.acount.remote(1)),
            await raised(self.callee.generator.remote(1)),
        ]

    async def an_error_as_result(self) -> Any:
        return repr(await self.callee.an_error.remote(1))

    async def nothing(self) -> Any:
        return await self.callee.nothing.remote()

    async def cancelled(self) -> Any:
        response = self.callee.wait.remote("cancelled")
        other = self.callee.slowly.remote("unharmed", 0.5)
        await saw(self.callee, "cancelled started")
        response.cancel()
        await saw(self.callee, "cancelled cancelled")
        return [await raised(response), response.cancelled(), other.cancelled(), await other]

    async def cancelled_stream(self) -> Any:
        items = self.callee.options(stream=True).endless.remote("stream")
        first = await anext(items)
        items.cancel()
        await saw(self.callee, "stream left")

        async def rest() -> None:
            async for _ in items:
                pass

        return [first, await raised(rest())]

    async def cancelled_after_its_end(self) -> Any:
        response = self.callee.plus.remote(1)
        await response
        response.cancel()
        return await self.callee.plus.remote(1)

    async def a_wait_that_ends(self) -> Any:
        """The wait for a response is not the call: that goes on, and can be awaited again."""
        response = self.callee.slowly.remote("late", 0.5)
        return [await raised(asyncio.wait_for(response, 0.05)), await raised(response)]

    async def out_of_band(self) -> Any:
        return await self.background

    async def concurrently(self) -> Any:
        return await asyncio.gather(*(self.callee.plus.remote(i) for i in range(20)))

    async def answered(self, label: str) -> str:
        self.callee.wait.remote(label, 0.3)
        return "answered"

    async def forgotten(self, label: str) -> Any:
        self.callee.wait.remote(label)
        await asyncio.sleep(60)

    async def awaiting(self, label: str) -> Any:
        with self.noted(label):
            await self.callee.wait.remote(label)

    async def iterating(self, label: str) -> Any:
        with self.noted(label):
            async for _ in self.callee.options(stream=True).endless.remote(label):
                pass

    @contextmanager
    def noted(self, label: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.ended[label] = type(error).__name__
            raise

    async def until(self, what: str) -> dict[str, str]:
        await saw(self.callee, what)
        return self.ended


async def raised(awaitable: Any) -> str:
    """The name of the error that awaiting raises, or what it gives."""
    try:
        return repr(await awaitable)
    except (Exception, asyncio.CancelledError) as error:
        return type(_serve.unwrap(error)).__name__


async def saw(callee: Any, what: str) -> None:
    """Wait until the callee has seen something."""
    for _ in range(1000):
        if what in await callee.saw.remote():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{what}: it did not happen")


CASES: dict[str, Any] = {
    "kinds": [True, True, True, 2, [0]],
    "awaited_again": [2, 2, 2],
    "awaited_at_once": ["a", "a"],
    "failed_again": ["KeyError", "KeyError"],
    "arguments": [["0", [["1"], {"a": "a"}]], {"x": "x", "y": 3}],
    "out_of_order": [4, 3, 2],
    "in_two_calls": [2, 2],
    "not_in_line": 2,
    "failed_argument": ["KeyError", 2],
    "inside_a_container": ["RayServeException", "RayServeException", True],
    "a_stream_as_argument": "RuntimeError",
    "no_such_method": [True, True, False],
    "no_such_argument": ["TypeError", "TypeError"],
    "blocking_on_the_loop": [True, True],
    "blocking": ["timed out", "late", "late", [0, 1, 2]],
    "an_awaited_stream": ["TypeError", [0]],
    "eager": "eager",
    "methods": [2, "m", [[1], {}]],
    "another_model": ["", "bar", ""],
    "streams": [[0, 0], ["end", 1, "end"], "end", []],
    "a_stream_that_fails": [[0, 1], "KeyError"],
    "not_a_stream": "TypeError",
    "a_returned_generator": [0, 1],
    "a_stream_unasked": ["TypeError", "TypeError", "TypeError"],
    "an_error_as_result": "ValueError(1)",
    "nothing": None,
    "cancelled": ["RequestCancelledError", True, False, "unharmed"],
    "cancelled_stream": [0, "RequestCancelledError"],
    "cancelled_after_its_end": 2,
    "a_wait_that_ends": ["TimeoutError", "'late'"],
    "out_of_band": "out of band",
    "concurrently": list(range(1, 21)),
}
"""What each of the caller's methods finds; Ray Serve's replicas find the same."""


@pytest.fixture(scope="module", params=ENGINES)
def client(request: pytest.FixtureRequest) -> rc.Client:
    """The caller and what it calls: two replicas and their front, or one when they are fused."""
    options = {"max_ongoing_requests": 100, **HERE}
    callee = serve.deployment(Callee, **options).bind()
    caller = serve.deployment(Caller, **options).bind(callee)
    # The callee is a stage, too, so that it is fused with its caller.
    app = rc.when(lambda case: case == ["saw"], callee, caller)
    opened: rc.Client = open_on(request.param, app, lambda: request.getfixturevalue("deploy"))
    return opened


@pytest.mark.parametrize("case", CASES)
def test_a_call_by_handle(client: rc.Client, case: str) -> None:
    """A deployment that calls another by its handle finds what it finds in Ray Serve's replicas."""
    assert client.call([case], timeout_s=25) == CASES[case]


@pytest.mark.parametrize(
    ("case", "end", "error"),
    [
        ("forgotten", "cancelled", None),
        ("awaiting", "cancelled", "CancelledError"),
        ("iterating", "left", "CancelledError"),
    ],
)
def test_what_a_cancelled_request_calls_is_cancelled(
    client: rc.Client, case: str, end: str, error: str | None
) -> None:
    """What a request calls ends with it, awaited or not; who awaits it is cancelled, no more."""

    async def leave() -> Any:
        call = asyncio.ensure_future(client.acall([case, case]))
        await client.acall(["until", f"{case} started"])
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return await client.acall(["until", f"{case} {end}"])

    assert asyncio.run(leave()).get(case) == error


def test_what_a_request_has_called_outlives_its_answer(client: rc.Client) -> None:
    """A call that nobody awaits goes on when the request that made it is answered."""
    assert client.call(["answered", "on its own"]) == "answered"
    client.call(["until", "on its own done"], timeout_s=25)


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


def local(definition: Any, method: str = "__call__", **options: Any) -> Any:
    """A local client of one deployment's method."""
    deployment = serve.deployment(definition, max_ongoing_requests=50).options(**options)
    return rc.local(rc.stage(deployment.bind(), method=method))


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


# --- Models ---------------------------------------------------------------------------------------


class Models:
    """Keeps two models, and remembers what it loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    @serve.multiplexed(max_num_models_per_replica=2)  # type: ignore[untyped-decorator]
    async def model(self, model_id: str) -> str:
        self.loaded.append(model_id)
        await asyncio.sleep(0.01)
        if self.loaded == ["broken"]:
            raise OSError("not yet")
        return model_id.upper()

    async def one_by_one(self, ids: list[Any]) -> Any:
        return [await self.model(i) for i in ids], self.loaded

    async def at_once(self, ids: list[str]) -> Any:
        return await asyncio.gather(*map(self.model, ids)), self.loaded

    def current(self, x: Any) -> str:
        return str(serve.get_multiplexed_model_id())


def test_the_model_not_used_for_longest_goes() -> None:
    """A third model takes the place of the one that was used least recently."""
    models, loaded = local(Models, "one_by_one").call(["a", "b", "a", "c", "a", "b"])
    assert models == ["A", "B", "A", "C", "A", "B"]
    assert loaded == ["a", "b", "c", "b"]


def test_a_model_is_loaded_once_for_all_who_want_it() -> None:
    """Calls at once for one model wait for one loading."""
    assert local(Models, "at_once").call(["a", "a", "b", "a"]) == (["A", "A", "B", "A"], ["a", "b"])


def test_a_model_that_did_not_load_is_loaded_again() -> None:
    """A failed loading raises the loader's error, and is not kept."""
    client = local(Models, "one_by_one")
    with pytest.raises(OSError, match="not yet"):
        client.call(["broken"])
    assert client.call(["broken"]) == (["BROKEN"], ["broken", "broken"])
    with pytest.raises(TypeError, match="string"):
        client.call([7])


def test_the_model_id_is_there_in_every_kind_of_stage() -> None:
    """A ``def`` method, in its thread, and a function have the request's id; else it is empty."""

    async def current(x: Any) -> str:
        return str(serve.get_multiplexed_model_id())

    model = rc.stage(serve.deployment(Models).bind(), method="current")
    http = TestClient(rc.local(rc.parallel(model, current)).asgi)
    asked = http.post("/", json=1, headers={"serve_multiplexed_model_id": "m"})
    assert (asked.json(), http.post("/", json=1).json()) == (["m", "m"], ["", ""])


@serve.multiplexed  # type: ignore[untyped-decorator]
async def model_of_nobody(model_id: str) -> str:
    return model_id


def test_models_of_a_function_that_a_stage_calls_need_a_replica() -> None:
    """Ray would keep them, for the process, and tell a controller: it says that there is none."""

    async def asks(model_id: str) -> str:
        return str(await model_of_nobody(model_id))

    with pytest.raises(RuntimeError, match="within a deployment") as caught:
        call(rc.stage(asks, name="asks"), "m")
    assert rc.failed_stage(caught.value) == "asks"


# --- Back-pressure --------------------------------------------------------------------------------


class Slow:
    """Each call waits until the test lets it go."""

    open: ClassVar[bool] = False

    def __init__(self) -> None:
        Slow.open = False
        self.calls = 0

    async def __call__(self, x: Any) -> int:
        self.calls += 1
        await apoll(lambda: Slow.open)
        return self.calls


class FloodsSlow:
    def __init__(self, slow: Any) -> None:
        self.slow = slow

    async def __call__(self, many: int) -> Any:
        calls = [asyncio.ensure_future(raised(self.slow.remote(x))) for x in range(many)]
        await asyncio.wait(calls[2:])
        Slow.open = True
        return await asyncio.gather(*calls)


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({}, (503, "1")),
        ({"backpressure_config": {"status_code": 429, "retry_after_s": 7}}, (429, "7")),
    ],
)
def test_who_is_too_many_is_told_when_to_come_back(config: Any, refused: Any) -> None:
    """One runs, one waits, the others are refused with the deployment's own answer."""
    client = local(Slow, max_ongoing_requests=1, max_queued_requests=1, **config)
    http = TestClient(client.asgi)
    with ThreadPoolExecutor(5) as threads:
        sent = [threads.submit(http.post, "/", json=x) for x in range(5)]
        until(lambda: sum(answer.done() for answer in sent) == 3)
        Slow.open = True
    answers = [answer.result() for answer in sent]
    told = sorted((answer.status_code, answer.headers.get("retry-after", "")) for answer in answers)
    assert told == sorted([(200, ""), (200, ""), refused, refused, refused])


def test_back_pressure_reaches_a_caller_by_handle() -> None:
    """A deployment that calls one which is full gets its refusal, and may handle it."""
    full = {"max_ongoing_requests": 1, "max_queued_requests": 1}
    slow = serve.deployment(Slow, **full).bind()
    assert call(serve.deployment(FloodsSlow).bind(slow), 4) == [
        "1",
        "2",
        *["BackPressureError"] * 2,
    ]


def test_who_leaves_the_line_makes_room_and_is_never_served() -> None:
    """A call that is cancelled in line frees its place there, and does not run."""
    client = local(Slow, max_ongoing_requests=1, max_queued_requests=1)

    async def leave() -> Any:
        served, left = [asyncio.ensure_future(client.acall(x)) for x in (1, 2)]
        refused = await asyncio.gather(client.acall(3), return_exceptions=True)
        left.cancel()
        await asyncio.wait({left})
        stays = asyncio.ensure_future(client.acall(4))
        await asyncio.gather(client.acall(5), return_exceptions=True)
        Slow.open = True
        return [*map(type, refused), *await asyncio.gather(served, stays)]

    assert asyncio.run(leave()) == [BackPressureError, 1, 2]


# --- Configuration and life -----------------------------------------------------------------------


class Configured:
    """Remembers each configuration, and where it runs."""

    def __init__(self) -> None:
        here = serve.get_replica_context()
        self.seen: list[Any] = [here.deployment, here.rank.rank, here.world_size]
        self.loop = asyncio.get_event_loop()
        self.task = self.loop.create_task(self.note("in the background"))

    async def note(self, what: str) -> None:
        self.seen.append(what)

    async def reconfigure(self, config: Any) -> None:
        if config == "refused":
            raise ValueError(config)
        self.seen.append(config)

    async def __call__(self, x: Any) -> list[Any]:
        await self.task
        return [*self.seen, asyncio.get_running_loop() is self.loop]

    def in_a_thread(self, x: Any) -> str:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return threading.current_thread().name


@pytest.mark.parametrize("config", [{}, {"a": {"b": [1]}}, "text", 0], ids=str)
def test_a_config_is_given_before_the_first_call(config: Any) -> None:
    """Whatever is no ``None`` is given, awaited, once; a constructor has its context and loop."""
    seen = local(Configured, user_config=config, name="Named").call(1)
    assert seen[:3] == ["Named", 0, 1]
    assert sorted(map(str, seen[3:-1])) == sorted(map(str, [config, "in the background"]))
    assert seen[-1] is True


def test_a_def_method_has_a_thread_without_a_loop() -> None:
    """A ``def`` method may block: it runs beside the loop that the constructor saw."""
    assert local(Configured, "in_a_thread").call(1) != threading.current_thread().name


class Mortal:
    ended: ClassVar[list[str]] = []

    def __call__(self, x: Any) -> Any:
        return x

    def __del__(self) -> None:
        self.ended.append("torn down")


class Stillborn:
    def __init__(self) -> None:
        raise ValueError("not born")

    def __call__(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    ("definition", "options", "message"),
    [
        (Stillborn, {}, "not born"),
        (Configured, {"user_config": "refused"}, "refused"),
        (Stillborn.__call__, {"user_config": 1}, "must be a class"),
    ],
)
def test_what_does_not_start_says_why(definition: Any, options: Any, message: str) -> None:
    """A constructor's or ``reconfigure``'s own error is raised where the client is made."""
    with pytest.raises(ValueError, match=message):
        local(definition, **options)


def test_what_has_started_is_torn_down_when_another_does_not() -> None:
    """A deployment beside one that cannot be constructed does not outlive the attempt."""
    Mortal.ended.clear()
    with pytest.raises(ValueError, match="not born"):
        rc.local(rc.pipeline(serve.deployment(Mortal).bind(), serve.deployment(Stillborn).bind()))
    assert Mortal.ended == ["torn down"]


def test_a_function_without_parameters() -> None:
    """It is called with nothing, over HTTP whatever is sent; an argument by handle is an error."""

    def hello() -> str:
        return "hello"

    client = rc.local(serve.deployment(hello).bind())
    http = TestClient(client.asgi)
    assert [client.call(), http.get("/").text, http.post("/", json=1).text] == ["hello"] * 3
    with pytest.raises(TypeError, match="positional argument"):
        client.call(1)


class Child:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> str:
        return self.name


class Parent:
    """Its constructor is given handles inside of objects, and calls one of them."""

    async def __init__(self, by_name: dict[str, Any], *, more: list[Any]) -> None:  # type: ignore[misc]
        self.by_name, self.more = by_name, more
        self.first = await more[0].remote()

    async def __call__(self, name: str) -> list[str]:
        return [self.first, await self.by_name[name].remote(), await self.more[0].remote()]


def test_handles_inside_of_arguments() -> None:
    """Applications in dicts and lists are handles; one that occurs twice is one; they are ready."""
    one, other = (serve.deployment(Child, name=n).bind(n) for n in ("one", "other"))
    parent = serve.deployment(Parent).bind({"one": one, "other": other}, more=[one])
    assert call(parent, "other") == ["one", "other", "one"]
