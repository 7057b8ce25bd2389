"""Calls by handle mean in a pipeline what they mean in Ray Serve, on every engine."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import (
    DeploymentHandle,
    DeploymentResponse,
    DeploymentResponseGenerator,
)
from support import pickle_by_value
from support.cluster import ENGINES, HERE, open_on

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
        response = self.callee.slowly.remote("late", 2)
        # Ray drops a call whose wait ends before the call was given to a replica.
        return [await raised(asyncio.wait_for(response, 1)), await raised(response)]

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
