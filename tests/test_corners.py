"""Corners: what must never hang, run twice, be abandoned or be counted wrongly."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined, untyped-decorator, no-untyped-call"

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest
import ray
import requests
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from starlette.testclient import TestClient
from support.waiting import apoll, until

import raycompose as rc
from raycompose.flow import promises
from raycompose.flow.references import Ref
from raycompose.graph.context import Context

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import it

Deploy = Callable[..., rc.Client]
TIMEOUT_S = 30


class Unsendable(Exception):
    """Cannot be pickled: it holds a lock."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Forgetful(Exception):
    """Can be pickled, and not unpickled: its ``__init__`` takes what its ``args`` do not have."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


# Promises


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Maker:
    async def __call__(self, what: str) -> Any:
        if what == "raises":
            raise Unsendable("no luck")
        if what == "forgets":
            return ["fine", Forgetful("lost", "its arguments")]
        return threading.Lock() if what == "returns" else what.upper()


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Taker:
    async def __call__(self, ref: rc.Ref[str]) -> str:
        return f"got {await ref}"


def test_what_cannot_be_sent_settles_its_promise(deploy: Deploy) -> None:
    """A fused stage whose error or result cannot be pickled or unpickled fails its request."""
    client = deploy((Maker.bind() | Taker.bind()).fuse("Maker"))
    assert client.call("fine", timeout_s=TIMEOUT_S) == "got FINE"
    for what in ("raises", "returns", "forgets"):
        with pytest.raises(Exception, match=r"no luck|pickle") as caught:
            client.call(what, timeout_s=TIMEOUT_S)
        assert not isinstance(caught.value, TimeoutError)
        assert rc.failed_stage(caught.value) == "Maker"


class Fails:
    async def __call__(self, x: int) -> int:
        raise ValueError("no luck")


async def referred(ref: rc.Ref[int]) -> int:
    return await ref


def test_a_failed_reference_is_no_error_that_nobody_saw(caplog: pytest.LogCaptureFixture) -> None:
    """The failure of a stage that is referred to reaches its caller, and not asyncio's log."""
    client = rc.local(rc.pipeline(serve.deployment(Fails).bind(), referred))
    with pytest.raises(ValueError, match="no luck"):
        client.call(1)

    def collected() -> bool:
        gc.collect()
        return not any(type(o) is asyncio.Future and "no luck" in repr(o) for o in gc.get_objects())

    until(collected)
    assert "never retrieved" not in caplog.text


def promised(value: Any) -> Any:
    pending: Future[Any] = Future()
    ref = promises.promise(pending)
    pending.set_result(value)
    return ref


def test_a_promise_of_a_reference_is_kept(cluster: None) -> None:
    """A result that is an ``ObjectRef`` arrives as one, whatever becomes of what it refers to."""
    never = ray.remote(num_cpus=0)(lambda: 1 / 0).remote()
    arrived = ray.get(promised(never), timeout=TIMEOUT_S)
    with pytest.raises(ZeroDivisionError):
        ray.get(arrived, timeout=TIMEOUT_S)
    again = asyncio.run(Ref.to(never).sendable())
    assert ray.get(again.object_ref, timeout=TIMEOUT_S) == never


def test_promises_outlive_their_actor(cluster: None) -> None:
    """Once the actor that keeps promises has died, another keeps those that are made then."""
    context = ray.get_runtime_context()
    ray.kill(promises._actor(context.get_session_name(), context.get_job_id()))

    def is_kept() -> bool:
        try:
            return bool(ray.get(promised(5), timeout=TIMEOUT_S) == 5)
        except RayActorError:
            return False

    assert until(is_kept)


# Tasks with several results


@ray.remote(num_cpus=0, num_returns=2)
def two(path: str) -> tuple[str, str]:
    write(path, "ran")
    if path.endswith("hangs"):
        time.sleep(60)
    return "one", "two"


@serve.deployment(ray_actor_options={"num_cpus": 0})
def joined(both: tuple[str, str]) -> str:
    return f"{type(both).__name__}: {'+'.join(both)}"


