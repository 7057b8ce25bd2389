"""A deployment hosted in its caller's process, fused or local, means what a replica means."""

import asyncio
import gc
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import requests
from fastapi import FastAPI
from ray import serve
from ray.serve import context
from starlette.testclient import TestClient
from support import pickle_by_value
from support.waiting import until

import raycompose as rc
from raycompose import _serve

Deploy = Callable[..., rc.Client]

pickle_by_value(__name__)

HERE: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "graceful_shutdown_timeout_s": 5}
MODEL_ID = {"serve_multiplexed_model_id": "m1"}


# --- What is sent is what was composed ------------------------------------------------------------


class Locked:
    """Its class cannot be pickled any more once it has run, and it is pickled by value."""

    def __init__(self) -> None:
        type(self).lock = threading.Lock()  # type: ignore[attr-defined]  # that is the point

    def __call__(self, x: int) -> int:
        with type(self).lock:  # type: ignore[attr-defined]
            return x + 1


connection: Any = None


def connected(x: int) -> int:
    global connection
    connection = connection or threading.Lock()
    with connection:
        return x * 10


api = FastAPI()


class Api:
    @api.get("/hello")
    def hello(self) -> str:
        return "hello"

    def shout(self, x: int) -> str:
        return f"{x}!"


FastApi: Any = serve.deployment(serve.ingress(api)(Api), name="Api", **HERE)


@pytest.fixture(scope="module")
def grown(deploy: Deploy) -> rc.Client:
    """A fused pipeline of what cannot be pickled once it runs."""
    locked = serve.deployment(Locked, **HERE).bind()
    method = rc.stage(FastApi.bind(), method="shout")
    return deploy(rc.pipeline(locked, connected, method).fuse())


def test_what_becomes_unpicklable_is_deployed(grown: rc.Client) -> None:
    """A class, an ingress class and a global that hold a lock once they run do no harm."""
    assert grown.call(1) == "20!"


def test_a_restart_of_the_controller_keeps_what_has_run(grown: rc.Client) -> None:
    """The controller asks a replica for its arguments' handles, and keeps the replica."""
    assert grown.call(2) == "30!"
    name = grown._app_name  # type: ignore[attr-defined]
    before = replicas(name)
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    ray.kill(controller, no_restart=False)

    def again() -> bool:
        try:
            return bool(serve.status().applications[name].status == "RUNNING")
        except Exception:  # the controller is away
            return False

    until(again, within_s=60)
    assert replicas(name) == before
    assert grown.call(3) == "40!"


def test_a_missing_method_lists_the_public_ones(grown: rc.Client) -> None:
    """A handle that calls a method which the front does not have is told no private names."""
    with pytest.raises(
        Exception, match=r"'nope' that does not exist.*\['check_health', "
    ) as caught:
        grown.handle.nope.remote(1).result(timeout_s=30)
    listed = str(caught.value).partition("Available methods: ")[2]
    assert "'_" not in listed


def replicas(app_name: str) -> set[str]:
    """The ids of an application's replicas."""
    client: Any = context._get_global_client()
    app = client.get_serve_details()["applications"][app_name]
    return {r["replica_id"] for d in app["deployments"].values() for r in d["replicas"]}


# --- One application is one instance --------------------------------------------------------------


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, x: Any = None) -> int:
        self.calls += 1
        return self.calls


class Holder:
    def __init__(self, *held: Any) -> None:
        self.held = held

    async def __call__(self, x: Any) -> list[int]:
        return [await handle.remote() for handle in self.held]


def sharing() -> rc.Pipeline[Any, Any]:
    counting = serve.deployment(Counting, **HERE).bind()
    one = serve.deployment(Holder, name="One", **HERE).bind(counting)
    two = serve.deployment(Holder, name="Two", **HERE).bind(counting, counting)
    return rc.pipeline(counting, one, two, counting)


@pytest.mark.parametrize("engine", ["local", "fused", "distributed"])
def test_an_application_is_one_instance(engine: str, request: pytest.FixtureRequest) -> None:
    """A stage that is an argument of others as well is one instance, which all of them call."""
    app = sharing()
    if engine == "local":
        client: rc.Client = rc.local(app)
    else:
        client = request.getfixturevalue("deploy")(app.fuse() if engine == "fused" else app)
        assert len(replicas(client._app_name)) == (1 if engine == "fused" else 4)  # type: ignore[attr-defined]
    assert client.call(0) == 5
    assert client.call(0) == 10


