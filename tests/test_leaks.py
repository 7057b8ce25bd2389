"""What requests leave behind: nothing, in the object store, the replicas and this process.

RAYCOMPOSE_SOAK=1 makes 10,000 requests of each kind and cancels 1,000 instead of 60 and 20, and
looks after each kind rather than once after all of them; then it makes requests of all kinds at
once for a quarter of an hour.
"""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import pytest
import ray
from ray import ObjectRef, serve
from support import pickle_by_value
from support.cluster import HERE, Deploy

import raycompose as rc
from raycompose.flow import promises

pickle_by_value(__name__)

SOAK = os.environ.get("RAYCOMPOSE_SOAK") == "1"
pytestmark = pytest.mark.timeout(1800 if SOAK else 180)
REQUESTS = 10_000 if SOAK else 60
CANCELLED = 1_000 if SOAK else 20
ROUNDS = 3
"""How often a round of requests may leave something behind: caches fill once, leaks go on."""
MIXED_S = 900
"""How long requests of all kinds are made at once."""
PATIENCE_S = 10 if SOAK else 2
"""How long after a round Ray may take to free what it no longer needs."""
SIZE = 200_000
"""Bytes of a value: enough that Ray keeps it in the object store."""
ITEMS = 2
"""How many values a stream has."""
NAMESPACE = "leaks"

here: dict[str, Any] = {**HERE, "max_ongoing_requests": 100}


# --- Measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Census:
    """What a process holds.

    Args:
        references: ObjectRefs that the process owns or borrows.
        blocks: Blocks of memory that Python has allocated; every object is at least one.
        rss_bytes: Memory of the process, so that native memory counts, too.
        types: How many objects there are of each type, to name what leaks; none unless asked for.
    """

    references: int
    blocks: int
    rss_bytes: int
    types: Mapping[str, int]


def census(_: Any = None, *, with_types: bool = False) -> Census:
    """Count what this process holds."""
    gc.collect()
    core: Any = ray._private.worker.global_worker.core_worker  # noqa: TID251  # nothing public counts references
    found = gc.get_objects() if with_types else ()
    return Census(
        references=len(core.get_all_reference_counts()),
        blocks=sys.getallocatedblocks(),
        rss_bytes=psutil.Process().memory_info().rss,
        types=Counter(type(one).__qualname__ for one in found),
    )


@dataclass(frozen=True)
class Snapshot:
    """What the object store and each process of an application hold."""

    objects: int
    object_bytes: int
    processes: Mapping[str, Census]


def freeze(_: Any = None) -> None:
    """Leave out of later collections what there is already: most of the work of a census."""
    gc.collect()
    gc.freeze()


def actors_of(app_name: str) -> dict[str, Any]:
    """The application's replicas, and the actors beside them."""
    actors = {
        named["name"]: ray.get_actor(named["name"], namespace=named["namespace"])
        for named in ray.util.list_named_actors(all_namespaces=True)
        if named["name"].startswith(f"SERVE_REPLICA::{app_name}#")
        or named["namespace"] == NAMESPACE
    }
    context = ray.get_runtime_context()
    actors["promises"] = promises._actor(context.get_session_name(), context.get_job_id())
    return actors


def snapshot(app_name: str, *, with_types: bool = False) -> Snapshot:
    """Look at the object store, this process, the application's replicas and the actors."""
    from ray._private.internal_api import node_stats  # noqa: TID251  # nothing public sees the store

    (node,) = ray.nodes()
    store = node_stats(
        node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
    ).store_stats
    actors, look = actors_of(app_name), partial(census, with_types=with_types)
    found = ray.get([actor.__ray_call__.remote(look) for actor in actors.values()])
    return Snapshot(
        objects=store.num_local_objects,
        object_bytes=store.object_store_bytes_used,
        processes={"this process": look(), **dict(zip(actors, found, strict=True))},
    )