@pytest.mark.parametrize("engine", ["distributed", "local"])
def test_a_task_of_two_results_runs_once(deploy: Deploy, tmp_path: Any, engine: str) -> None:
    """``num_returns=2`` gives a tuple of two results to what is behind, from one run."""
    app = rc.pipeline(two, joined.bind())
    client = rc.local(app) if engine == "local" else deploy(app)
    ran = tmp_path / "once"
    assert client.call(str(ran), timeout_s=TIMEOUT_S) == "tuple: one+two"
    assert ran.read_text() == "ran\n"


def test_a_task_of_two_results_is_cancelled(deploy: Deploy, tmp_path: Any) -> None:
    """Past its deadline such a task is cancelled, too, and its worker goes on to the next."""
    client = deploy(rc.stage(two, name="two", timeout_s=1.0))
    with pytest.raises(rc.StageTimeoutError):
        client.call(str(tmp_path / "hangs"), timeout_s=TIMEOUT_S)


# Calls of methods that are not there


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Mistaken:
    def __init__(self, callee: Any) -> None:
        self._callee = callee

    async def __call__(self, path: str) -> Any:
        write(path, "ran")
        return await self._callee.misspelt.remote(path)


def test_a_stage_that_calls_a_method_that_is_not_there_runs_once(
    deploy: Deploy, tmp_path: Any
) -> None:
    """Its error is not taken for that of a call to an application that is no pipeline."""
    client = deploy(rc.pipeline(Mistaken.bind(Taker.bind())))
    ran = tmp_path / "once"
    for _ in range(2):
        with pytest.raises(RayServeException, match="misspelt") as caught:
            client.call(str(ran), timeout_s=TIMEOUT_S)
        assert rc.failed_stage(caught.value) == "Mistaken"
    assert ran.read_text() == "ran\nran\n"


# Deciders


async def is_odd(x: int) -> bool:
    await asyncio.sleep(0)
    return x % 2 == 1


async def parity(x: int) -> str:
    return "odd" if x % 2 else "even"


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Language:
    async def __call__(self, text: str) -> str:
        return "es" if "hola" in text else "fr"


def test_an_async_decider_is_awaited() -> None:
    """``async def`` predicates, keys of a switch and keys of a split decide by their result."""
    call = rc.local(
        rc.parallel(
            when=rc.when(is_odd, lambda x: "odd", lambda x: "even"),
            switch=rc.switch(parity, {"odd": lambda x: "odd", "even": lambda x: "even"}),
            split=rc.split((lambda x: "a", 50), (lambda x: "b", 50), key=parity),
        )
    ).call
    one, two = call(1), call(2)
    assert (one["when"], one["switch"]) == ("odd", "odd")
    assert (two["when"], two["switch"]) == ("even", "even")
    assert [call(n)["split"] for n in (1, 3, 5)] == [one["split"]] * 3


@pytest.mark.parametrize("engine", ["local", "fused", "distributed"])
def test_a_deployment_decides(deploy: Deploy, engine: str) -> None:
    """A stage's result for the value chooses the branch, which gets the value itself."""
    app = rc.switch(
        Language.bind(),
        {"es": lambda text: f"es: {text}", "fr": rc.when(Language.bind(), lambda t: f"fr: {t}")},
    )
    client = {
        "local": lambda: rc.local(app),
        "fused": lambda: deploy(app.fuse()),
        "distributed": lambda: deploy(app),
    }[engine]()
    assert client.call("hola", timeout_s=TIMEOUT_S) == "es: hola"
    assert client.call("salut", timeout_s=TIMEOUT_S) == "fr: salut"


def _numbers(x: int) -> Iterator[int]:
    yield x


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda: rc.when(_numbers, is_odd), "must return one value"),
        (lambda: rc.switch(lambda: 1, {1: is_odd}), "takes no argument"),
        (lambda: rc.split((is_odd, 100), key=lambda a, b: a), "also requires b"),
        (lambda: rc.switch(rc.stage(_numbers), {1: is_odd}), "streams"),
        (lambda: rc.when(3, is_odd), "a function of the value, or a target that decides"),
    ],
)
def test_what_cannot_decide_is_refused(compose: Any, message: str) -> None:
    """It is refused where it is composed, with what was got."""
    with pytest.raises(rc.CompositionError, match=message):
        compose()


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
        client.call(20, timeout_s=TIMEOUT_S)
    assert client.call(0, timeout_s=TIMEOUT_S) == "the connection"


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
        client.call(1, timeout_s=TIMEOUT_S)
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
    with requests.post(client.url, json="hold", stream=True, timeout=TIMEOUT_S) as response:
        chunks = response.iter_content(4)
        assert next(chunks) == b"here"
        assert list(client.stream("free")) == ["0"]
    until(lambda: list(client.stream("free")) == ["1"])