def test_fusing_parts_apart_gives_one_instance() -> None:
    """Two pipelines that were fused on their own, and share a deployment, share its instance."""
    counting = serve.deployment(Counting).bind()
    a, b = rc.pipeline(counting).fuse(), rc.pipeline(counting).fuse()
    assert rc.local(rc.pipeline(a, b)).call(0) == 2


def test_an_application_in_two_places_is_refused() -> None:
    """Fused, and an argument of a deployment with replicas of its own, would be two instances."""
    with pytest.raises(rc.CompositionError, match=r"'Counting' is fused, but 'One'.*'One' as well"):
        _ = sharing().fuse("Counting")._bound_deployment
    counting = serve.deployment(Counting).bind()
    inner = serve.deployment(Holder, name="Inner").bind(counting)
    outer = serve.deployment(Holder, name="Outer").bind(inner)
    with pytest.raises(rc.CompositionError, match="'Counting' is fused, but 'Inner'"):
        _ = rc.pipeline(counting, outer).fuse("Counting")._bound_deployment


def test_what_a_fused_deployment_is_bound_to_joins_it() -> None:
    """Where a fused deployment is bound to what is bound to another fused one, all are fused."""
    counting = serve.deployment(Counting, ray_actor_options={"num_gpus": 1}).bind()
    inner = serve.deployment(Holder, name="Inner", ray_actor_options={"num_gpus": 2}).bind(counting)
    outer = serve.deployment(Holder, name="Outer").bind(inner)
    built = _serve.build(rc.pipeline(counting, outer).fuse(), "app").deployments
    assert [(d.name, d.ray_actor_options["num_gpus"]) for d in built] == [("Pipeline", 3)]
    built = _serve.build(rc.pipeline(outer).fuse(), "app").deployments
    assert [d.name for d in built] == ["Counting", "Inner", "Pipeline"]


def test_a_handle_in_this_process_is_a_handle() -> None:
    """Methods, streams, responses as arguments and sync results work by it."""

    class Inner:
        def plus(self, x: int, by: int = 1) -> int:
            return x + by

        def count(self, n: int) -> Iterator[int]:
            yield from range(n)

    class Outer:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, x: int) -> Any:
            items = self.inner.options(stream=True).count.remote(3)
            twice = self.inner.plus.remote(self.inner.plus.remote(x), by=5)
            return await twice, [item async for item in items]

        def blocking(self, x: int) -> Any:
            return self.inner.plus.remote(x).result(timeout_s=10)

    outer = serve.deployment(Outer).bind(serve.deployment(Inner).bind())
    assert rc.local(rc.pipeline(outer)).call(1) == (7, [0, 1, 2])
    assert rc.local(rc.stage(outer, method="blocking")).call(1) == 2


# --- Configuration --------------------------------------------------------------------------------


class Ranked:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def reconfigure(self, config: Any, rank: Any) -> None:
        self.seen.append((config, rank.rank))

    def __call__(self, x: Any) -> list[Any]:
        return self.seen


class Sized:
    """Sets the size of its batches when it is configured."""

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=30)  # type: ignore[untyped-decorator]
    async def __call__(self, xs: list[int]) -> list[tuple[int, int]]:
        return [(x, len(xs)) for x in xs]

    async def reconfigure(self, config: dict[str, Any]) -> None:
        self.__call__.set_max_batch_size(config["size"])
        self.__call__.set_batch_wait_timeout_s(config["wait_s"])


@serve.batch(max_batch_size=3, batch_wait_timeout_s=30)  # type: ignore[untyped-decorator]
async def batched(xs: list[int]) -> list[tuple[int, int]]:
    return [(x, len(xs)) for x in xs]


class Plain:
    def reconfigure(self, config: Any) -> None:
        raise AssertionError("there is no user_config")

    def __call__(self, x: Any) -> str:
        return "never configured"


class Lazy:
    """A plain method that returns a generator."""

    def __call__(self, x: int) -> Any:
        return (i for i in range(x))


