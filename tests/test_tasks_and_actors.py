"""Ray tasks and actors as stages: between deployments, streaming, with options of their own."""

# mypy does not see what Ray's decorators add (.bind, .options, .remote), nor their types.
# mypy: disable-error-code="attr-defined, untyped-decorator"

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import ray
from ray import serve
from support import pickle_by_value
from support.cluster import HERE, Deploy
from support.gate import gate

import raycompose as rc

pickle_by_value(__name__)

TIMEOUT_S = 15.0
here: dict[str, Any] = {**HERE, "max_ongoing_requests": 100}
LARGE = 300_000
"""Bytes that Ray keeps in the object store rather than in the message."""


class Refused(Exception):
    """What the stages of these tests fail with."""


class Traced:
    """A value that knows in which processes it was unpickled."""

    def __init__(self, size: int, unpickled_in: tuple[int, ...] = ()) -> None:
        self.data = bytes(size)
        self.unpickled_in = unpickled_in

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.data, self.unpickled_in)


def _arrived(data: bytes, unpickled_in: tuple[int, ...]) -> Traced:
    traced = Traced(0, (*unpickled_in, os.getpid()))
    traced.data = data
    return traced


@ray.remote(num_cpus=0)
def failing(value: Any) -> Any:
    raise Refused(value)


def make(size: int) -> Traced:
    return Traced(size)


def measure(traced: Traced) -> dict[str, Any]:
    return {"unpickled_in": traced.unpickled_in, "pid": os.getpid(), "size": len(traced.data)}


def count(n: int) -> Iterator[int]:
    for i in range(n):  # noqa: UP028  # Ray sends values into it, which range(n) cannot take
        yield i


def count_gated(n: int) -> Iterator[int]:
    for i in range(n):
        if i == 1:
            ray.get(gate().wait.remote())
        yield i


class Tracer:
    """The same as deployment and as Ray actor."""

    def make(self, size: int) -> Traced:
        return make(size)

    def measure(self, traced: Traced) -> dict[str, Any]:
        return measure(traced)

    def forward(self, traced: Traced) -> Traced:
        return traced

    def count(self, n: int) -> Iterator[int]:
        yield from count(n)

    async def total(self, items: rc.Stream[int]) -> int:
        return sum([item async for item in items])

    async def each(self, item: int) -> int:
        return item * 10

    async def whole(self, items: rc.Stream[int]) -> AsyncIterator[int]:
        async for item in items:
            yield item * 100

    def fail(self, value: Any) -> Any:
        raise Refused(value)


BETWEEN = (("task", "deployment"), ("deployment", "task"), ("task", "task"),
           ("actor", "deployment"), ("deployment", "actor"), ("actor", "task"))  # fmt: skip


@pytest.fixture(scope="module")
def tracer(cluster: None) -> Iterator[Any]:
    """A Ray actor with no name."""
    actor = ray.remote(num_cpus=0)(Tracer).remote()
    yield actor
    ray.kill(actor)


@pytest.fixture(scope="module")
def mixed(deploy: Deploy, _gate: Any, tracer: Any) -> rc.Client:
    """One application for tasks and actors as stages, before and behind deployments."""
    app = serve.deployment(Tracer, **here).bind()
    task = ray.remote(num_cpus=0)

    def of(kind: str, method: str, function: Any) -> Any:
        if kind == "deployment":
            return rc.stage(app, method=method)
        return task(function) if kind == "task" else getattr(tracer, method)

    def method(name: str) -> Any:
        return rc.stage(app, method=name)

    between = {
        f"{a} > {b}": rc.pipeline(of(a, "make", make), of(b, "measure", measure))
        for a, b in BETWEEN
    }
    chains = {
        "chain": rc.pipeline(task(make), method("forward"), tracer.forward, task(measure)),
        "fail task": rc.pipeline(lambda x: x, task(failing._function), lambda x: x),
        "fail actor": rc.pipeline(lambda x: x, tracer.fail, lambda x: x),
    }
    streams = {
        "count": task(count),
        "deployment > count": rc.pipeline(lambda n: n + 1, task(count), method("each")),
        "count > whole": rc.pipeline(task(count), method("whole")),
        "gated": rc.pipeline(task(count_gated), method("each")),
        "actor count": rc.stage(tracer.count, stream=True),
        "collected": rc.pipeline(task(count), rc.collect),
        "total": rc.pipeline(task(count), method("total")),
    }

    def given(target: Any) -> Any:
        return rc.pipeline(lambda asked: asked["input"], target)

    return deploy(
        rc.switch("do", {k: given(v) for k, v in {**between, **chains, **streams}.items()})
    )