# Scopes


class Watched:
    """A stage's source by reference that hangs, and knows whether it was cancelled."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0

    async def __call__(self, x: int) -> int:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return x

    async def told(self, x: str) -> tuple[int, int]:
        return self.begun, self.cancelled


async def _gives_up(ref: rc.Ref[int]) -> int:
    await asyncio.sleep(0.01)  # so that what is behind the reference has begun
    raise ValueError("will not wait")


@pytest.mark.parametrize(
    ("around", "attempts"),
    [
        (lambda inner: rc.fallback(inner, lambda x: -1), 1),
        (lambda inner: rc.stage(inner, retry=rc.Retry(2, on=(ValueError,), initial_s=0.0)), 2),
        (lambda inner: rc.pipeline(lambda x: [x, x], rc.each(inner, return_exceptions=True)), 2),
        (lambda inner: rc.shadow(inner), 1),
        (lambda inner: rc.fallback(rc.stage(_Slow(inner), timeout_s=0.2), lambda x: -1), 1),
    ],
    ids=["fallback", "retry", "each", "shadow", "timeout"],
)
def test_what_is_started_by_reference_ends_with_its_attempt(around: Any, attempts: int) -> None:
    """An attempt, a branch or an item that failed leaves nothing running behind it."""
    watched = Watched()
    client = rc.local(around(rc.pipeline(watched, _gives_up)))
    try:
        client.call(1, timeout_s=TIMEOUT_S)
    except ValueError:
        assert attempts == 2
    until(lambda: watched.begun == attempts)
    until(lambda: watched.cancelled == attempts)


def _Slow(inner: rc.Pipeline[Any, Any]) -> rc.Pipeline[Any, Any]:  # noqa: N802  # reads as a stage
    async def waits(ref: rc.Ref[int]) -> int:
        return await ref

    return rc.pipeline(inner.root.steps[0].target.function, waits)


async def _streams(ref: rc.Ref[int]) -> AsyncIterator[int]:
    await asyncio.sleep(0.01)  # so that what is behind the reference has begun
    yield 1
    yield 2


async def _fails_late(ref: rc.Ref[int]) -> AsyncIterator[int]:
    yield 1
    raise ValueError("meant to fail")


async def _fails_early(ref: rc.Ref[int]) -> AsyncIterator[int]:
    yield await _gives_up(ref)


async def _waits(ref: rc.Ref[int]) -> AsyncIterator[int]:
    yield 1
    yield await ref


def _leave(client: rc.Client) -> None:
    for _ in client.stream(1):
        break


def _drain(client: rc.Client) -> None:
    with contextlib.suppress(ValueError, TimeoutError):
        list(client.stream(1))


def _post(client: Any) -> None:
    assert TestClient(client.asgi).post("/", json=1).status_code == 500


def _call(client: rc.Client) -> None:
    client.call(1, timeout_s=TIMEOUT_S)


def _embed(app: rc.Pipeline[Any, Any]) -> Any:
    embedded = app.embed()

    async def left(x: int) -> None:
        stream: Any = embedded.stream(x)
        async with aclosing(stream) as items:
            async for _ in items:
                break

    return left


def _embed_refused(app: rc.Pipeline[Any, Any]) -> Any:
    embedded = app.embed()

    async def called(x: int) -> None:
        with pytest.raises(TypeError, match="this pipeline streams"):
            await embedded(x)

    return called


def _call_refused(client: rc.Client) -> None:
    with pytest.raises(TypeError, match="this pipeline streams"):
        client.call(1, timeout_s=TIMEOUT_S)


STREAMS: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], None]]] = {
    "left early": (_streams, rc.pipeline, _leave),
    "fails": (_fails_late, rc.pipeline, _drain),
    "fails at once": (_fails_early, rc.pipeline, _drain),
    "fails at once, over HTTP": (_fails_early, rc.pipeline, _post),
    "is late": (_waits, lambda inner: rc.stage(inner, timeout_s=0.2), _drain),
    "makes the request late": (
        _waits,
        lambda inner: rc.pipeline(inner).options(timeout_s=0.2),
        _drain,
    ),
    "of a fallback": (_fails_early, lambda inner: rc.fallback(inner, _one), _drain),
    "tried again": (
        _fails_early,
        lambda inner: rc.stage(inner, retry=rc.Retry(2, on=(ValueError,), initial_s=0.0)),
        _drain,
    ),
    "of a shadow": (_fails_early, rc.shadow, _call),
    "of a stream's item": (
        _streams,
        lambda inner: rc.pipeline(_one, rc.stage(inner, name="inner")),
        _leave,
    ),
    "embedded": (_streams, _embed, _call),
    "embedded and refused": (_streams, _embed_refused, _call),
    "refused": (_streams, rc.pipeline, _call_refused),
}


async def _one(x: int) -> AsyncIterator[int]:
    yield x


@pytest.mark.parametrize("stream", STREAMS)
def test_what_is_started_beside_a_stream_ends_with_it(stream: str) -> None:
    """A stream that fails or is left before its end leaves nothing running behind it."""
    watched = Watched()
    taker, around, use = STREAMS[stream]
    app = around(rc.pipeline(watched, taker))
    use(rc.local(app if isinstance(app, rc.Pipeline) else rc.stage(app)))
    until(lambda: watched.begun and watched.cancelled == watched.begun)


def test_what_is_started_beside_a_stream_of_a_replica_ends_with_it(deploy: Deploy) -> None:
    """A caller who leaves the stream early leaves nothing running behind it."""
    watched = Watched()
    app = rc.when(lambda x: x == "?", watched.told, rc.pipeline(watched, _waits))
    client = deploy(app)
    _leave(client)
    until(lambda: list(client.stream("?")) == [(1, 1)])


async def _broken(x: int) -> int:
    raise ValueError("meant to fail")


async def _takes(ref: rc.Ref[int]) -> int:
    return await ref


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "limited": lambda stage: rc.stage(stage, timeout_s=TIMEOUT_S),
    "hedged": lambda stage: rc.stage(stage, retry=2, hedge=rc.Hedge(after_s=TIMEOUT_S)),
    "named": lambda stage: rc.stage(rc.pipeline(lambda x: x, stage), name="outer"),
    "chosen": lambda stage: rc.when(lambda x: True, stage),
    "through another": lambda stage: rc.pipeline(rc.stage(stage, retry=2), _takes),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("again", ["fallback", "retry"])
def test_what_failed_by_its_input_is_not_called_again(wrapped: str, again: str) -> None:
    """A reference knows the failure of what is behind it, whatever stands around that."""
    called = []

    async def takes(ref: rc.Ref[int]) -> int:
        called.append(ref)
        return await ref

    consumer = (
        rc.fallback(takes, takes)
        if again == "fallback"
        else rc.stage(takes, retry=rc.Retry(3, on=(ValueError,), initial_s=0.0))
    )
    client = rc.local(rc.pipeline(WRAPPED[wrapped](_broken), consumer))
    with pytest.raises(ValueError, match="meant to fail") as raised:
        client.call(1, timeout_s=TIMEOUT_S)
    assert rc.failed_stage(raised.value) == "_broken"
    assert len(called) == 1


@pytest.mark.parametrize(
    ("wrapped", "stage"),
    [("limited", "_hangs"), ("hedged", "_hangs"), ("named", "outer"), ("chosen", "when")],
)
def test_a_deadline_names_what_is_waited_for_by_reference(wrapped: str, stage: str) -> None:
    """The request's answer says which stage was running, as without the reference."""
    client = rc.local(rc.pipeline(WRAPPED[wrapped](_hangs), _takes).options(timeout_s=0.2))
    answer = TestClient(client.asgi).post("/", json=1)
    assert (answer.status_code, answer.json()["stage"]) == (504, stage)