class Models:
    def __init__(self) -> None:
        self.loaded: list[str] = []

    @serve.multiplexed(max_num_models_per_replica=2)  # type: ignore[untyped-decorator]
    async def model(self, model_id: str) -> str:
        self.loaded.append(model_id)
        return model_id.upper()

    async def __call__(self, x: Any) -> list[Any]:
        return [await self.model(serve.get_multiplexed_model_id()), self.loaded]


def everything() -> rc.Pipeline[Any, Any]:
    """One pipeline that runs what ``{"do": ...}`` says."""
    configured = {"user_config": {"size": 4, "wait_s": 30}, "max_ongoing_requests": 20}
    sized = serve.deployment(Sized, **configured, **HERE).bind()
    return rc.pipeline(
        rc.switch(
            "do",
            {
                "rank": serve.deployment(Ranked, **HERE).bind(),
                "sized": rc.pipeline(lambda v: [0, 1, 2, 3], rc.each(sized)),
                "inline batch": rc.pipeline(lambda v: [0, 1, 2], rc.each(batched)),
                "plain": serve.deployment(Plain, **HERE).bind(),
                "generator": rc.pipeline(lambda v: 3, serve.deployment(Lazy, **HERE).bind()),
                "inline generator": lambda v: (i for i in range(3)),
                "models": serve.deployment(Models, **HERE).bind(),
            },
        )
    )


@pytest.fixture(scope="module", params=["local", "fused", "distributed"])
def engine(request: pytest.FixtureRequest) -> rc.Client:
    if request.param == "local":
        return rc.local(everything())
    deploy: Deploy = request.getfixturevalue("deploy")
    return deploy(everything().fuse() if request.param == "fused" else everything())


def test_reconfigure_gets_the_rank(engine: rc.Client) -> None:
    """A reconfigure that takes the rank is called once, without a user_config too, as Ray does."""
    assert engine.call({"do": "rank"}) == [(None, 0)]


def test_reconfigure_sets_the_size_of_batches(engine: rc.Client) -> None:
    """@serve.batch's setters work in reconfigure."""
    assert engine.call({"do": "sized"}, timeout_s=20) == [(x, 4) for x in range(4)]


def test_a_batched_function_runs_inline(engine: rc.Client) -> None:
    """A @serve.batch function as an inline stage collects the calls of its pipeline."""
    assert engine.call({"do": "inline batch"}, timeout_s=20) == [(x, 3) for x in range(3)]


def test_reconfigure_is_not_called_without_a_config(engine: rc.Client) -> None:
    """Neither a user_config nor a rank: Ray does not call reconfigure."""
    assert engine.call({"do": "plain"}) == "never configured"


@pytest.mark.parametrize("do", ["generator", "inline generator"])
def test_a_generator_is_no_result(engine: rc.Client, do: str) -> None:
    """A plain method that returns a generator is an error, as Ray Serve has it."""
    with pytest.raises(TypeError, match="returned a generator") as caught:
        engine.call({"do": do})
    assert rc.failed_stage(caught.value) is not None


def test_models_are_multiplexed(engine: rc.Client) -> None:
    """The model-id header reaches the stage, and @serve.multiplexed keeps what it loaded."""
    http: Any = requests if engine.url else TestClient(engine.asgi)  # type: ignore[attr-defined]
    for _ in range(2):
        answer = http.post(engine.url or "/", json={"do": "models"}, headers=MODEL_ID)
        assert answer.json() == ["M1", ["m1"]]


# --- The end --------------------------------------------------------------------------------------


class Mortal:
    """Writes into a file what becomes of it."""

    def __init__(self, path: str, name: str = "mortal") -> None:
        self.path = path
        self.name = name

    def note(self, what: str) -> None:
        with Path(self.path).open("a") as journal:
            journal.write(f"{what}\n")

    async def __call__(self, x: Any) -> Any:
        return x

    def __del__(self) -> None:
        self.note(self.name)


class MortalModel(Mortal):
    """Ray calls a model's __del__, and Python again."""

    def __del__(self) -> None:
        if self.name:
            self.note(self.name)
        self.name = ""


class MortalModels(Mortal):
    @serve.multiplexed(max_num_models_per_replica=2)  # type: ignore[untyped-decorator]
    async def model(self, model_id: str) -> Any:
        return MortalModel(self.path, f"model {model_id}")

    async def __call__(self, x: Any) -> Any:
        await self.model("one")
        return x

    async def __del__(self) -> None:  # type: ignore[override]  # Ray awaits it
        await asyncio.sleep(0)
        self.note("awaited")


