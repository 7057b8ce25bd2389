"""References in pipelines: stages that take a result which may not exist yet."""

# mypy does not see what Ray's decorators add (.bind, .options, .remote), nor their types.
# mypy: disable-error-code="attr-defined, untyped-decorator"

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray
from ray import ObjectRef, serve
from support import pickle_by_value
from support.cluster import ENGINES, HERE, Deploy, open_on
from support.gate import gate

import raycompose as rc

pickle_by_value(__name__)

TIMEOUT_S = 15.0
here: dict[str, Any] = {**HERE, "max_ongoing_requests": 100}


class Refused(Exception):
    """What the stages of these tests fail with."""


def noted(error: BaseException) -> str:
    """An error's message with its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def slow(request: Any) -> Any:
    ray.get(gate().wait.remote())
    if request["fail"]:
        raise Refused("upstream")
    return "value"


async def slow_async(request: Any) -> Any:
    await gate().wait.remote()
    if request["fail"]:
        raise Refused("upstream")
    return "value"


class Slow:
    """Finishes only once somebody else has started."""

    async def __call__(self, request: Any) -> Any:
        return await slow_async(request)

    def now(self, request: Any) -> Any:
        return slow(request)


async def eager(ref: rc.Ref[Any]) -> Any:
    await gate().open.remote()
    return f"got {await ref}"


def eager_now(ref: rc.Ref[Any]) -> Any:
    ray.get(gate().open.remote())
    return f"got {ref.get(timeout_s=TIMEOUT_S)}"


async def eager_listed(refs: list[ObjectRef[Any]]) -> Any:
    await gate().open.remote()
    (ref,) = refs
    return f"got {await ref}"


async def eager_plain(ref: Any) -> Any:
    return await eager(ref)


async def catching(ref: rc.Ref[Any]) -> Any:
    await gate().open.remote()
    try:
        return await ref
    except Refused as error:
        return ["caught", rc.failed_stage(error), await again(ref)]


async def again(ref: rc.Ref[Any]) -> Any:
    """What awaiting the reference a second time raises."""
    try:
        return await ref
    except Refused as error:
        return str(error)


class Eager:
    """Lets its upstream finish, and then waits for it."""

    async def __call__(self, ref: rc.Ref[Any]) -> Any:
        return await eager(ref)

    def now(self, ref: rc.Ref[Any]) -> Any:
        return eager_now(ref)

    async def listed(self, refs: list[ObjectRef[Any]]) -> Any:
        return await eager_listed(refs)

    async def plain(self, ref: Any) -> Any:
        return await eager(ref)

    async def catching(self, ref: rc.Ref[Any]) -> Any:
        return await catching(ref)


class Both:
    """A Ray actor with methods of both kinds."""

    async def slow(self, request: Any) -> Any:
        return await slow_async(request)

    async def eager(self, ref: Any) -> Any:
        return await eager(ref)


UPSTREAMS = ("deployment", "def method", "def", "async def", "task", "actor",
             "pipeline", "branch", "limited")  # fmt: skip
DOWNSTREAMS = ("deployment", "def method", "listed", "pass_by", "def", "async def",
               "inline listed", "inline pass_by", "task", "actor", "named pipeline")  # fmt: skip
PATHS = [*((up, "deployment") for up in UPSTREAMS), *(("deployment", down) for down in DOWNSTREAMS),
         *((up, "async def") for up in UPSTREAMS if up != "deployment"),
         ("task", "task"), ("actor", "task"), ("task", "actor")]  # fmt: skip


@pytest.fixture(scope="module")
def both(_gate: Any) -> Iterator[Any]:
    """The Ray actor, looked up by its name as a user would."""
    actor = ray.remote(num_cpus=0, max_concurrency=100)(Both)
    actor.options(name="both", namespace="references", lifetime="detached").remote()
    found = ray.get_actor("both", namespace="references")
    yield found
    ray.kill(found)


def pipelines(both: Any) -> dict[str, Any]:
    """Every kind of upstream and of downstream, as ``"up > down"``."""
    slow_app = serve.deployment(Slow, **here).bind()
    eager_app = serve.deployment(Eager, **here).bind()
    slow_task, eager_task = ray.remote(num_cpus=0)(slow), ray.remote(num_cpus=0)(eager_now)

    def upstream(kind: str, name: str) -> Any:
        def first(target: Any, **options: Any) -> Any:
            return rc.stage(target, name=name, **options)

        makers: dict[str, Callable[[], Any]] = {
            "deployment": lambda: first(slow_app),
            "def method": lambda: first(slow_app, method="now"),
            "def": lambda: first(slow),
            "async def": lambda: first(slow_async),
            "task": lambda: first(slow_task),
            "actor": lambda: first(both.slow),
            "pipeline": lambda: rc.pipeline(lambda x: x, first(slow_app)),
            "branch": lambda: rc.when(lambda r: True, first(slow_app)),
            "limited": lambda: first(slow_app, timeout_s=TIMEOUT_S),
        }
        return makers[kind]()

    makers: dict[str, Callable[[], Any]] = {
        "deployment": lambda: eager_app,
        "def method": lambda: rc.stage(eager_app, method="now"),
        "listed": lambda: rc.stage(eager_app, method="listed"),
        "pass_by": lambda: rc.stage(eager_app, method="plain", pass_by="reference"),
        "catching": lambda: rc.stage(eager_app, method="catching"),
        "def": lambda: eager_now,
        "async def": lambda: eager,
        "inline listed": lambda: eager_listed,
        "inline pass_by": lambda: rc.stage(eager_plain, pass_by="reference"),
        "inline catching": lambda: catching,
        "task": lambda: eager_task,
        "actor": lambda: rc.stage(both.eager, pass_by="reference"),
        "named pipeline": lambda: rc.stage(rc.pipeline(eager_app, lambda x: x), name="part"),
    }
    paths = [*PATHS, ("deployment", "catching"), ("task", "inline catching")]
    return {
        f"{up} > {down}": rc.pipeline(upstream(up, f"first of {up} > {down}"), makers[down]())
        for up, down in paths
    }


@pytest.fixture(scope="module")
def engines(deploy: Deploy, both: Any) -> dict[str, rc.Client]:
    """One application with all of them, in replicas of their own, fused, and here."""
    app = rc.switch("path", pipelines(both))
    return {engine: open_on(engine, app, lambda: deploy) for engine in ENGINES}


EVERY_ENGINE = pytest.mark.parametrize("engine", ENGINES)
EVERY_PATH = pytest.mark.parametrize(
    "path", dict.fromkeys(f"{up} > {down}" for up, down in PATHS), ids=lambda p: p.replace(" ", "")
)


@EVERY_ENGINE
@EVERY_PATH
def test_a_stage_starts_before_its_upstream_has_finished(
    engines: dict[str, rc.Client], closed: Any, engine: str, path: str
) -> None:
    """The downstream starts first: its start is what lets the upstream finish."""
    request = {"path": path, "fail": False}
    assert engines[engine].call(request, timeout_s=TIMEOUT_S) == "got value"


@EVERY_ENGINE
@EVERY_PATH
def test_a_failed_upstream_raises_its_own_error(
    engines: dict[str, rc.Client], closed: Any, engine: str, path: str
) -> None:
    """What the upstream raised reaches the caller as it is, and names the upstream stage."""
    with pytest.raises(Refused, match="upstream") as caught:
        engines[engine].call({"path": path, "fail": True}, timeout_s=TIMEOUT_S)
    assert rc.failed_stage(caught.value) == f"first of {path}"
    assert noted(caught.value).count("raised in stage") == 1


@EVERY_ENGINE
@pytest.mark.parametrize("path", ["deployment > catching", "task > inline catching"])
def test_a_failed_upstream_raises_at_the_await(
    engines: dict[str, rc.Client], closed: Any, engine: str, path: str
) -> None:
    """The stage itself can catch the upstream's own error where it awaits the reference."""
    result = engines[engine].call({"path": path, "fail": True}, timeout_s=TIMEOUT_S)
    assert result == ["caught", f"first of {path}", "upstream"]


