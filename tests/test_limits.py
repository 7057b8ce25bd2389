"""Limits on a stage: deadlines, attempts, and what is cancelled."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
from starlette.testclient import TestClient
from support.waiting import apoll

import raycompose as rc
from raycompose.errors import TRANSIENT

retry: Any = rc.Retry  # for arguments that the type checker would refuse
FAST: Any = {"initial_s": 0.001, "max_s": 0.002, "min_per_s": 1e6}


class Watched:
    """A stage that notes when it began and when it was cancelled."""

    def __init__(self, seconds: float = 30) -> None:
        self.seconds = seconds
        self.began = 0
        self.cancelled = threading.Event()

    async def __call__(self, x: Any = None) -> Any:
        self.began += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return x


class Flaky:
    """Raises the errors it was given, one per call, and then gives its input."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.times: list[float] = []

    async def __call__(self, x: Any = None) -> Any:
        self.times.append(time.monotonic())
        if self.errors:
            raise self.errors.pop(0)
        return x


def drain(items: Iterator[Any], into: list[Any]) -> None:
    """Append items one by one, so that those before an error are there."""
    for item in items:
        into.append(item)  # see above


def elapsed(call: Callable[[], Any]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def transient(kind: type[Exception]) -> Exception:
    """Return an instance of a fault of the place that ran the stage."""
    if kind is BackPressureError:
        return BackPressureError(1, 1, 503, 0.0)
    made: Exception = kind.__new__(kind)  # whatever arguments Ray makes them with
    return made


# Retry: the policy


@pytest.mark.parametrize(
    "make",
    [
        lambda: rc.Retry(attempts=0),
        lambda: rc.Retry(attempts=-1),
        lambda: rc.Retry(attempts=True),
        lambda: retry(attempts=2.0),
        lambda: retry(attempts="3"),
        lambda: rc.Retry(initial_s=-1),
        lambda: rc.Retry(max_s=-0.1),
        lambda: retry(initial_s="1"),
        lambda: rc.Retry(max_s=float("nan")),
        lambda: retry(on=("ValueError",)),
        lambda: retry(on=42),
        lambda: retry(on=(BaseException,)),
        lambda: retry(on=(ValueError(),)),
    ],
)
def test_a_wrong_policy_is_refused(make: Callable[[], Any]) -> None:
    """A policy that makes no sense is refused where it is written, naming the argument."""
    with pytest.raises((TypeError, ValueError), match=r"attempts|initial_s|max_s|on "):
        make()


def test_a_single_exception_type_is_accepted() -> None:
    """``on=ValueError`` means ``on=(ValueError,)``."""
    assert rc.Retry(on=ValueError).on == (ValueError,)  # type: ignore[arg-type]  # forgiven


def test_a_policy_is_a_value() -> None:
    """Two policies with the same fields are equal, and a policy cannot be changed."""
    assert rc.Retry(attempts=2) == rc.Retry(attempts=2)
    with pytest.raises(AttributeError):
        rc.Retry().attempts = 5  # type: ignore[misc]


# Retry: at work


@pytest.mark.parametrize("kind", TRANSIENT, ids=lambda kind: kind.__name__)
def test_transient_faults_are_tried_again(kind: type[Exception]) -> None:
    """A replica or actor that died or is unavailable, and back-pressure, are tried again."""
    stage = Flaky(transient(kind), transient(kind))
    assert rc.local(rc.stage(stage, retry=rc.Retry(attempts=3, **FAST))).call(5) == 5
    assert len(stage.times) == 3


def test_the_transient_faults_are_those_of_ray() -> None:
    """Every fault of the place that Ray reports for a lost replica, actor or worker is covered."""
    lost = {
        ActorDiedError,
        ActorUnavailableError,
        WorkerCrashedError,
        BackPressureError,
        ReplicaUnavailableError,
    }
    assert all(issubclass(fault, TRANSIENT) for fault in lost)


def test_the_users_own_exceptions_are_not_tried_again() -> None:
    """An exception of the stage itself is raised at once unless it is listed."""
    stage = Flaky(ValueError("mine"))
    with pytest.raises(ValueError, match="mine"):
        rc.local(rc.stage(stage, retry=5)).call(5)
    assert len(stage.times) == 1


def test_listed_exceptions_are_tried_again() -> None:
    """Exceptions in ``on``, and their subclasses, are tried again; others are not."""
    stage = Flaky(KeyError("k"), IndexError("i"))
    policy = rc.Retry(attempts=3, on=(LookupError,), **FAST)
    assert rc.local(rc.stage(stage, retry=policy)).call(5) == 5
    other = Flaky(KeyError("k"), ValueError("v"))
    with pytest.raises(ValueError, match="v"):
        rc.local(rc.stage(other, retry=policy)).call(5)
    assert len(other.times) == 2


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_attempts_count_the_first(attempts: int) -> None:
    """``attempts=N`` runs the stage N times at most, and raises the last error as it is."""
    stage = Flaky(*(ValueError(n) for n in range(9)))
    policy = rc.Retry(attempts=attempts, on=(ValueError,), **FAST)
    with pytest.raises(ValueError, match=str(attempts - 1)) as caught:
        rc.local(rc.stage(stage, name="flaky", retry=policy)).call(5)
    assert len(stage.times) == attempts
    assert rc.failed_stage(caught.value) == "flaky"


def test_a_number_is_a_number_of_attempts() -> None:
    """``retry=2`` is ``retry=rc.Retry(attempts=2)``."""
    stage = Flaky(*(transient(WorkerCrashedError) for _ in range(9)))
    with pytest.raises(WorkerCrashedError):
        rc.local(rc.stage(stage, retry=2)).call(5)
    assert len(stage.times) == 2


def test_waits_grow_up_to_their_limit() -> None:
    """Without jitter the waits are initial_s, twice that, and so on up to max_s."""
    stage = Flaky(*(ValueError() for _ in range(4)))
    policy = rc.Retry(5, on=(ValueError,), initial_s=0.05, max_s=0.1, jitter=False, min_per_s=100)
    rc.local(rc.stage(stage, retry=policy)).call(5)
    waits = [b - a for a, b in zip(stage.times, stage.times[1:], strict=False)]
    assert all(w >= least * 0.9 for w, least in zip(waits, [0.05, 0.1, 0.1, 0.1], strict=True))
    assert max(waits) < 1


def test_back_pressure_waits_as_long_as_it_asks() -> None:
    """Back-pressure with ``retry_after_s`` is waited for, whatever the policy's own waits."""
    stage = Flaky(BackPressureError(1, 1, 503, 0.3))
    rc.local(rc.stage(stage, retry=rc.Retry(2, **FAST))).call(5)
    assert 0.3 <= stage.times[1] - stage.times[0] < 5


def test_a_sub_pipeline_is_tried_again_as_a_whole() -> None:
    """A retry on a sub-pipeline runs all its stages again."""
    seen = []
    stage = Flaky(ValueError())

    def first(x: int) -> int:
        seen.append(x)
        return x + 1

    inner = rc.stage(rc.pipeline(first, stage), retry=rc.Retry(2, on=(ValueError,), **FAST))
    assert rc.local(rc.pipeline(lambda x: x, inner)).call(1) == 2
    assert seen == [1, 1]


def test_a_stream_is_tried_again_before_its_first_item() -> None:
    """A stream that failed before its first item is begun again."""
    begun = []

    def items(n: int) -> Iterator[int]:
        begun.append(n)
        if len(begun) < 3:
            raise ValueError("not yet")
        yield from range(n)

    policy = rc.Retry(3, on=(ValueError,), **FAST)
    assert list(rc.local(rc.stage(items, retry=policy)).stream(3)) == [0, 1, 2]
    assert len(begun) == 3


def test_a_stream_is_never_tried_again_after_its_first_item() -> None:
    """Once an item is out, a stream's failure is raised: nothing is sent twice."""
    begun = []

    def items(n: int) -> Iterator[int]:
        begun.append(n)
        yield 1
        raise ValueError("broken")

    policy = rc.Retry(3, on=(ValueError,), **FAST)
    got: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        drain(rc.local(rc.stage(items, retry=policy)).stream(3), got)
    assert (got, len(begun)) == ([1], 1)


# Deadlines


def test_a_stage_past_its_deadline_is_cancelled() -> None:
    """Past ``timeout_s`` the stage is cancelled and StageTimeoutError is raised, naming it."""
    stage = Watched()
    app = rc.pipeline(lambda x: x, rc.stage(stage, name="slow", timeout_s=0.1))
    started = time.monotonic()
    with pytest.raises(rc.StageTimeoutError) as caught:
        rc.local(app).call(1)
    assert time.monotonic() - started < 5
    assert stage.cancelled.wait(5)
    assert (caught.value.stage, caught.value.timeout_s) == ("slow", 0.1)
    assert rc.failed_stage(caught.value) == "slow"


def test_a_stage_within_its_deadline_is_untouched() -> None:
    """A stage that is quick enough gives its result."""
    assert rc.local(rc.stage(Watched(0), timeout_s=5)).call(7) == 7


def test_a_deadline_is_a_504() -> None:
    """Over HTTP a passed deadline answers 504 and names the stage."""
    response = TestClient(rc.local(rc.stage(Watched(), timeout_s=0.1)).asgi).get("/")
    assert response.status_code == 504
    assert response.json()["stage"] == "Watched"


def test_a_deadline_counts_all_attempts() -> None:
    """``timeout_s`` is over all attempts and the waits between them."""
    stage = Flaky(*(ValueError() for _ in range(1000)))
    policy = rc.Retry(
        1000, on=(ValueError,), initial_s=0.05, max_s=0.05, jitter=False, min_per_s=100
    )
    app = rc.stage(stage, retry=policy, timeout_s=0.3)
    with pytest.raises(rc.StageTimeoutError):
        rc.local(app).call(1)
    assert 2 <= len(stage.times) <= 7


def test_a_sub_pipeline_has_one_deadline() -> None:
    """``timeout_s`` on a sub-pipeline is over all its stages together, under its name."""
    second = Watched()
    inner = rc.pipeline(Watched(0.05), second)
    with pytest.raises(rc.StageTimeoutError) as caught:
        rc.local(rc.stage(inner, name="inner", timeout_s=0.2)).call(1)
    assert caught.value.stage == "inner"
    assert second.began == 1
    assert second.cancelled.wait(5)


@pytest.mark.parametrize(("outer", "inner", "fires"), [(0.1, 30, "outer"), (30, 0.1, "inner")])
def test_a_nested_deadline_never_outlives_its_parents(
    outer: float, inner: float, fires: str
) -> None:
    """Of nested deadlines the earlier one fires, and is named."""
    stage = Watched()
    nested = rc.stage(rc.pipeline(rc.stage(stage, name="inner", timeout_s=inner), len),
                      name="outer", timeout_s=outer)  # fmt: skip
    with pytest.raises(rc.StageTimeoutError) as caught:
        rc.local(nested).call(1)
    assert caught.value.stage == fires
    assert stage.cancelled.wait(5)


def test_a_timeout_error_of_the_user_is_not_taken_for_the_deadline() -> None:
    """A TimeoutError that a stage raises by itself stays what it is."""
    with pytest.raises(TimeoutError, match="mine") as caught:
        rc.local(rc.stage(Flaky(TimeoutError("mine")), timeout_s=30)).call(1)
    assert not isinstance(caught.value, rc.StageTimeoutError)


def test_a_deadline_does_not_wait_for_a_thread() -> None:
    """A ``def`` stage cannot be interrupted, but its caller does not wait for it."""
    release = threading.Event()

    def blocking(x: int) -> int:
        release.wait(30)
        return x

    try:
        assert elapsed(lambda: _times_out(rc.stage(blocking, timeout_s=0.1))) < 5
    finally:
        release.set()


@pytest.mark.parametrize("stall_after", [0, 1])
def test_a_deadline_covers_a_streams_items(stall_after: int) -> None:
    """A stream that stalls, before its first item or after, passes its deadline."""
    stopped = threading.Event()

    async def items(n: int) -> AsyncIterator[int]:
        try:
            for i in range(n):
                if i == stall_after:
                    await asyncio.sleep(3)
                yield i
        finally:
            stopped.set()

    client = rc.local(rc.stage(items, timeout_s=0.2))
    got: list[int] = []
    started = time.monotonic()
    with pytest.raises(rc.StageTimeoutError):
        got.extend(client.stream(3))
    assert time.monotonic() - started < 2
    assert stopped.wait(5)


def _times_out(app: Any) -> None:
    with pytest.raises(rc.StageTimeoutError):
        rc.local(app).call(1)


# Cancellation


def test_a_failure_cancels_its_siblings() -> None:
    """The first failure of a parallel cancels what still runs, and is raised."""
    sibling = Watched()

    async def failing(x: Any) -> Any:
        await apoll(lambda: sibling.began)
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        rc.local(rc.parallel(sibling, failing)).call(1)
    assert sibling.cancelled.wait(5)


@pytest.mark.parametrize(
    "wrap",
    [
        rc.pipeline,
        rc.parallel,
        lambda stage: rc.stage(stage, retry=5),
        lambda stage: rc.stage(stage, timeout_s=60),
        lambda stage: rc.pipeline(lambda x: [x], rc.each(stage)),
        lambda stage: rc.fallback(stage, stage),
    ],
    ids=["plain", "parallel", "retry", "timeout", "each", "fallback"],
)
def test_a_callers_timeout_cancels_what_runs(wrap: Callable[[Any], Any]) -> None:
    """``call(timeout_s=...)`` cancels the stage under way, and runs no other."""
    stage = Watched()
    with pytest.raises(TimeoutError):
        rc.local(wrap(stage)).call(1, timeout_s=0.2)
    assert stage.cancelled.wait(5)
    assert stage.began == 1


def test_cancelling_the_awaiting_task_cancels_what_runs() -> None:
    """Cancelling ``await client.acall(...)`` cancels the stage under way."""
    stage = Watched()
    client = rc.local(rc.pipeline(lambda x: x, stage))

    async def call() -> None:
        task = asyncio.ensure_future(client.acall(1))
        await apoll(lambda: stage.began)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(call())
    assert stage.cancelled.wait(5)


def test_a_client_that_disconnects_cancels_what_runs() -> None:
    """An HTTP client that goes away cancels the stages that work for it."""
    stage = Watched()
    app = rc.local(rc.pipeline(stage)).asgi

    async def request() -> None:
        gone = asyncio.Event()
        first = True

        async def receive() -> Any:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        task = asyncio.ensure_future(app(scope, receive, send))
        await apoll(lambda: stage.began)
        gone.set()
        await apoll(stage.cancelled.is_set)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    started = time.monotonic()
    asyncio.run(request())
    assert stage.cancelled.is_set()
    assert time.monotonic() - started < 4


# Back-pressure


def test_too_many_waiting_is_back_pressure() -> None:
    """What exceeds ``max_queued_requests`` of a hosted deployment is a BackPressureError."""
    stage: Any = serve.deployment(Watched).options(
        max_ongoing_requests=1, max_queued_requests=1
    ).bind(0.5)  # fmt: skip
    client = rc.local(stage)

    async def call() -> list[Any]:
        return await asyncio.gather(
            *(client.acall(n) for n in range(4)), return_exceptions=True
        )  # fmt: skip

    results = asyncio.run(call())
    assert sorted(r for r in results if isinstance(r, int)) == results[:2] == [0, 1]
    assert [type(r) for r in results[2:]] == [BackPressureError, BackPressureError]


def test_a_stage_runs_no_more_than_max_ongoing_requests() -> None:
    """``max_ongoing_requests`` of a deployment holds on the local engine."""

    class Gauge:
        def __init__(self) -> None:
            self.now = self.most = 0

        async def __call__(self, x: int) -> int:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.02)
            self.now -= 1
            return self.most

    app = rc.each(serve.deployment(Gauge).options(max_ongoing_requests=3).bind(), 20)
    assert max(rc.local(app).call(list(range(12)))) == 3
