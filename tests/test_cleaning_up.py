"""Time-outs: whose they are, and that what they stop may clean up."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined, untyped-decorator, no-untyped-call"

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import requests
from ray import serve
from support import pickle_by_value
from support.cluster import Deploy
from support.waiting import PATIENCE_S, apoll, until

import raycompose as rc

pickle_by_value(__name__)


# Time-outs


def test_a_stages_own_timeout_error_arrives() -> None:
    """A stage that raises ``TimeoutError`` itself is not a client that waited too long."""

    async def impatient(x: int) -> int:
        raise TimeoutError("the database did not answer")

    async def taker(ref: rc.Ref[int]) -> int:
        return await ref

    def blocking_taker(ref: rc.Ref[int]) -> int:
        return ref.get(timeout_s=30)

    for app in (rc.stage(impatient), rc.pipeline(impatient, taker),
                rc.pipeline(impatient, blocking_taker)):  # fmt: skip
        with pytest.raises(TimeoutError, match="the database did not answer") as caught:
            rc.local(app).call(1, timeout_s=30)
        assert rc.failed_stage(caught.value) == "impatient"


def test_a_reference_that_is_late_says_so() -> None:
    """``Ref.get`` past its own limit is a ``TimeoutError`` that names what it waited for."""

    async def slow(x: int) -> int:
        await asyncio.sleep(30)
        return x

    def taker(ref: rc.Ref[int]) -> int:
        return ref.get(timeout_s=0.05)

    with pytest.raises(TimeoutError, match=r"the result of 'slow'.*timeout_s=0.05"):
        rc.local(rc.pipeline(slow, taker)).call(1, timeout_s=30)


@pytest.mark.parametrize("engine", ["local", "fused"])
def test_a_stage_past_its_deadline_may_still_clean_up(deploy: Deploy, engine: str) -> None:
    """What it awaits in ``finally`` is not cancelled again: a pool gets its connection back."""

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Pooled:
        def __init__(self) -> None:
            self.free = asyncio.Queue[str]()
            self.free.put_nowait("the connection")

        async def __call__(self, seconds: float) -> str:
            connection = await self.free.get()
            try:
                await asyncio.sleep(seconds)
                return connection
            finally:
                await asyncio.sleep(0.01)
                await self.free.put(connection)

    app = rc.stage(Pooled.bind(), timeout_s=0.5)
    client = rc.local(app) if engine == "local" else deploy(app.fuse())
    with pytest.raises(rc.StageTimeoutError):
        client.call(20, timeout_s=PATIENCE_S)
    assert client.call(0, timeout_s=PATIENCE_S) == "the connection"


class Pool:
    """A stage that borrows a connection, hangs, and awaits that it can give it back."""

    def __init__(self) -> None:
        self.lent = self.back = 0

    async def __call__(self, x: int) -> int:
        self.lent = place = self.lent + 1
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02 * place)  # one after the other
            self.back += 1
        return x

    async def items(self, x: int) -> AsyncIterator[int]:
        yield x
        yield await self(x)


async def _hangs(x: int) -> int:
    await asyncio.Event().wait()
    return x


async def _fails_once(pool: Pool) -> None:
    await apoll(lambda: pool.lent)
    raise ValueError("meant to fail")


AROUND: dict[str, Callable[[Pool], Any]] = {
    "beside a quick one": lambda pool: rc.parallel(_hangs, pool),
    "items of a list": lambda pool: rc.pipeline(lambda x: [x] * 4, rc.each(pool)),
    "under one that fails": lambda pool: rc.parallel(
        lambda x: asyncio.run(_fails_once(pool)), rc.parallel(_hangs, pool)
    ),
    "in a race": lambda pool: rc.race(_hangs, pool),
    "of a stream": lambda pool: rc.pipeline(rc.stage(pool.items), pool, rc.collect),
}


@pytest.mark.parametrize("where", AROUND)
def test_every_stage_that_is_cancelled_may_still_clean_up(where: str) -> None:
    """One that ends at once has its siblings, or those further in, not cancelled again."""
    pool = Pool()
    client = rc.local(rc.stage(AROUND[where](pool), timeout_s=0.5, name="limited"))
    with pytest.raises((rc.StageTimeoutError, ValueError)):
        client.call(1, timeout_s=PATIENCE_S)
    assert pool.lent
    until(lambda: pool.back == pool.lent)


@pytest.mark.parametrize("call", ["acall", "astream"])
def test_a_caller_who_is_cancelled_lets_the_stages_clean_up(call: str) -> None:
    """The call that is cancelled with its caller is cancelled once."""
    pool = Pool()
    app = rc.stage(pool.items) if call == "astream" else rc.parallel(_hangs, pool)
    client = rc.local(app)

    async def caller() -> None:
        if call == "acall":
            await client.acall(1)
        async for _ in client.astream(1):
            pass

    async def run() -> None:
        calling = asyncio.ensure_future(caller())
        assert await apoll(lambda: pool.lent)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

    asyncio.run(run())
    until(lambda: pool.back)


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Lender:
    """Streams while it holds its one connection, and tells how many are free."""

    def __init__(self) -> None:
        self.free = 1

    async def __call__(self, what: str) -> AsyncIterator[str]:
        if what == "free":
            yield str(self.free)
            return
        self.free -= 1
        try:
            while True:
                yield "here"
                await asyncio.sleep(0.01)
        finally:
            await asyncio.sleep(0.02)
            self.free += 1


@pytest.mark.parametrize("engine", ["deployed", "fused"])
def test_a_stream_of_a_replica_may_clean_up_when_its_client_leaves(
    deploy: Deploy, engine: str
) -> None:
    """What the stage awaits in ``finally`` is not cancelled again."""
    app = rc.pipeline(Lender.bind())
    client = deploy(app.fuse() if engine == "fused" else app)
    assert client.url is not None
    with requests.post(client.url, json="hold", stream=True, timeout=PATIENCE_S) as response:
        chunks = response.iter_content(4)
        assert next(chunks) == b"here"
        assert list(client.stream("free")) == ["0"]
    until(lambda: list(client.stream("free")) == ["1"])


def test_a_stage_with_a_hedge_is_named_when_it_is_late() -> None:
    """A limit around a limit goes by the stage within."""
    app = rc.stage(_hangs, timeout_s=0.1, hedge=rc.Hedge(after_s=PATIENCE_S))
    with pytest.raises(rc.StageTimeoutError, match="'_hangs'"):
        rc.local(app).call(1, timeout_s=PATIENCE_S)