def left_behind(before: Snapshot, after: Snapshot, requests: int) -> list[str]:
    """Say what so many requests have left behind, beyond what comes and goes by itself."""
    found = []
    if after.objects - before.objects > requests // 10:
        found.append(f"object store: {after.objects - before.objects} objects more")
    if after.object_bytes - before.object_bytes > requests // 10 * SIZE:
        found.append(f"object store: {after.object_bytes - before.object_bytes} bytes more")
    for name, now in after.processes.items():
        then = before.processes[name]
        if now.references - then.references > requests // 10:
            found.append(f"{name}: {now.references - then.references} references more")
        if now.blocks - then.blocks > 100 + requests // 4:
            types = Counter(now.types)
            types.subtract(then.types)
            found.append(f"{name}: {now.blocks - then.blocks} blocks more, {types.most_common(9)}")
        if now.rss_bytes - then.rss_bytes > 30_000_000 + requests * 5_000:
            found.append(f"{name}: {now.rss_bytes - then.rss_bytes} bytes of memory more")
    return found


def leaks(
    app_name: str,
    make: Callable[[int], Coroutine[Any, Any, None]],
    requests: int,
    rounds: int = ROUNDS,
) -> list[str]:
    """Make so many requests, in rounds, and return what each of the rounds has left behind.

    A round is clean when, within a few seconds after it, all is as it was before it.
    """
    asyncio.run(make(20))  # imports, connections, caches
    found = ["no round was made"]
    for number in range(1, rounds + 1):
        look = partial(snapshot, app_name, with_types=number == rounds)  # which may be reported
        before = look()
        before = look()  # counted, as the one after it will be, beside another one
        asyncio.run(make(requests))
        deadline = time.monotonic() + PATIENCE_S
        while found := left_behind(before, look(), requests):
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if not found:
            return []
    return found


def some_at_a_time(
    make: Callable[[int], Awaitable[None]], some: int = 16
) -> Callable[[int], Coroutine[Any, Any, None]]:
    """Return what makes so many requests, some at a time."""

    async def make_some(requests: int) -> None:
        waiting = asyncio.Semaphore(some)

        async def one(i: int) -> None:
            async with waiting:
                await make(i)

        await asyncio.gather(*(one(i) for i in range(requests)))

    return make_some


def one_after_the_other(
    makes: Iterable[Callable[[int], Coroutine[Any, Any, None]]],
) -> Callable[[int], Coroutine[Any, Any, None]]:
    """Return what makes so many requests of each kind."""

    async def make_each(requests: int) -> None:
        for make in makes:
            await make(requests)

    return make_each


def kinds_of(*kinds: str) -> pytest.MarkDecorator:
    """Run a test with all the kinds at once; in the long form with one at a time."""
    alone = [(kind,) for kind in kinds]
    return pytest.mark.parametrize("kinds", alone if SOAK else [kinds], ids=", ".join)


# --- What is measured -----------------------------------------------------------------------------


class Refused(Exception):
    """What the failing stages raise; it holds a value."""


class Hanging:
    """Counts what hangs in it."""

    def __init__(self) -> None:
        self.hanging = 0

    async def hang(self, value: Any) -> Any:
        self.hanging += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.hanging -= 1

    async def count(self, _: Any = None) -> int:
        return self.hanging


class Maker(Hanging):
    """Makes large values."""

    async def __call__(self, _: Any) -> bytes:
        return bytes(SIZE)

    async def refuse(self, _: Any) -> bytes:
        raise Refused(bytes(1000))

    async def up_to(self, _: Any) -> AsyncIterator[bytes]:
        for _i in range(ITEMS):
            yield bytes(SIZE)

    async def endless(self, _: Any) -> AsyncIterator[bytes]:
        self.hanging += 1
        try:
            yield bytes(SIZE)
            await asyncio.Event().wait()
        finally:
            self.hanging -= 1


