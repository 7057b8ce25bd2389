"""What the graphs of the cases are made of."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
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

NONE: Any = ()


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