def test_a_stage_with_a_hedge_is_named_when_it_is_late() -> None:
    """A limit around a limit goes by the stage within."""
    app = rc.stage(_hangs, timeout_s=0.1, hedge=rc.Hedge(after_s=TIMEOUT_S))
    with pytest.raises(rc.StageTimeoutError, match="'_hangs'"):
        rc.local(app).call(1, timeout_s=TIMEOUT_S)


def test_a_stream_holds_what_is_in_flight_alone() -> None:
    """What an item started by reference is let go of with the item: memory does not grow."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Block:
        pass

    async def source(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def load(i: int) -> Block:
        nonlocal most
        block = Block()
        alive.add(block)
        most = max(most, len(alive))
        return block

    async def taker(ref: rc.Ref[Block]) -> int:
        await ref
        return 1

    item = rc.stage(rc.pipeline(load, taker), name="item")
    client = rc.local(rc.pipeline(source, item, rc.collect, sum))
    assert client.call(300, timeout_s=TIMEOUT_S) == 300
    gc.collect()
    assert most < 100


# Streams in threads


def test_an_endless_producer_behind_a_blocking_consumer_stops() -> None:
    """A time-out closes the generator while a thread waits for its next item, and ends both."""
    state = {"closed": False, "ended": False}

    async def endless(x: int) -> AsyncIterator[int]:
        try:
            while True:
                yield x
                await asyncio.sleep(0.005)
        finally:
            state["closed"] = True

    def consumer(items: rc.Stream[int]) -> int:
        try:
            return sum(items)
        finally:
            state["ended"] = True

    with pytest.raises(rc.StageTimeoutError):
        rc.local(rc.pipeline(endless, rc.stage(consumer, timeout_s=0.3))).call(1, timeout_s=30)
    until(lambda: state == {"closed": True, "ended": True})


def test_a_cancelled_astream_is_cancelled() -> None:
    """Cancelling the task that iterates raises ``CancelledError`` there, and stops the stage."""
    stopped = threading.Event()

    async def endless(x: int) -> AsyncIterator[int]:
        try:
            yield x
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def main() -> str:
        first = asyncio.Event()

        async def iterate() -> None:
            async for _ in rc.local(rc.stage(endless)).astream(1):
                first.set()

        task = asyncio.ensure_future(iterate())
        await asyncio.wait_for(first.wait(), TIMEOUT_S)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return "cancelled"
        return "ended"

    assert asyncio.run(main()) == "cancelled"
    assert stopped.wait(TIMEOUT_S)


# Shadow, each


def test_shadow_counts_in_its_process_whatever_carries_it() -> None:
    """``max_in_flight`` holds for all copies of the node that streams have brought along."""
    shadow = rc.shadow(_never, max_in_flight=1).root
    copies = [ray.cloudpickle.loads(ray.cloudpickle.dumps(shadow)) for _ in range(6)]

    async def main() -> int:
        before = len(asyncio.all_tasks())
        ctx = Context()
        for copy in copies:
            await copy.run(1, ray.cloudpickle.loads(ray.cloudpickle.dumps(ctx)))
        return len(asyncio.all_tasks()) - before

    assert asyncio.run(main()) == 1


async def _never(x: int) -> None:
    await asyncio.Event().wait()


def test_each_makes_tasks_for_what_is_under_way_alone() -> None:
    """A list of many items costs no task apiece before its turn."""
    most = 0

    async def item(x: int) -> int:
        nonlocal most
        most = max(most, len(asyncio.all_tasks()))
        return x

    assert rc.local(rc.each(item, max_concurrency=4)).call(list(range(500))) == list(range(500))
    assert most < 50


# By reference


@pytest.mark.parametrize("kind", ["parallel", "split", "fallback", "when"])
def test_a_branch_that_takes_a_reference_starts_before_its_upstream_ends(kind: str) -> None:
    """Consumers by reference are eager inside branches; a predicate alone waits for the value."""
    order: list[str] = []

    async def upstream(x: int) -> int:
        await asyncio.sleep(0.2)
        order.append("upstream")
        return x + 1

    async def eager(ref: rc.Ref[int]) -> int:
        order.append("eager")
        return await ref * 10

    async def plain(x: int) -> int:
        return x

    branching = {
        "parallel": lambda: rc.parallel(eager, plain, rc.passthrough),
        "split": lambda: rc.split((eager, 50), (eager, 50)),
        "fallback": lambda: rc.fallback(eager, plain),
        "when": lambda: rc.when(lambda x: x == 2, eager, plain),
    }[kind]()
    result = rc.local(rc.pipeline(upstream, branching)).call(1, timeout_s=TIMEOUT_S)
    assert result == ((20, 2, 2) if kind == "parallel" else 20)
    assert order == (["upstream", "eager"] if kind == "when" else ["eager", "upstream"])


def test_a_fallback_does_not_repeat_what_its_input_failed() -> None:
    """When the stage behind the reference failed, no other branch can make it good."""
    tried: list[str] = []

    async def broken(x: int) -> int:
        raise ValueError("upstream")

    async def first(ref: rc.Ref[int]) -> int:
        tried.append("first")
        return await ref

    async def second(ref: rc.Ref[int]) -> int:
        tried.append("second")
        return await ref

    with pytest.raises(ValueError, match="upstream") as caught:
        rc.local(rc.pipeline(broken, rc.fallback(first, second))).call(1, timeout_s=TIMEOUT_S)
    assert rc.failed_stage(caught.value) == "broken"
    assert tried == ["first"]


# Threads, loops, processes


def test_the_background_loop_is_made_once() -> None:
    """Threads that need it first at the same time share it."""
    program = """