@pytest.mark.parametrize("size", [10, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("between", [f"{a} > {b}" for a, b in BETWEEN])
def test_values_pass_the_pipelines_replica_by(mixed: rc.Client, between: str, size: int) -> None:
    """A value from or for a task or actor is unpickled where it is used, and nowhere else."""
    seen = mixed.call({"do": between, "input": size}, timeout_s=TIMEOUT_S)
    assert seen["size"] == size
    assert seen["unpickled_in"] == (seen["pid"],)


def test_values_pass_the_pipelines_replica_by_in_a_chain(mixed: rc.Client) -> None:
    """Through task, deployment, actor and task a value is unpickled once in each that takes it."""
    seen = mixed.call({"do": "chain", "input": LARGE}, timeout_s=TIMEOUT_S)
    assert seen["size"] == LARGE
    assert len(seen["unpickled_in"]) == 3
    assert seen["unpickled_in"][-1] == seen["pid"]


@pytest.mark.parametrize(("do", "stage"), [("fail task", "failing"), ("fail actor", "fail")])
def test_a_failed_task_or_actor_call_names_its_stage(mixed: rc.Client, do: str, stage: str) -> None:
    """A stage that is a task or an actor's method raises the user's own error, naming itself."""
    with pytest.raises(Refused, match="why") as caught:
        mixed.call({"do": do, "input": "why"}, timeout_s=TIMEOUT_S)
    assert rc.failed_stage(caught.value) == stage


@pytest.mark.parametrize(
    ("do", "items"),
    [
        ("count", [0, 1, 2]),
        ("deployment > count", [0, 10, 20, 30]),
        ("count > whole", [0, 100, 200]),
        ("actor count", [0, 1, 2]),
    ],
)
def test_generators_of_tasks_stream(mixed: rc.Client, do: str, items: list[int]) -> None:
    """A task or actor method that is a generator is a stream, before and behind deployments."""
    assert list(mixed.stream({"do": do, "input": 3})) == items


@pytest.mark.parametrize(("do", "result"), [("collected", [0, 1, 2]), ("total", 3)])
def test_a_stream_of_a_task_can_be_taken_whole(mixed: rc.Client, do: str, result: Any) -> None:
    """``rc.collect`` and stages that take a stream take that of a task, too."""
    assert mixed.call({"do": do, "input": 3}, timeout_s=TIMEOUT_S) == result


def test_items_of_a_task_come_as_they_are_made(mixed: rc.Client, closed: Any) -> None:
    """The first item arrives before the task ends, which goes on only afterwards."""
    items = mixed.stream({"do": "gated", "input": 3})
    assert next(items) == 0
    ray.get(closed.open.remote())
    assert list(items) == [10, 20]


def test_a_generator_method_of_an_actor_is_a_stream(tracer: Any) -> None:
    """An actor's generator method streams without being told to, as every generator does."""
    app = rc.pipeline(lambda n: n, tracer.count)
    assert app.root.streams
    assert list(rc.local(app).stream(3)) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["task", "actor"])
def test_a_stage_may_be_a_task_with_options(tracer: Any, kind: str) -> None:
    """``task.options(...)`` and ``actor.method.options(...)`` are stages as they are."""
    task = ray.remote(make)
    target: Any = task.options(num_cpus=0) if kind == "task" else tracer.make.options(name="made")
    app = rc.pipeline(target, measure)
    assert rc.local(app).call(10, timeout_s=TIMEOUT_S)["size"] == 10


def test_options_of_a_task_are_kept(deploy: Deploy) -> None:
    """What ``.options(...)`` asks for is what the task gets."""

    @ray.remote
    def asked(_: Any) -> Any:
        return ray.get_runtime_context().get_assigned_resources()

    app: Any = rc.pipeline(asked.options(num_cpus=0, resources={"left": 1}))
    assert deploy(app).call(0, timeout_s=TIMEOUT_S) == {"left": 1}