class Taker(Hanging):
    """Takes large values, one way or another."""

    async def __call__(self, value: bytes) -> int:
        return len(value)

    async def ref(self, ref: rc.Ref[bytes]) -> int:
        return len(await ref)

    async def listed(self, refs: list[ObjectRef[bytes]]) -> int:
        return len(await refs[0])

    async def ignored(self, ref: rc.Ref[bytes]) -> int:
        return 0


class Whole:
    """Takes streams; apart, so that what it may leave behind is not found elsewhere."""

    async def __call__(self, items: rc.Stream[bytes]) -> AsyncIterator[int]:
        async for item in items:
            yield len(item)


class Leaky:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    async def keep_ref(self, refs: list[ObjectRef[bytes]]) -> None:
        self.kept.append(refs)

    async def keep_value(self, value: bytes) -> None:
        self.kept.append([len(value)])

    async def keep_memory(self, value: bytes) -> None:
        self.kept.append(bytearray(value))


class Actor(Hanging):
    async def make(self, _: Any) -> bytes:
        return bytes(SIZE)

    async def take(self, value: bytes) -> int:
        return len(value)


def make_value(_: Any) -> bytes:
    return bytes(SIZE)


def take_value(value: bytes) -> int:
    return len(value)


def up_to(_: Any) -> Iterator[bytes]:
    for _i in range(ITEMS):
        yield bytes(SIZE)


@dataclass(frozen=True)
class Running:
    """The application, the ways to call it, and what tells how many calls hang."""

    client: rc.Client
    hanging: Callable[[], Awaitable[int]]


@pytest.fixture(scope="module")
def running(deploy: Deploy) -> Iterator[Running]:
    """Every kind of request in one application."""
    maker = serve.deployment(Maker, **here).bind()
    taker = serve.deployment(Taker, **here).bind()
    whole = serve.deployment(Whole, **here).bind()
    leaky = serve.deployment(Leaky, **here).bind()
    actor = ray.remote(num_cpus=0, max_concurrency=100)(Actor)
    held = actor.options(name="actor", namespace=NAMESPACE).remote()
    task = ray.remote(num_cpus=0)

    def to(app: Any, method: str, **options: Any) -> Any:
        return rc.stage(app, method=method, **options)

    kinds: dict[str, Any] = {
        "by value": rc.pipeline(maker, taker),
        "by reference": rc.pipeline(maker, to(taker, "ref")),
        "never awaited": rc.pipeline(maker, to(taker, "ignored")),
        "of an inline stage": rc.pipeline(lambda x: bytes(SIZE), to(taker, "ref")),
        "tasks": rc.pipeline(task(make_value), taker, lambda n: bytes(n), task(take_value)),
        "an actor": rc.pipeline(held.make, taker, lambda n: bytes(n), held.take),
        "refused": rc.pipeline(to(maker, "refuse"), taker),
        "refused by reference": rc.pipeline(to(maker, "refuse"), to(taker, "ref")),
        "a mapped stream": rc.pipeline(to(maker, "up_to"), taker, rc.collect),
        "a stream taken whole": rc.pipeline(to(maker, "up_to"), whole, rc.collect),
        "a task's stream": rc.pipeline(task(up_to), taker, rc.collect),
        "hang": to(taker, "hang"),
        "hang behind": rc.pipeline(maker, to(taker, "hang")),
        "hang by reference": rc.pipeline(to(maker, "hang"), to(taker, "ref")),
        "hang in an actor": rc.pipeline(maker, held.hang),
        "endless": rc.pipeline(to(maker, "endless"), taker),
        "endless, taken whole": rc.pipeline(to(maker, "endless"), whole),
        "keep_ref": rc.pipeline(maker, to(leaky, "keep_ref")),
        "keep_value": rc.pipeline(maker, to(leaky, "keep_value")),
        "keep_memory": rc.pipeline(maker, to(leaky, "keep_memory")),
        "hanging": rc.parallel(to(maker, "count"), to(taker, "count"), held.count),
    }
    client = deploy(rc.switch("do", kinds))

    async def hanging() -> int:
        counts: tuple[int, ...] = await client.acall({"do": "hanging"})
        return sum(counts)

    asyncio.run(hanging())
    for actor in actors_of(client.handle.app_name).values():
        ray.get(actor.__ray_call__.remote(freeze))
    freeze()
    snapshot(client.handle.app_name)  # measuring imports and connects, too
    yield Running(client, hanging)
    gc.unfreeze()
    ray.kill(held)