# --- Large values ---------------------------------------------------------------------------------


ARRAY = 20_000_000  # bytes


def written_bytes() -> int:
    """Return how many bytes were ever written to the object store."""
    from ray._private.internal_api import node_stats  # noqa: TID251  # nothing public sees the store

    (node,) = ray.nodes()
    stats: Any = node_stats(
        node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
    )
    return int(stats.store_stats.cumulative_created_bytes)


class Arrays:
    def make(self, size: int) -> Any:
        return np.zeros(size, np.uint8)

    async def forward(self, ref: rc.Ref[Any]) -> Any:
        return await ref

    async def forward_listed(self, refs: list[ObjectRef[Any]]) -> Any:
        return await refs[0]

    async def look(self, ref: rc.Ref[Any]) -> tuple[int, bool, bool]:
        array = await ref
        return len(array), array.flags.writeable, array.flags.owndata


@pytest.mark.parametrize("forward", ["forward", "forward_listed"])
def test_a_large_array_is_written_once_for_each_stage_that_gives_it(
    deploy: Deploy, forward: str
) -> None:
    """Three stages by reference write it twice, as the best by hand do; the last sees a view."""
    arrays = serve.deployment(Arrays, **here).bind()
    methods = ("make", forward, "look")
    client = deploy(rc.pipeline(*(rc.stage(arrays, method=method) for method in methods)))
    before = written_bytes()
    length, writeable, owns = client.call(ARRAY, timeout_s=TIMEOUT_S)
    assert (length, writeable, owns) == (ARRAY, False, False)
    assert 2 * ARRAY <= written_bytes() - before < 2.5 * ARRAY
