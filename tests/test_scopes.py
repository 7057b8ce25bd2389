"""What is started by reference ends with the attempt, the branch or the stream it belongs to."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined, untyped-decorator, no-untyped-call"

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from ray import serve
from starlette.testclient import TestClient
from support import pickle_by_value
from support.cluster import Deploy
from support.journal import write
from support.waiting import PATIENCE_S, until

import raycompose as rc

pickle_by_value(__name__)


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
        client.call(1, timeout_s=PATIENCE_S)
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
    client.call(1, timeout_s=PATIENCE_S)


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
        client.call(1, timeout_s=PATIENCE_S)


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


# The same in replicas


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
    """The branch starts before its upstream has ended, once its replica is warm."""
    call = {"case": case, "notes": ""}
    eager = (True, True) if case == "parallel" else True
    until(lambda: corners.call(call, timeout_s=PATIENCE_S) == eager)


def test_an_abandoned_attempt_is_cancelled_in_its_replica(
    corners: rc.Client, tmp_path: Any
) -> None:
    """What a failed branch started by reference is cancelled, although the request succeeds."""
    notes = tmp_path / "hangs"
    notes.touch()
    call = {"case": "abandoned by a fallback", "notes": str(notes)}
    assert corners.call(call, timeout_s=PATIENCE_S) == "another"
    until(lambda: notes.read_text() == "cancelled\n", within_s=20)


def test_a_streams_producer_runs_once_whoever_is_tried_again(
    corners: rc.Client, tmp_path: Any
) -> None:
    """A stage that was given a stream whole is not called again with it, on any engine."""
    notes = tmp_path / "begun"
    call = {"case": "a stream, tried again", "notes": str(notes)}
    with pytest.raises(ValueError, match="at the first item"):
        corners.call(call, timeout_s=PATIENCE_S)
    assert notes.read_text() == "begun\n"