@kinds_of("by value", "by reference", "never awaited", "of an inline stage", "tasks", "an actor",
          "a mapped stream", "a stream taken whole", "a task's stream")  # fmt: skip
def test_requests_leave_nothing_behind(running: Running, kinds: tuple[str, ...]) -> None:
    """After many requests the object store and every process are back where they began."""

    def of(kind: str) -> Callable[[int], Coroutine[Any, Any, None]]:
        async def make(_: int) -> None:
            result = await running.client.acall({"do": kind})
            assert result in (SIZE, 0, [SIZE] * ITEMS)

        return some_at_a_time(make, 4 if "task" in kind else 16)  # a running task is a process

    make = one_after_the_other([of(kind) for kind in kinds])
    assert leaks(running.client.handle.app_name, make, REQUESTS) == []


@kinds_of("refused", "refused by reference")
def test_failures_leave_nothing_behind(running: Running, kinds: tuple[str, ...]) -> None:
    """Nor do requests that fail, whose errors hold frames and values."""

    def of(kind: str) -> Callable[[int], Coroutine[Any, Any, None]]:
        async def make(_: int) -> None:
            with pytest.raises(Refused):
                await running.client.acall({"do": kind})

        return some_at_a_time(make)

    make = one_after_the_other([of(kind) for kind in kinds])
    assert leaks(running.client.handle.app_name, make, REQUESTS) == []


@pytest.mark.parametrize("by_reference", [True, False], ids=["default", "grpc"])
def test_conversions_leave_nothing_behind(running: Running, by_reference: bool) -> None:
    """``by_ref``, ``resolve`` and ``to_object_ref_gen`` leave nothing, on each transport."""
    app_name = running.client.handle.app_name
    maker: Any = serve.get_deployment_handle("Maker", app_name=app_name)
    maker = maker.options(_by_reference=by_reference)
    streaming = maker.options(stream=True, method_name="up_to")
    taker: Any = serve.get_deployment_handle("Taker", app_name=app_name)

    async def make(i: int) -> None:
        if i % 4:
            refs = await rc.by_ref([maker.remote(None)])
            assert await taker.listed.remote(refs) == SIZE
            assert len((await rc.resolve(refs))[0]) == SIZE
        else:
            items = await rc.to_object_ref_gen(streaming.remote(None))
            refs = [ref async for ref in items]
            assert list(map(len, await rc.resolve(refs))) == [SIZE] * ITEMS

    assert leaks(app_name, some_at_a_time(make), REQUESTS) == []


async def cancelled(running: Running, kind: str, requests: int) -> None:
    """Make requests that hang, ten at a time, and cancel them once they hang."""
    for start in range(0, requests, 10):
        calls = [
            asyncio.ensure_future(running.client.acall({"do": kind}))
            for _ in range(start, min(start + 10, requests))
        ]
        await settled(running, len(calls), calls)
        for call in calls:
            call.cancel()
        for call in calls:
            with pytest.raises(asyncio.CancelledError):
                await call
        await settled(running, 0, calls)


async def settled(running: Running, expected: int, calls: list[Any]) -> None:
    """Wait until so many calls hang in the stages."""
    deadline = time.monotonic() + 20
    while (now := await running.hanging()) != expected:
        failed = [call.exception() for call in calls if call.done() and not call.cancelled()]
        assert failed == []
        assert time.monotonic() < deadline, f"{now} calls hang, not {expected}"
        await asyncio.sleep(0.02)


