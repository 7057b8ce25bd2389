"""The cases: what goes into a graph and what must come out, whichever engine runs it.

A case is one entry in ``UNARY`` or ``STREAMING``. Its ``input`` must be JSON. Where a result looks
otherwise over HTTP than by a handle, ``body`` says how.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pydantic
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from support import pickle_by_value

import raycompose as rc

pickle_by_value(__name__)

SAME = object()
NONE: Any = ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One behaviour.

    Args:
        name: What the case shows; unique.
        graph: What ``rc.stage`` takes.
        input: The value that the graph is called with.
        result: What it gives, by a handle.
        items: What it streams, by a handle, before ``error`` if there is one.
        error: What it raises.
        failed_stage: The name of the stage or node that raised it, without a number behind.
        status: The HTTP status.
        body: The body over HTTP, decoded; by default ``result`` or ``items``.
        detail: What a problem's ``detail`` has in it; ``None``: there is no detail.
    """

    name: str
    graph: Any
    input: Any = None
    result: Any = None
    items: list[Any] | None = None
    error: type[Exception] | None = None
    failed_stage: str | None = None
    status: int = 200
    body: Any = SAME
    detail: Any = None


# --- What the graphs are made of ------------------------------------------------------------------


class Overdrawn(Exception):
    """A user's exception, with arguments of its own."""

    def __init__(self, account: str, missing: int) -> None:
        super().__init__(account, missing)
        self.account = account
        self.missing = missing


class Forgetful(Exception):
    """A user's exception that Python cannot make again from its ``args``."""

    def __init__(self, account: str, *, missing: int) -> None:
        super().__init__(f"{account} lacks {missing}")
        self.missing = missing


class NotReady(rc.HTTPError):
    """A user's HTTP error, with arguments of its own."""

    def __init__(self, what: str, *, hint: str) -> None:
        super().__init__(425, f"{what} is not ready")
        self.hint = hint


@dataclass
class Point:
    x: int
    y: int


class Animal(pydantic.BaseModel):
    kind: str
    legs: int = 4


def add_one(x: int) -> int:
    return x + 1


async def double(x: int) -> int:
    return x * 2


async def is_even(x: int) -> bool:
    return x % 2 == 0


async def is_large(x: int) -> bool:
    return x > 100


def power(base: int, exponent: int) -> int:
    return int(base**exponent)


