"""Run by test_references.py, in a process where Ray is not started."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve
from ray.exceptions import TaskCancelledError

import raycompose as rc


class Refused(Exception):
    """What the calls here fail with."""


@serve.deployment
class Echo:
    async def __call__(self, value: Any) -> Any:
        return value

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def gated(self, value: Any) -> Any:
        await self.opened.wait()
        return value

    async def open(self) -> None:
        self.opened.set()

    async def hang(self) -> None:
        await asyncio.Event().wait()

    async def fail(self, value: Any) -> Any:
        raise Refused(value)

    async def first(self, refs: list[Any]) -> Any:
        return ["first", await refs[0]]

    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i


async def awaited(echo: Any) -> dict[str, Any]:
    """Convert responses on an event loop."""
    found: dict[str, Any] = {}
    (ref,) = await rc.by_ref([echo.remote("x")])
    found["by_ref"] = [type(ref).__name__, await ref]
    refs = await rc.by_ref([echo.gated.remote("x")])
    await echo.open.remote()
    (found["before it is there"],) = await rc.resolve(refs)
    found["passed on"] = await echo.first.remote(await rc.by_ref([echo.remote("x")]))
    response = echo.remote("x")
    found["twice"] = await rc.by_ref(response) is (await rc.by_ref([response]))[0]
    ref = await rc.to_object_ref(echo.remote("x"))
    found["to_object_ref"] = [type(ref).__name__, await ref]
    items = await rc.to_object_ref_gen(echo.options(stream=True).count.remote(3))
    found["to_object_ref_gen"] = [await item async for item in items]
    try:
        await rc.resolve(await rc.by_ref([echo.fail.remote("why")]))
    except Refused as error:
        found["failed"] = [type(error).__name__, *error.args]
    response = echo.hang.remote()
    refs = await rc.by_ref([response])
    response.cancel()
    try:
        await asyncio.wait_for(rc.resolve(refs), 10)
    except TaskCancelledError:
        found["cancelled"] = True
    return found


def main() -> None:
    """Run every case and print what came out."""
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    echo: Any = serve.run(Echo.bind(), _local_testing_mode=True)
    found = asyncio.run(awaited(echo))
    found["by_ref_sync"] = rc.resolve_sync(rc.by_ref_sync({"a": echo.remote("x")}))
    items = rc.to_object_ref_gen_sync(echo.options(stream=True).count.remote(3))
    found["to_object_ref_gen_sync"] = [item.get(timeout_s=30) for item in items]
    found["started Ray"] = ray.is_initialized()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