@kinds_of("hang", "hang behind", "hang by reference", "hang in an actor")
def test_cancelled_requests_leave_nothing_behind(running: Running, kinds: tuple[str, ...]) -> None:
    """Cancelled calls stop in their stages, and leave nothing behind either."""
    make = one_after_the_other([partial(cancelled, running, kind) for kind in kinds])
    assert leaks(running.client.handle.app_name, make, CANCELLED) == []


@kinds_of("endless", "endless, taken whole")
def test_streams_left_early_leave_nothing_behind(running: Running, kinds: tuple[str, ...]) -> None:
    """A stream that its reader leaves stops at its source, and leaves nothing behind."""

    def of(kind: str) -> Callable[[int], Coroutine[Any, Any, None]]:
        async def leave(_: int) -> None:
            items: Any = running.client.astream({"do": kind})
            async with contextlib.aclosing(items):
                assert await anext(items) == SIZE

        return some_at_a_time(leave)

    make = one_after_the_other([of(kind) for kind in kinds])
    assert leaks(running.client.handle.app_name, make, CANCELLED) == []
    asyncio.run(settled(running, 0, []))


MIX = (
    *("by value", "by reference", "never awaited", "of an inline stage", "a mapped stream"),
    *("a stream taken whole", "an actor", "refused", "refused by reference", "hang", "endless"),
)
"""Tasks are left out: each that runs is a process, and they would be all of the load."""


async def one_of_a_mix(running: Running, kind: str) -> None:
    """Make a request of a kind: it succeeds, fails, passes its deadline, or is left early."""
    if kind == "endless":
        items: Any = running.client.astream({"do": kind})
        async with contextlib.aclosing(items):
            assert await anext(items) == SIZE
        return
    error = {"hang": TimeoutError, "refused": Refused, "refused by reference": Refused}.get(kind)
    with pytest.raises(error) if error else contextlib.nullcontext():
        result = await running.client.acall({"do": kind}, timeout_s=0.5 if kind == "hang" else 60)
        assert result in (SIZE, 0, [SIZE] * ITEMS)


@pytest.mark.skipif(not SOAK, reason="in seconds, what comes and goes hides what stays")
def test_a_mix_of_requests_leaves_nothing_behind(running: Running) -> None:
    """All kinds at once, at the highest load that sixteen clients make: all stays flat."""
    app_name = running.client.handle.app_name

    async def client(number: int, until: float) -> int:
        made = 0
        while time.monotonic() < until:
            await one_of_a_mix(running, MIX[(number + made) % len(MIX)])
            made += 1
        return made

    async def traffic(seconds: float) -> int:
        until = time.monotonic() + seconds
        return sum(await asyncio.gather(*(client(number, until) for number in range(16))))

    asyncio.run(traffic(MIXED_S / 10))  # imports, connections, caches, the allocators' reserves
    before = snapshot(app_name)
    before = snapshot(app_name)
    made = asyncio.run(traffic(MIXED_S))
    print(f"{made} requests in {MIXED_S} s")
    deadline = time.monotonic() + PATIENCE_S
    # As after a round of one kind, though there are several times as many requests.
    while found := left_behind(before, snapshot(app_name), REQUESTS):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert found == []
    asyncio.run(settled(running, 0, []))


SIGNS = {
    "keep_ref": ["object store: ", "Leaky", "references more"],
    "keep_value": ["Leaky", "blocks more"],
    "keep_memory": ["Leaky", "bytes of memory more"],
}


@kinds_of(*SIGNS)
def test_a_leak_is_noticed(running: Running, kinds: tuple[str, ...]) -> None:
    """The same check finds out a stage that keeps a reference, a small object, or memory."""

    def of(kind: str) -> Callable[[int], Coroutine[Any, Any, None]]:
        async def make(_: int) -> None:
            await running.client.acall({"do": kind})

        return some_at_a_time(make)

    make = one_after_the_other([of(kind) for kind in kinds])
    found = "\n".join(leaks(running.client.handle.app_name, make, 200, rounds=1))
    for kind in kinds:
        for sign in SIGNS[kind]:
            assert sign in found