import threading
from raycompose.flow import concurrency, promises
barrier, loops = threading.Barrier(16), []
def first():
    barrier.wait()
    loops.append(concurrency.loop())
threads = [threading.Thread(target=first) for _ in range(16)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(set(map(id, loops))), sum(t.name == "raycompose-loop" for t in threading.enumerate()))
"""
    assert _output(program) == "1 1"


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    """After ``os.fork`` a call works in the child, where the parent's thread is not."""
    program = """
import os, sys
import raycompose as rc
client = rc.local(rc.stage(lambda x: x + 1))
assert client.call(1) == 2
sys.stdout.flush()
child = os.fork()
if child == 0:
    print(rc.local(rc.stage(lambda x: x + 1)).call(2, timeout_s=20), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status)
"""
    assert _output(program) == "3 0"


def _output(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def test_a_blocking_call_on_the_loop_it_waits_for_is_refused() -> None:
    """A stage that blocks on its own event loop is told what to do, rather than hang."""
    inner = rc.local(rc.stage(lambda x: x + 1))

    async def outer(x: int) -> Any:
        return inner.call(x)

    with pytest.raises(rc.RayComposeError, match="await the asynchronous form"):
        rc.local(rc.stage(outer)).call(1, timeout_s=TIMEOUT_S)


# Truth in numbers


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What is observed and counted, by stage."""
    from raycompose.graph import metrics

    seen: dict[str, list[Any]] = {"called": [], "failed": []}
    monkeypatch.setattr(
        metrics, "stage_called", lambda _, stage, took_s: seen["called"].append((stage, took_s))
    )
    monkeypatch.setattr(metrics, "count", lambda _, __, stage: seen["failed"].append(stage))
    return seen


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Producer:
    async def __call__(self, x: int) -> int:
        await asyncio.sleep(0.3)
        if x < 0:
            raise ValueError("negative")
        return x


async def _awaits(ref: rc.Ref[int]) -> int:
    return await ref


def test_a_producer_by_reference_is_timed_until_it_ends(recorded: dict[str, list[Any]]) -> None:
    """Its time is its own, and its failure is counted on it rather than on its consumer."""
    client = rc.local(rc.pipeline(Producer.bind(), _awaits))
    assert client.call(1) == 1
    until(lambda: len(recorded["called"]) == 2)
    assert {stage: took_s >= 0.25 for stage, took_s in recorded["called"]} == {
        "Producer": True,
        "_awaits": True,
    }
    with pytest.raises(ValueError, match="negative"):
        client.call(-1)
    assert recorded["failed"] == ["Producer"]


def test_a_stream_is_observed_once(recorded: dict[str, list[Any]]) -> None:
    """From its first item to its last, as one call of the stage."""

    async def source(n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0.02)
            yield i

    assert list(rc.local(rc.stage(source)).stream(5)) == [0, 1, 2, 3, 4]
    ((stage, took_s),) = recorded["called"]
    assert stage == "source"
    assert took_s > 0.08


# The same in replicas


def write(notes: str, event: str) -> None:
    with open(notes, "a") as file:
        file.write(f"{event}\n")


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Upstream:
    """Takes its time, and notes in a file how it ended."""

    async def __call__(self, notes: str) -> float:
        try:
            await asyncio.sleep(30 if notes.endswith("hangs") else 0.5)
        except asyncio.CancelledError:
            write(notes, "cancelled")
            raise
        return time.time()

    async def numbers(self, notes: str) -> AsyncIterator[int]:
        write(notes, "begun")
        yield 1
        yield 2


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Eager:
    async def __call__(self, ref: rc.Ref[float]) -> bool:
        began = time.time()
        return began < await ref

    async def gives_up(self, ref: rc.Ref[float]) -> bool:
        await asyncio.sleep(0.5)
        raise ValueError("will not wait")

    async def fails(self, items: rc.Stream[int]) -> int:
        async for _ in items:
            raise ValueError("at the first item")
        return 0


def _graphs() -> dict[str, Any]:
    upstream, taker = Upstream.bind(), Eager.bind()
    gives_up = rc.pipeline(upstream, rc.stage(taker, method="gives_up"))
    again = rc.Retry(3, on=(ValueError,), initial_s=0.01, min_per_s=100)
    return {
        "parallel": rc.pipeline(upstream, rc.parallel(taker, taker)),
        "split": rc.pipeline(upstream, rc.split((taker, 50), (taker, 50))),
        "first of a fallback": rc.pipeline(upstream, rc.fallback(taker, lambda x: None)),
        "abandoned by a fallback": rc.fallback(gives_up, lambda notes: "another"),
        "a stream, tried again": rc.pipeline(
            rc.stage(upstream, method="numbers"), rc.stage(taker, method="fails", retry=again)
        ),
    }


@pytest.fixture(scope="module", params=["local", "fused", "distributed"])
def corners(request: pytest.FixtureRequest, deploy: Deploy) -> rc.Client:
    graphs = _graphs()
    app = rc.switch("case", {k: rc.pipeline(lambda c: c["notes"], g) for k, g in graphs.items()})
    if request.param == "local":
        return rc.local(app)
    return deploy(app.fuse() if request.param == "fused" else app)


@pytest.mark.parametrize("case", ["parallel", "split", "first of a fallback"])
def test_a_branch_by_reference_is_eager_in_replicas(corners: rc.Client, case: str) -> None:
    """The branch starts before its upstream has ended."""
    result = corners.call({"case": case, "notes": ""}, timeout_s=TIMEOUT_S)
    assert result == ((True, True) if case == "parallel" else True)


def test_an_abandoned_attempt_is_cancelled_in_its_replica(
    corners: rc.Client, tmp_path: Any
) -> None:
    """What a failed branch started by reference is cancelled, although the request succeeds."""
    notes = tmp_path / "hangs"
    notes.touch()
    call = {"case": "abandoned by a fallback", "notes": str(notes)}
    assert corners.call(call, timeout_s=TIMEOUT_S) == "another"
    until(lambda: notes.read_text() == "cancelled\n", within_s=20)


def test_a_streams_producer_runs_once_whoever_is_tried_again(
    corners: rc.Client, tmp_path: Any
) -> None:
    """A stage that was given a stream whole is not called again with it, on any engine."""
    notes = tmp_path / "begun"
    call = {"case": "a stream, tried again", "notes": str(notes)}
    with pytest.raises(ValueError, match="at the first item"):
        corners.call(call, timeout_s=TIMEOUT_S)
    assert notes.read_text() == "begun\n"


def test_a_promise_that_nobody_waits_for_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value of a call whose waiting was cancelled is let go of, not kept for ever."""
    monkeypatch.setattr(promises, "_UNCLAIMED_S", 0.05)

    async def main() -> bool:
        kept = promises._Promises()
        waiting = asyncio.ensure_future(kept.result("key"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        await kept.settle("key", "a large value")
        assert len(kept._outcomes) == 1
        return bool(await apoll(lambda: not kept._outcomes))

    assert asyncio.run(main())


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Freezer:
    async def __call__(self, code: int) -> int:
        raise Frozen(code)

    async def items(self, code: int) -> AsyncIterator[int]:
        yield code
        raise Frozen(code)


def test_a_frozen_exception_of_a_hosted_stage_arrives() -> None:
    """What is on its way does not assign to the exception, which lets nothing be assigned."""
    bound = Freezer.bind()
    for app in (rc.stage(bound), rc.fallback(bound, bound), rc.stage(bound, timeout_s=30)):
        with pytest.raises(Frozen) as caught:
            rc.local(app).call(7, timeout_s=TIMEOUT_S)
        assert (caught.value.code, rc.failed_stage(caught.value)) == (7, "Freezer")
    with pytest.raises(Frozen):
        list(rc.local(rc.stage(bound, method="items")).stream(7))
