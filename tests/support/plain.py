"""Deployments of plain Ray Serve, for the tests of what Ray itself does."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

from ray import _raylet, serve  # pinned here
from ray.serve import context

import raycompose as rc
from raycompose import _serve
from support.cluster import FREE


class _Echo:
    """What most tests call; it remembers what was started and cancelled."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.produced = 0

    async def __call__(self, value: Any = None) -> Any:
        return value

    async def kinds(self, value: Any) -> list[str]:
        items = value if isinstance(value, list) else [value]
        return [type(item).__name__ for item in items]

    async def sleep(self, label: str) -> None:
        self.started.append(label)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.append(label)
            raise

    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            self.produced += 1
            yield i

    async def slowly(self, label: str) -> AsyncIterator[int]:
        try:
            for i in range(1000):
                yield i
                await asyncio.sleep(0.01)
        finally:
            self.cancelled.append(label)

    async def seen(self) -> dict[str, Any]:
        noted = {"started": self.started, "cancelled": self.cancelled}
        return {**noted, "produced": self.produced}

    async def text(self, size: int) -> str:
        return "x" * size

    async def hold(self) -> None:
        error = ValueError("held")
        error.__dict__["lock"] = threading.Lock()
        raise error

    async def fail(self, kind: str) -> None:
        if kind == "kept":
            error: Exception = rc.NoMatchError("switch", "a", ("b",))
            error.__dict__["mark"] = "kept"
            raise error
        raise Unpicklable(code=7)

    async def model_id(self) -> str:
        return str(serve.get_multiplexed_model_id())

    async def request_id(self) -> str:
        return _serve.request_context().request_id

    async def context(self) -> dict[str, str]:
        return _serve.request_context()._asdict()


class Unpicklable(Exception):
    """Does not pass its arguments to ``super().__init__``, so it does not unpickle."""

    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code


class Batched:
    """Multiplies batches, and remembers their sizes."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.sizes: list[int] = []

    @serve.batch(  # type: ignore[untyped-decorator]  # Ray's
        max_batch_size=3, batch_wait_timeout_s=0.05, max_concurrent_batches=2
    )
    async def many(self, xs: list[int]) -> list[int]:
        self.sizes.append(len(xs))
        return [x * self.factor for x in xs]

    async def plain(self, x: int) -> int:
        return x


class Box:
    """An object that holds an application, or in a replica its handle."""

    def __init__(self, app: Any) -> None:
        self.app = app


class _Shape:
    """One class that answers unary, streaming and HTTP calls; it may hold an Echo in a box."""

    def __init__(self, box: Box) -> None:
        self.box = box

    async def __call__(self, n: Any) -> Any:
        if isinstance(n, int):
            return self._items(n)
        return type(n).__name__

    async def _items(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def held(self) -> str:
        return type(self.box.app).__name__

    async def pull(self, box: Box, n: int) -> int:
        """Iterate a stream of another replica, through a handle that came as an argument."""
        response = box.app.options(stream=True, method_name="count").remote(n)
        return sum([item async for item in response])

    async def batches(self) -> tuple[list[int], list[int], list[int], list[int]]:
        deployment: Any = serve.deployment(Batched)
        a, b = (
            _serve.hosted_definition(Batched, deployment, lambda function: function)(n)
            for n in (10, 100)
        )
        results = await asyncio.gather(*(f(x) for x in (1, 2, 3) for f in (a.many, b.many)))
        return results[::2], results[1::2], a.sizes, b.sizes

    async def cancelled_in_a_group(self) -> tuple[int, int, str]:
        """Return how many calls Ray tracks of a group, how many of others, and their end."""
        group = _serve.CallGroup()
        with group:
            response = self.box.app.sleep.remote("group")
        await response._to_object_ref()  # assigned
        tracked = context._get_in_flight_requests(group.id)
        others = context._get_in_flight_requests("another")
        counts = len(tracked), len(others)
        group.cancel()
        try:
            await response
        except asyncio.CancelledError as error:
            return *counts, type(error).__name__
        return *counts, "a result"

    async def detached(self) -> list[Any]:
        """Return the ids by which Ray finds what this request calls: here, and detached."""

        async def ids() -> tuple[str, Any]:
            request = context._serve_request_context.get()
            return request._internal_request_id, _raylet.async_task_id.get()  # type: ignore[attr-defined]

        return [await ids(), await _serve.detached(ids()), await asyncio.ensure_future(ids())]

    async def downstream_model_id(self) -> tuple[str, str]:
        mine = serve.get_multiplexed_model_id()
        return mine, await self.box.app.model_id.remote()

    async def downstream_request_id(self) -> tuple[str, str]:
        return _serve.request_context().request_id, await self.box.app.request_id.remote()


Echo: Any = serve.deployment(name="Echo", **FREE)(_Echo)
Shape: Any = serve.deployment(name="Shape", **FREE)(_Shape)