class Scale:
    """A callable object."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return x * self.factor


def fail(x: Any) -> Any:
    raise ValueError(f"cannot take {x!r}")


def overdraw(missing: int) -> int:
    raise Overdrawn("savings", missing)


def forget(missing: int) -> int:
    raise Forgetful("savings", missing=missing)


def not_ready(what: str) -> Any:
    raise NotReady(what, hint="wait")


async def refuse(x: Any) -> Any:
    raise rc.HTTPError(404, f"no {x}")


async def broken(x: Any) -> Any:
    raise rc.HTTPError(503, {"reason": "broken"}, {"X-Broken": "yes"})


async def hang(x: Any) -> Any:
    await asyncio.Event().wait()


def errors_by_name(results: list[Any]) -> list[Any]:
    return [f"{type(r).__name__}: {r}" if isinstance(r, Exception) else r for r in results]


def reciprocal(x: float) -> float:
    return 1 / x


async def awaited(ref: rc.Ref[int]) -> int:
    return await ref + 100


def gotten(ref: rc.Ref[int]) -> int:
    return ref.get(timeout_s=30) + 200


async def asks(request: Request) -> Any:
    json: Any = request.json()  # awaitable, and what awaiting gives
    return {"data": (await json)["data"], "again": json["data"]}


async def nested_json(request: Request) -> Any:
    return {"got": [request.json(), [(await request.json())["data"] == 2]]}


def first_of(x: Any, y: Any = None) -> Any:
    return x


def asks_at_once(request):  # type: ignore[no-untyped-def]  # the parameter's name alone decides
    return request.json()["data"] * 2


async def asks_for_keys(request: Request) -> list[str]:
    return sorted(await request.json())


def classify(legs: int) -> Animal:
    return Animal(kind="bird" if legs == 2 else "cat", legs=legs)


def up_to(n: int) -> Iterator[int]:
    yield from range(n)


async def up_to_async(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


async def ending_badly(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i
    raise ValueError("the end")


async def words(text: str) -> AsyncIterator[str]:
    for word in text.split():
        yield word + " "


def bytewise(text: str) -> Iterator[bytes]:
    for letter in text:
        yield letter.encode()


async def running_total(items: rc.Stream[int]) -> AsyncIterator[int]:
    total = 0
    async for item in items:
        total += item
        yield total


def doubled(items: rc.Stream[int]) -> Iterator[int]:
    for item in items:
        yield item * 2


def pairs(items: Iterator[int]) -> Iterator[list[int]]:
    for item in items:
        yield [item, next(items)]


async def pairs_async(items: AsyncIterator[int]) -> AsyncIterator[list[int]]:
    async for item in items:
        yield [item, await anext(items)]


async def total(items: AsyncIterator[int]) -> int:
    return sum([item async for item in items])


async def refused_stream(x: Any) -> AsyncIterator[Any]:
    if x is None:
        raise rc.HTTPError(403, "not you")
    yield x


here: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "graceful_shutdown_timeout_s": 0}


class Numbers:
    """Synchronous methods, as most models have."""

    def __init__(self, plus: int = 10) -> None:
        self.plus = plus
        self.calls = 0

    def __call__(self, x: int) -> int:
        return x + self.plus

    def negative(self, x: int) -> int:
        return -x

    def fail(self, x: Any) -> Any:
        raise KeyError(x)

    def overdraw(self, missing: int) -> int:
        raise Overdrawn("current", missing)

    def not_ready(self, what: str) -> Any:
        raise NotReady(what, hint="wait")

    def refuse(self, x: Any) -> Any:
        raise rc.HTTPError(409, {"taken": x})

    def every_second_time(self, x: Any) -> Any:
        self.calls += 1
        if self.calls % 2:
            raise OSError("try again")
        return x

    def array(self, n: int) -> Any:
        return np.arange(n)

    def countdown(self, n: int) -> Iterator[int]:
        yield from range(n, 0, -1)


class Async:
    """Asynchronous methods."""

    def __init__(self, numbers: DeploymentHandle[Any] | None = None) -> None:
        self.numbers: Any = numbers

    async def __call__(self, x: int) -> int:
        await asyncio.sleep(0)
        return x * 3

    async def through_a_handle(self, x: int) -> int:
        result: int = await self.numbers.remote(x)
        return result * 1000

    async def hang(self, x: Any) -> Any:
        await asyncio.Event().wait()

    async def animal(self, legs: int) -> Animal:
        return classify(legs)

    async def point(self, x: int) -> Point:
        return Point(x, x + 1)

    async def awaited(self, ref: rc.Ref[int]) -> int:
        return await ref + 300

    async def asks(self, request: Request) -> Any:
        return (await request.json())["data"] + 1

    async def nested_json(self, request: Request) -> Any:
        return [request.json(), await request.json()]

    async def up_to(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def ending_badly(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i
        raise Overdrawn("stream", n)

    async def running_total(self, items: rc.Stream[int]) -> AsyncIterator[int]:
        total = 0
        async for item in items:
            total += item
            yield total

    async def greet(self, name: str, greeting: str = "Hello") -> str:
        return f"{greeting}, {name}"

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=10)  # type: ignore[untyped-decorator]
    async def ratios(self, part: list[float], whole: list[float] = NONE) -> list[float]:
        return [p / w for p, w in zip(part, whole, strict=True)]


def square(x: int) -> int:
    return x * x


async def cube(x: int) -> int:
    return x * x * x


NUMBERS = serve.deployment(Numbers, **here).bind()
TWENTY = serve.deployment(Numbers, **here).bind(plus=20)
ASYNC = serve.deployment(Async, max_ongoing_requests=20, **here).bind(NUMBERS)
SQUARE = serve.deployment(square, **here).bind()
CUBE = serve.deployment(cube, **here)
TASK = ray.remote(num_cpus=0)(square)


def method(app: Any, name: str, /, **options: Any) -> Any:
    return rc.stage(app, method=name, **options)


def by_parity(x: int) -> str:
    return "even" if x % 2 == 0 else "odd"


PARITY: Mapping[str, Any] = {"even": lambda x: x // 2, "odd": lambda x: 3 * x + 1}
GRADE = rc.when(
    lambda x: x >= 90,
    lambda x: "A",
    rc.when(
        lambda x: x >= 80, lambda x: "B", rc.when(lambda x: x >= 70, lambda x: "C", "F".format)
    ),
)

# --- Cases that give one result -------------------------------------------------------------------

UNARY = [
    # Stages
    Case(name="a function", graph=add_one, input=1, result=2),
    Case(name="a coroutine function", graph=double, input=4, result=8),
    Case(name="a lambda", graph=lambda x: x - 1, input=4, result=3),
    Case(name="a partial", graph=partial(power, exponent=3), input=2, result=8),
    Case(name="a callable object", graph=Scale(7), input=2, result=14),
    Case(name="a builtin", graph=len, input=[1, 2, 3], result=3),
    Case(name="a class's __call__", graph=NUMBERS, input=1, result=11),
    Case(name="a class with arguments", graph=TWENTY, input=1, result=21),
    Case(name="a class's async __call__", graph=ASYNC, input=2, result=6),
    Case(name="a method", graph=method(NUMBERS, "negative"), input=2, result=-2),
    Case(name="a function deployment", graph=SQUARE, input=5, result=25),
    Case(name="a deployment that is not bound", graph=CUBE, input=2, result=8),
    Case(name="a deployment that holds another", graph=method(ASYNC, "through_a_handle"), input=1,
         result=11_000),
    Case(name="a default parameter", graph=method(ASYNC, "greet"), input="Ada", result="Hello, Ada",
         body="Hello, Ada"),
    Case(name="a Ray task", graph=TASK, input=6, result=36),
    Case(name="stages of every kind in a row",
         graph=rc.pipeline(add_one, NUMBERS, double, ASYNC, SQUARE, TASK, lambda x: x - 1),
         input=0, result=(11 * 2 * 3) ** 4 - 1),
    Case(name="a deployment used twice", graph=rc.pipeline(NUMBERS, NUMBERS, NUMBERS), input=0,
         result=30),
    Case(name="two methods of a deployment",
         graph=rc.pipeline(NUMBERS, method(NUMBERS, "negative"), NUMBERS), input=5, result=-5),
    Case(name="then", graph=NUMBERS.then(SQUARE).then(add_one), input=0, result=101),
    # Parallel
    Case(name="parallel: a tuple", graph=rc.parallel(add_one, double, lambda x: x), input=5,
         result=(6, 10, 5)),
    Case(name="parallel: a dict, in the order written", graph=rc.parallel(z=add_one, a=double),
         input=5, result={"z": 6, "a": 10}),
    Case(name="parallel: one target", graph=rc.parallel(add_one), input=1, result=(2,)),
    Case(name="parallel: a dict literal",
         graph=rc.pipeline(add_one, {"s": SQUARE, "same": rc.passthrough}), input=2,
         result={"s": 9, "same": 3}),
    Case(name="parallel: deployments", graph=rc.parallel(NUMBERS, ASYNC, SQUARE, NUMBERS, CUBE),
         input=2, result=(12, 6, 4, 12, 8)),
    Case(name="parallel: nested",
         graph=rc.parallel(rc.parallel(add_one, NUMBERS), {"a": rc.parallel(b=double)}), input=1,
         result=((2, 11), {"a": {"b": 2}})),
    Case(name="parallel: a diamond",
         graph=rc.pipeline(NUMBERS, rc.parallel(NUMBERS, method(NUMBERS, "negative")), sum,
                           NUMBERS), input=1, result=20),
    Case(name="parallel: one fails",
         graph=rc.parallel(double, rc.stage(fail, name="second"), hang), input=1,
         error=ValueError, failed_stage="second", status=500),
    Case(name="parallel: a deployment fails", graph=rc.parallel(ok=NUMBERS, bad=method(
         NUMBERS, "fail", name="bad"), never=method(ASYNC, "hang")), input=1,
         error=KeyError, failed_stage="bad", status=500),
    # Switch
    Case(name="switch: a function, the one", graph=rc.switch(by_parity, PARITY), input=10,
         result=5),
    Case(name="switch: a function, the other", graph=rc.switch(by_parity, PARITY), input=3,
         result=10),
    Case(name="switch: a key of a mapping", graph=rc.switch("lang", {
         "es": lambda v: "hola " + v["name"], "fr": lambda v: "bonjour " + v["name"]}),
         input={"lang": "fr", "name": "Zoé"}, result="bonjour Zoé"),
    Case(name="switch: an attribute", graph=rc.pipeline(classify, rc.switch("kind", {
         "bird": lambda a: "flies", "cat": lambda a: "walks"})), input=2, result="flies"),
    Case(name="switch: a key that is not text", graph=rc.switch(lambda x: x, {
         1: lambda x: "one", None: lambda x: "none", (1, 2): lambda x: "pair"}), result="none"),
    Case(name="switch: the default", graph=rc.switch(by_parity, {"odd": fail}, default=NUMBERS),
         input=2, result=12),
    Case(name="switch: the default for a missing key",
         graph=rc.switch("lang", {"es": fail}, default=lambda v: "hello"), input={},
         result="hello"),
    Case(name="switch: the default for an unhashable key",
         graph=rc.switch(lambda v: v, {"es": fail}, default=len), input=["es"], result=1),
    Case(name="switch: deployments",
         graph=rc.switch(by_parity, {"even": NUMBERS, "odd": method(NUMBERS, "negative")}), input=7,
         result=-7),
    Case(name="switch: no match", graph=rc.switch("lang", {"es": fail, "fr": fail}),
         input={"lang": "de"}, error=rc.NoMatchError, failed_stage="switch", status=422,
         detail="has no branch for 'de'; it has 'es', 'fr'"),
    Case(name="switch: no such key", graph=rc.switch("lang", {"es": fail}),
         input={"language": "es"}, error=rc.NoMatchError, failed_stage="switch", status=422,
         detail="without the key 'lang'"),
    Case(name="switch: no such attribute", graph=rc.switch("lang", {"es": fail}), input="es",
         error=rc.NoMatchError, failed_stage="switch", status=422,
         detail="without the attribute 'lang'"),
    Case(name="switch: an unhashable key", graph=rc.switch(lambda v: v, {"es": fail}), input=["es"],
         error=rc.NoMatchError, failed_stage="switch", status=422, detail="['es']"),
    Case(name="switch: the function raises", graph=rc.switch(lambda v: v["lang"], {"es": fail}),
         input={}, error=KeyError, failed_stage="switch", status=500),
    Case(name="switch: the branch fails", graph=rc.switch(by_parity, {
         "odd": rc.stage(fail, name="branch"), "even": add_one}), input=1,
         error=ValueError, failed_stage="branch", status=500),
    # When
    Case(name="when: true", graph=rc.when(lambda x: x > 0, NUMBERS, fail), input=1, result=11),
    Case(name="when: false", graph=rc.when(lambda x: x > 0, fail, NUMBERS), input=-1, result=9),
    Case(name="when: no otherwise", graph=rc.when(lambda x: x > 0, fail), input=-1, result=-1),
    Case(name="when: truthy is true", graph=rc.when(lambda x: x, len, fail), input=[0], result=1),
    Case(name="when: if", graph=GRADE, input=95, result="A"),
    Case(name="when: elif", graph=GRADE, input=85, result="B"),
    Case(name="when: a second elif", graph=GRADE, input=70, result="C"),
    Case(name="when: else", graph=GRADE, input=3, result="F"),
    Case(name="when: the predicate raises", graph=rc.when(lambda x: 1 / x, add_one), input=0,
         error=ZeroDivisionError, failed_stage="when", status=500),
    # Split
    Case(name="split: one share", graph=rc.split((NUMBERS, 100)), input=1, result=11),
    Case(name="split: any share", graph=rc.split((add_one, 33.3), (lambda x: x + 1, 66.7)), input=1,
         result=2),
    Case(name="split: by key", graph=rc.split((lambda x: "a", 50), (lambda x: "b", 50), key=len),
         input="four", result="b"),
    Case(name="split: by another key",
         graph=rc.split((lambda x: "a", 50), (lambda x: "b", 50), key=len),
         input="seven", result="a"),
    Case(name="split: the key raises", graph=rc.split((add_one, 50), (double, 50), key=len),
         input=1, error=TypeError, failed_stage="split", status=500),
    # Shadow
    Case(name="shadow: passes on", graph=rc.pipeline(add_one, rc.shadow(NUMBERS), double), input=1,
         result=4),
    Case(name="shadow: the target fails", graph=rc.pipeline(rc.shadow(fail), NUMBERS), input=1,
         result=11),
    Case(name="shadow: the target hangs", graph=rc.shadow(rc.stage(hang, timeout_s=5)), input=1,
         result=1),
    # Each
    Case(name="each: in order", graph=rc.each(add_one), input=[3, 1, 2], result=[4, 2, 3]),
    Case(name="each: nothing", graph=rc.each(fail), input=[], result=[]),
    Case(name="each: a deployment, one at a time", graph=rc.each(NUMBERS, max_concurrency=1),
         input=[1, 2], result=[11, 12]),
    Case(name="each: many", graph=rc.pipeline(rc.each(ASYNC), sum), input=list(range(40)),
         result=3 * sum(range(40))),
    Case(name="each: of each", graph=rc.each(rc.each(double)), input=[[1, 2], [], [3]],
         result=[[2, 4], [], [6]]),
    Case(name="each: of parallel", graph=rc.each({"plus": NUMBERS, "x": rc.passthrough}),
         input=[1, 2], result=[{"plus": 11, "x": 1}, {"plus": 12, "x": 2}]),
    Case(name="each: one fails", graph=rc.each(rc.stage(reciprocal, name="1/x")), input=[1, 0, 2],
         error=ZeroDivisionError, failed_stage="1/x", status=500),
    Case(name="each: exceptions in their places",
         graph=rc.pipeline(rc.each(reciprocal, return_exceptions=True), errors_by_name),
         input=[1, 0, 2, 0], result=[1.0, "ZeroDivisionError: division by zero", 0.5,
                                     "ZeroDivisionError: division by zero"]),
    Case(name="each: a deployment's exceptions in their places",
         graph=rc.pipeline(rc.each(rc.when(lambda x: x == 2, method(NUMBERS, "fail"), NUMBERS),
                                   return_exceptions=True), errors_by_name),
         input=[1, 2, 3], result=[11, "KeyError: 2", 13]),
    Case(name="each: not a list", graph=rc.each(add_one), input={"a": 1},
         error=TypeError, failed_stage="each", status=500),
    # Fallback
    Case(name="fallback: the first", graph=rc.fallback(NUMBERS, fail), input=1, result=11),
    Case(name="fallback: the second", graph=rc.fallback(method(NUMBERS, "fail"), NUMBERS), input=1,
         result=11),
    Case(name="fallback: the last", graph=rc.fallback(fail, fail, fail, add_one), input=1,
         result=2),
    Case(name="fallback: all fail",
         graph=rc.fallback(rc.stage(fail, name="primary"), method(NUMBERS, "fail")), input=1,
         error=ValueError, failed_stage="primary", status=500),
    Case(name="fallback: exceptions that are meant",
         graph=rc.fallback(fail, NUMBERS, on=ValueError), input=1, result=11),
    Case(name="fallback: other exceptions", graph=rc.fallback(rc.stage(fail, name="other"), NUMBERS,
         on=(KeyError, OSError)), input=1, error=ValueError, failed_stage="other", status=500),
    Case(name="fallback: never on a client's error",
         graph=rc.fallback(rc.stage(refuse, name="refuse"), NUMBERS), input="page",
         error=rc.HTTPError, failed_stage="refuse", status=404, detail="no page"),
    Case(name="fallback: never on a deployment's client error",
         graph=rc.fallback(method(NUMBERS, "refuse", name="refuse"), NUMBERS), input=5,
         error=rc.HTTPError, failed_stage="refuse", status=409, detail={"taken": 5}),
    Case(name="fallback: never on no match", graph=rc.fallback(rc.switch(by_parity, {"odd": fail}),
         NUMBERS), input=2, error=rc.NoMatchError, failed_stage="switch", status=422,
         detail="it has 'odd'"),
    Case(name="fallback: a server's error", graph=rc.fallback(broken, add_one), input=1, result=2),
    Case(name="fallback: a timeout",
         graph=rc.fallback(method(ASYNC, "hang", timeout_s=0.05), add_one), input=1, result=2),
    # Assign, pick
    Case(name="assign", graph=rc.assign(n=rc.pipeline(rc.pick("a"), NUMBERS), size=len),
         input={"a": 1, "n": 0}, result={"a": 1, "n": 11, "size": 2}),
    Case(name="assign: not a mapping", graph=rc.assign(n=NUMBERS), input=1, error=TypeError,
         failed_stage="assign", status=500),
    Case(name="pick: several", graph=rc.pick("b", "a"), input={"a": 1, "b": 2, "c": 3},
         result={"b": 2, "a": 1}),
    Case(name="pick: what is missing", graph=rc.pick("z"), input={"a": 1}, error=LookupError,
         failed_stage="pick", status=500),
    # Deciders that are stages
    Case(name="switch: a deployment decides",
         graph=rc.switch(NUMBERS, {11: double, 12: rc.pipeline(double, double)}), input=2,
         result=8),
    Case(name="when: an async def decides", graph=rc.when(is_even, double, add_one), input=3,
         result=4),
    Case(name="split: a deployment gives the key",
         graph=rc.split((add_one, 50), (add_one, 50), key=NUMBERS), input=3, result=4),
    Case(name="switch: the decider fails", graph=rc.switch(rc.stage(fail, name="asked"),
         {1: add_one}), input=1, error=ValueError, failed_stage="asked", status=500),
    # Optional
    Case(name="optional: the result", graph=rc.optional(NUMBERS), input=1, result=11),
    Case(name="optional: the default", graph=rc.optional(method(NUMBERS, "fail"), default=-1),
         input=1, result=-1),
    Case(name="optional: late", graph=rc.optional(method(ASYNC, "hang"), "late", timeout_s=0.05),
         input=1, result="late"),
    Case(name="optional: never for a client's error",
         graph=rc.optional(rc.stage(refuse, name="refuse")), input="page", error=rc.HTTPError,
         failed_stage="refuse", status=404, detail="no page"),
    # Race
    Case(name="race: the first", graph=rc.race(method(ASYNC, "hang"), NUMBERS), input=1, result=11),
    Case(name="race: the first two", graph=rc.race(fail, double, hang, double, need=2), input=2,
         result=(4, 4), body=[4, 4]),
    Case(name="race: too few succeed", graph=rc.race(rc.stage(fail, name="racer"), double, need=2),
         input=1, error=ValueError, failed_stage="racer", status=500),
    # Loop
    Case(name="loop", graph=rc.loop(NUMBERS, until=lambda n: n > 40), input=1, result=41),
    Case(name="loop: a stage decides", graph=rc.loop(double, until=is_large, max_iterations=20),
         input=1, result=128),
    Case(name="loop: exhausted", graph=rc.loop(add_one, until=lambda n: n < 0, max_iterations=3),
         input=1, error=rc.LoopError, failed_stage="loop", status=500),
    # Hedge
    Case(name="hedge", graph=rc.stage(NUMBERS, hedge=rc.Hedge(after_s=5)), input=1, result=11),
    # Sub-pipelines
    Case(name="passthrough", graph=rc.passthrough, input={"a": [1]}, result={"a": [1]}),
    Case(name="a pipeline in a pipeline",
         graph=rc.pipeline(add_one, rc.pipeline(double, rc.pipeline(NUMBERS, SQUARE))), input=1,
         result=196),
    Case(name="a pipeline with limits",
         graph=rc.pipeline(add_one, rc.stage(rc.pipeline(NUMBERS, SQUARE), timeout_s=30, retry=2)),
         input=1, result=144),
    Case(name="everything nested",
         graph=rc.pipeline(
             rc.each(rc.when(lambda x: x % 2, NUMBERS, rc.split((SQUARE, 60), (square, 40)))),
             rc.parallel(total=sum, each=rc.each(rc.fallback(fail, double)), n=len),
             rc.shadow(fail),
             rc.switch("n", {3: rc.passthrough}, default=fail),
         ), input=[1, 2, 3], result={"total": 28, "each": [22, 8, 26], "n": 3}),
    # References
    Case(name="a reference", graph=rc.pipeline(NUMBERS, awaited), input=1, result=111),
    Case(name="a reference, blocking", graph=rc.pipeline(ASYNC, gotten), input=1, result=203),
    Case(name="a reference in a replica", graph=rc.pipeline(NUMBERS, method(ASYNC, "awaited")),
         input=1, result=311),
    Case(name="a reference to what a function gives",
         graph=rc.pipeline(add_one, method(ASYNC, "awaited")), input=1, result=302),
    Case(name="a reference to what a branch gives",
         graph=rc.pipeline(rc.when(lambda x: x, NUMBERS), method(ASYNC, "awaited")), input=1,
         result=311),
    Case(name="a reference to what failed",
         graph=rc.pipeline(method(NUMBERS, "overdraw", name="producer"), method(ASYNC, "awaited")),
         input=1, error=Overdrawn, failed_stage="producer", status=500),
    # Errors and limits
    Case(name="a function raises", graph=rc.stage(fail, name="f"), input=1,
         error=ValueError, failed_stage="f", status=500),
    Case(name="a deployment raises",
         graph=rc.pipeline(add_one, method(NUMBERS, "fail", name="d"), NUMBERS), input=1,
         error=KeyError, failed_stage="d", status=500),
    Case(name="an exception with arguments", graph=rc.stage(overdraw, name="mine"), input=3,
         error=Overdrawn, failed_stage="mine", status=500),
    Case(name="a deployment's exception with arguments",
         graph=method(NUMBERS, "overdraw", name="mine"), input=3,
         error=Overdrawn, failed_stage="mine", status=500),
    Case(name="an error in a named pipeline",
         graph=rc.stage(rc.pipeline(add_one, rc.stage(fail, name="inner")), name="outer"), input=1,
         error=ValueError, failed_stage="inner", status=500),
    Case(name="an HTTP error with arguments of its own",
         graph=rc.stage(not_ready, name="mine"), input="m", error=NotReady, failed_stage="mine",
         status=425, detail="m is not ready"),
    Case(name="a deployment's HTTP error with arguments of its own",
         graph=method(NUMBERS, "not_ready", name="mine"), input="m", error=NotReady,
         failed_stage="mine", status=425, detail="m is not ready"),
    Case(name="an exception that forgets its arguments", graph=rc.stage(forget, name="mine"),
         input=3, error=Forgetful, failed_stage="mine", status=500),
    Case(name="an HTTP error", graph=rc.pipeline(add_one, rc.stage(broken, name="b")), input=1,
         error=rc.HTTPError, failed_stage="b", status=503, detail={"reason": "broken"}),
    Case(name="a deployment's HTTP error", graph=method(NUMBERS, "refuse", name="r"), input="seat",
         error=rc.HTTPError, failed_stage="r", status=409, detail={"taken": "seat"}),
    Case(name="a timeout", graph=rc.stage(hang, name="slow", timeout_s=0.05), input=1,
         error=rc.StageTimeoutError, failed_stage="slow", status=504, detail="timeout_s=0.05"),
    Case(name="a deployment's timeout", graph=method(ASYNC, "hang", name="slow", timeout_s=0.05),
         input=1, error=rc.StageTimeoutError, failed_stage="slow", status=504, detail="'slow"),
    Case(name="a timeout is a TimeoutError", graph=rc.stage(hang, name="slow", timeout_s=0.05),
         input=1, error=TimeoutError, failed_stage="slow", status=504, detail="timeout_s=0.05"),
    Case(name="a pipeline's timeout", graph=rc.stage(
         rc.pipeline(NUMBERS, rc.parallel(hang, method(ASYNC, "hang"))), name="sub", timeout_s=0.2),
         input=1, error=rc.StageTimeoutError, failed_stage="sub", status=504, detail="'sub"),
    Case(name="a deadline within a later one",
         graph=rc.stage(rc.pipeline(rc.stage(hang, name="in", timeout_s=0.05)), timeout_s=30),
         input=1, error=rc.StageTimeoutError, failed_stage="in", status=504, detail="'in"),
    Case(name="a deadline within an earlier one", graph=rc.stage(
         rc.pipeline(add_one, rc.stage(hang, timeout_s=30)), name="early", timeout_s=0.05),
         input=1, error=rc.StageTimeoutError, failed_stage="early", status=504, detail="'early"),
    Case(name="a retry", graph=method(NUMBERS, "every_second_time", retry=rc.Retry(
         attempts=2, on=(OSError,), initial_s=0.01)), input=1, result=1),
    Case(name="a user's error is not tried again",
         graph=rc.stage(method(NUMBERS, "fail"), name="once", retry=5), input=1,
         error=KeyError, failed_stage="once", status=500),
    # Requests
    Case(name="a stage takes a request", graph=rc.pipeline(add_one, asks), input=1,
         result={"data": 2, "again": 2}),
    Case(name="a parameter named request", graph=rc.pipeline(NUMBERS, asks_at_once), input=1,
         result=22),
    Case(name="a replica takes a request", graph=rc.pipeline(add_one, method(ASYNC, "asks")),
         input=1, result=3),
    Case(name="a request's body is a mapping as it is",
         graph=rc.pipeline(rc.parallel(b=add_one, a=double), asks_for_keys), input=1,
         result=["a", "b"]),
    Case(name="a request's JSON is plain, awaited or not", graph=rc.pipeline(add_one, nested_json),
         input=1, result={"got": [{"data": 2}, [True]]}),
    Case(name="a replica's request's JSON is plain",
         graph=rc.pipeline(add_one, method(ASYNC, "nested_json")), input=1,
         result=[{"data": 2}, {"data": 2}]),
    # A mapping of the arguments
    Case(name="parallel gives a function its arguments",
         graph=rc.pipeline(rc.parallel(base=add_one, exponent=double), power), input=1, result=4),
    Case(name="parallel gives a replica's method its arguments",
         graph=rc.pipeline({"greeting": rc.passthrough, "name": str.upper},
                           method(ASYNC, "greet")), input="hey", result="hey, HEY",
         body="hey, HEY"),
    Case(name="a batch of mappings, each in an order of its own",
         graph=rc.each(method(ASYNC, "ratios")),
         input=[{"part": 1.0, "whole": 2.0}, {"whole": 8.0, "part": 2.0}], result=[0.5, 0.25]),
    Case(name="a mapping whose names do not fit is one value",
         graph=rc.pipeline({"a": add_one, "b": double}, first_of), input=1,
         result={"a": 2, "b": 2}),
    # Results
    Case(name="not a number is null", graph=lambda x: {"x": [float("inf"), x]}, input=1,
         result={"x": [float("inf"), 1]}, body={"x": [None, 1]}),
    Case(name="nothing", graph=lambda x: None, result=None, body=""),
    Case(name="text", graph=str.upper, input="abc", result="ABC"),
    Case(name="bytes", graph=lambda x: x.encode(), input="abc", result=b"abc", body="abc"),
    Case(name="false", graph=lambda x: not x, input=1, result=False),
    Case(name="a dataclass", graph=method(ASYNC, "point"), input=1, result=Point(1, 2),
         body={"x": 1, "y": 2}),
    Case(name="a pydantic model", graph=method(ASYNC, "animal"), input=2,
         result=Animal(kind="bird", legs=2), body={"kind": "bird", "legs": 2}),
    Case(name="a NumPy array", graph=method(NUMBERS, "array"), input=3, result=np.arange(3),
         body=[0, 1, 2]),
    Case(name="a NumPy number", graph=rc.pipeline(method(NUMBERS, "array"), np.mean), input=4,
         result=np.float64(1.5), body=1.5),
    Case(name="models in containers", graph=rc.parallel(a=classify, p=method(ASYNC, "point"),
         n=method(NUMBERS, "array")), input=2,
         result={"a": Animal(kind="bird", legs=2), "p": Point(2, 3), "n": np.arange(2)},
         body={"a": {"kind": "bird", "legs": 2}, "p": {"x": 2, "y": 3}, "n": [0, 1]}),
    # Streams that end in one result
    Case(name="collect", graph=rc.pipeline(up_to, rc.collect), input=3, result=[0, 1, 2]),
    Case(name="collect a replica's items",
         graph=rc.pipeline(method(ASYNC, "up_to"), NUMBERS, rc.collect), input=3,
         result=[10, 11, 12]),
    Case(name="collect nothing", graph=rc.pipeline(up_to, NUMBERS, rc.collect), input=0, result=[]),
    Case(name="a stage that takes items", graph=rc.pipeline(up_to_async, total, double), input=4,
         result=12),
    Case(name="streams in parallel",
         graph=rc.parallel(rc.pipeline(up_to, rc.collect), method(NUMBERS, "countdown").then(
             rc.collect)), input=2, result=([0, 1], [2, 1])),
    Case(name="a stream fails on the way to its list", graph=rc.pipeline(
         method(ASYNC, "ending_badly", name="source"), NUMBERS, rc.collect), input=2,
         error=Overdrawn, failed_stage="source", status=500),
]  # fmt: skip

# --- Cases that stream ----------------------------------------------------------------------------

STREAMING = [
    Case(name="a generator", graph=up_to, input=3, items=[0, 1, 2]),
    Case(name="an async generator", graph=up_to_async, input=3, items=[0, 1, 2]),
    Case(name="a replica's generator", graph=method(NUMBERS, "countdown"), input=3,
         items=[3, 2, 1]),
    Case(name="a replica's async generator", graph=method(ASYNC, "up_to"), input=3,
         items=[0, 1, 2]),
    Case(name="stream=True", graph=rc.stage(lambda n: iter(range(n)), stream=True), input=2,
         items=[0, 1]),
    Case(name="no items", graph=up_to, input=0, items=[], body=[]),
    Case(name="text", graph=words, input="to be", items=["to ", "be "], body="to be "),
    Case(name="bytes", graph=bytewise, input="ab", items=[b"a", b"b"], body="ab"),
    Case(name="pydantic items", graph=rc.pipeline(up_to, classify), input=1,
         items=[Animal(kind="cat", legs=0)], body=[{"kind": "cat", "legs": 0}]),
    Case(name="dataclass items", graph=rc.pipeline(up_to, method(ASYNC, "point")), input=2,
         items=[Point(0, 1), Point(1, 2)], body=[{"x": 0, "y": 1}, {"x": 1, "y": 2}]),
    Case(name="NumPy items", graph=rc.pipeline(up_to, lambda x: np.float32(x)), input=2,
         items=[np.float32(0), np.float32(1)], body=[0.0, 1.0]),
    Case(name="empty items", graph=rc.pipeline(up_to, lambda x: None), input=2, items=[None, None]),
    Case(name="a value before", graph=rc.pipeline(add_one, NUMBERS, up_to), input=-9, items=[0, 1]),
    Case(name="a function maps", graph=rc.pipeline(up_to, add_one, double), input=3,
         items=[2, 4, 6]),
    Case(name="a deployment maps, in order",
         graph=rc.pipeline(method(ASYNC, "up_to"), NUMBERS, SQUARE), input=20,
         items=[(i + 10) ** 2 for i in range(20)]),
    Case(name="a branch maps",
         graph=rc.pipeline(up_to, rc.when(lambda x: x % 2, NUMBERS), rc.parallel(a=add_one)),
         input=3, items=[{"a": 1}, {"a": 12}, {"a": 3}]),
    Case(name="a shadow maps", graph=rc.pipeline(up_to, rc.shadow(fail), add_one), input=3,
         items=[1, 2, 3]),
    Case(name="a stage takes the stream", graph=rc.pipeline(up_to, running_total), input=4,
         items=[0, 1, 3, 6]),
    Case(name="a replica takes the stream",
         graph=rc.pipeline(method(NUMBERS, "countdown"), method(ASYNC, "running_total")), input=3,
         items=[3, 5, 6]),
    Case(name="a replica takes a function's items",
         graph=rc.pipeline(up_to, add_one, method(ASYNC, "running_total")), input=3,
         items=[1, 3, 6]),
    Case(name="a def takes the stream", graph=rc.pipeline(method(ASYNC, "up_to"), doubled), input=3,
         items=[0, 2, 4]),
    Case(name="an iterator has next()", graph=rc.pipeline(method(ASYNC, "up_to"), pairs), input=4,
         items=[[0, 1], [2, 3]]),
    Case(name="an async iterator has anext()", graph=rc.pipeline(up_to, pairs_async), input=4,
         items=[[0, 1], [2, 3]]),
    Case(name="a long chain", graph=rc.pipeline(
         up_to_async, NUMBERS, running_total, double, method(ASYNC, "running_total"), add_one),
         input=3, items=[21, 63, 129]),
    Case(name="a list, then a stream",
         graph=rc.pipeline(up_to, rc.collect, lambda items: len(items), up_to), input=2,
         items=[0, 1]),
    Case(name="in a branch", graph=rc.switch(by_parity, {"even": up_to, "odd": method(
         NUMBERS, "countdown")}), input=3, items=[3, 2, 1]),
    Case(name="fallback before the first item", graph=rc.fallback(rc.pipeline(up_to, fail), up_to),
         input=2, items=[0, 1]),
    Case(name="fallback: no return after the first item",
         graph=rc.fallback(rc.stage(ending_badly, name="source"), up_to), input=1, items=[0],
         error=ValueError, failed_stage="source"),
    Case(name="an error after some items", graph=rc.stage(ending_badly, name="source"), input=2,
         items=[0, 1], error=ValueError, failed_stage="source"),
    Case(name="a replica's error after some items",
         graph=rc.pipeline(method(ASYNC, "ending_badly", name="source"), add_one), input=2,
         items=[1, 2], error=Overdrawn, failed_stage="source"),
    Case(name="an error in what maps",
         graph=rc.pipeline(up_to, add_one, lambda x: 2 - x, rc.stage(reciprocal, name="1/x")),
         input=5, items=[1.0], error=ZeroDivisionError, failed_stage="1/x"),
    Case(name="an error at once", graph=rc.stage(ending_badly, name="source"), input=0, items=[],
         error=ValueError, failed_stage="source", status=500),
    Case(name="an HTTP error at once", graph=rc.stage(refused_stream, name="source"), items=[],
         error=rc.HTTPError, failed_stage="source", status=403, detail="not you"),
    Case(name="an error before the stream", graph=rc.pipeline(rc.stage(fail, name="before"), up_to),
         items=[], error=ValueError, failed_stage="before", status=500),
    Case(name="no match", graph=rc.switch(by_parity, {"odd": up_to}), input=2, items=[],
         error=rc.NoMatchError, failed_stage="switch", status=422, detail="it has 'odd'"),
]  # fmt: skip


async def _input(call: Mapping[str, Any]) -> Any:
    return call["input"]


def app(cases: list[Case]) -> rc.Pipeline[Any, Any]:
    """Return one pipeline that runs whichever case the value names; starting it costs once."""
    return rc.switch("case", {case.name: rc.pipeline(_input, case.graph) for case in cases})