def mortals(path: Path) -> rc.Pipeline[Any, Any]:
    plain = serve.deployment(Mortal, **HERE).bind(str(path))
    models = serve.deployment(MortalModels, **HERE).bind(str(path))
    held = serve.deployment(Mortal, name="Held", **HERE).bind(str(path), "held")
    holder = serve.deployment(Holder, **HERE).bind()
    return rc.pipeline(plain, models, held, holder)


ENDS = ["awaited", "held", "model one", "mortal"]


def ends(path: Path) -> list[str]:
    return sorted(path.read_text().split("\n")[:-1]) if path.exists() else []


@pytest.mark.parametrize("how", ["close", "context", "forgotten"])
def test_local_stages_are_torn_down_once(tmp_path: Path, how: str) -> None:
    """__del__, async too, and the models' own, when a local client is closed or forgotten."""
    path = tmp_path / "journal"
    client = rc.local(mortals(path))
    client.call(1)
    if how == "context":
        with client:
            assert ends(path) == []
    elif how == "close":
        client.close()
        client.close()
    del client
    gc.collect()
    until(lambda: len(ends(path)) >= len(ENDS))
    gc.collect()
    assert ends(path) == ENDS


def test_a_closed_local_client_says_so() -> None:
    """A call after close() is an error rather than a call of what is gone."""
    client = rc.local(lambda x: x)
    client.close()
    with pytest.raises(rc.RayComposeError, match=r"closed.*rc\.local"):
        client.call(1)


def test_fused_stages_are_torn_down(deploy: Deploy, tmp_path: Path) -> None:
    """__del__, async too, and the models' own, when the application is deployed anew or deleted."""
    path = tmp_path / "journal"
    client = rc.run(mortals(path).fuse(), name="mortal", route_prefix="/mortal")
    client.call(1)
    client = rc.run(
        mortals(path).options(num_replicas=1).fuse() | (lambda x: x),
        name="mortal",
        route_prefix="/mortal",
    )
    until(lambda: ends(path) == ENDS, within_s=60)
    path.unlink()
    client.call(1)
    client.close()
    until(lambda: ends(path) == ENDS, within_s=60)


def test_a_batch_of_a_forgotten_client_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    """A local client that nobody closes leaves no task to be destroyed while it is pending."""

    class Waiting:
        @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
        async def __call__(self, xs: list[int]) -> list[int]:
            return xs

    with caplog.at_level(logging.ERROR, logger="asyncio"):
        for _ in range(3):
            assert rc.local(serve.deployment(Waiting).bind()).call(1) == 1
            gc.collect()
        time.sleep(0.2)
        gc.collect()
    assert "Task was destroyed" not in caplog.text


@serve.deployment
class Doubled:
    async def __call__(self, x: int) -> int:
        return 2 * x


@serve.deployment
class HandsOn:
    """Passes on a reference to what one deployment returns to another."""

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second

    async def __call__(self, x: int) -> Any:
        ref = await rc.to_object_ref(self.first.remote(x))
        return [await self.second.remote(ref), await self.second.remote(x=ref)]


def test_a_reference_that_is_an_argument_is_fetched() -> None:
    """As Ray does it between replicas, so an ingress that passes references on runs locally."""
    doubled: Any = Doubled
    hands_on: Any = HandsOn
    app = hands_on.bind(doubled.bind(), doubled.options(name="Again").bind())
    assert rc.local(rc.pipeline(app)).call(1) == [4, 4]


@serve.deployment(ray_actor_options={"num_cpus": 0})
class OpensLocally:
    """Uses a pipeline of its own, as a module does that tries one when it is imported."""

    def __call__(self, x: int) -> tuple[int, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            client = rc.local(rc.pipeline(lambda x: x + 1))
            result = client.call(x)
            del client
            gc.collect()
        return result, [str(one.message) for one in caught]


def test_a_local_pipeline_in_a_replica_is_local(deploy: Callable[..., rc.Client]) -> None:
    """It ends with its client, and leaves nothing that nobody awaits."""
    app: Any = OpensLocally
    assert deploy(rc.pipeline(app.bind())).call(1) == (2, [])
