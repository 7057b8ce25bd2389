"""Back-pressure in a pipeline's process means what it means in a replica."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from ray import serve
from ray.serve.exceptions import BackPressureError
from starlette.testclient import TestClient
from support.composing import local
from support.stages import call
from support.waiting import apoll, until

from raycompose import _serve


async def raised(awaitable: Any) -> str:
    """The name of the error that awaiting raises, or what it gives."""
    try:
        return repr(await awaitable)
    except (Exception, asyncio.CancelledError) as error:
        return type(_serve.unwrap(error)).__name__


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
