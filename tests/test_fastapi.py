"""A FastAPI ingress with embedded pipelines: its own app, with the pipelines' answers to errors."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import requests
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from ray import cloudpickle, serve
from ray.exceptions import WorkerCrashedError
from ray.serve.exceptions import BackPressureError
from starlette.testclient import TestClient
from support import pickle_by_value

import raycompose as rc

pickle_by_value(__name__)

HERE: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "graceful_shutdown_timeout_s": 0}


class Model:
    """A stage that batches, keeps models and fails as it is told."""

    @serve.multiplexed(max_num_models_per_replica=2)  # type: ignore[untyped-decorator]
    async def model(self, model_id: str) -> str:
        return model_id.upper()

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def doubled(self, xs: list[int]) -> list[int]:
        return [x * 2 for x in xs]

    async def __call__(self, x: Any) -> Any:
        if x == "model":
            return await self.model(serve.get_multiplexed_model_id())
        if x == "slow":
            await asyncio.sleep(30)
        if x == "busy":
            raise BackPressureError(num_queued_requests=3, max_queued_requests=2)
        if x == "taken":
            raise rc.HTTPError(409, "taken", {"X-By": "you"})
        if x == "bug":
            raise KeyError("secret")
        return await self.doubled(x)


def unavailable(x: Any) -> Any:
    if x == "lost":
        raise WorkerCrashedError
    return x


api = FastAPI()
rc.fastapi.install(api)


@api.middleware("http")
async def marked(request: Any, call_next: Any) -> Any:
    response = await call_next(request)
    response.headers["x-marked"] = "yes"
    return response


class Api:
    """Two pipelines behind routes."""

    def __init__(self, ask: Any, count: Any) -> None:
        self.pipeline = ask
        self.counting = count

    @api.post("/ask")
    async def ask(self, question: dict[str, Any]) -> Any:
        return await self.pipeline(question["x"])

    @api.get("/count")
    async def count(self, n: int) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async for item in self.counting.stream(n):
                yield f"{item}\n"

        return StreamingResponse(lines(), media_type="text/plain")

    @api.get("/missing")
    def missing(self) -> None:
        raise HTTPException(404, "no such thing")

    @api.get("/own")
    def own(self) -> None:
        raise LookupError("secret")

    async def upload(self, x: int, times: int = 1) -> Any:
        return await self.pipeline(x * times)


def numbers(n: int) -> Any:
    yield from range(n)


def application() -> Any:
    model = rc.stage(serve.deployment(Model, **HERE).bind(), timeout_s=2.0)
    ask = rc.pipeline(unavailable, model)
    ingress = serve.deployment(serve.ingress(api)(Api), name="Api", **HERE)
    return ingress.bind(ask.embed(), rc.pipeline(numbers, lambda x: x + 1).embed())


@pytest.fixture(scope="module", params=["local", "distributed"])
def client(request: pytest.FixtureRequest) -> Any:
    if request.param == "local":
        with rc.local(application()) as local:
            yield TestClient(local.asgi)
        return
    deployed = request.getfixturevalue("deploy")(application())
    session = requests.Session()
    session.request = _relative(session.request, str(deployed.url).rstrip("/"))  # type: ignore[method-assign]
    yield session


def _relative(request: Any, base: str) -> Any:
    return lambda method, path, **kwargs: request(method, base + path, timeout=30, **kwargs)


def ask(client: Any, x: Any, **headers: str) -> Any:
    return client.post("/ask", json={"x": x}, headers=headers)


def test_the_routes_answer(client: Any) -> None:
    """A route awaits or iterates an embedded pipeline, whose stages batch and keep models."""
    assert ask(client, 5).json() == 10
    assert ask(client, "model", serve_multiplexed_model_id="m1").json() == "M1"
    assert client.get("/count?n=3").text == "1\n2\n3\n"
    assert client.post("/ask", json=[]).status_code == 422


def test_timings_and_middleware(client: Any) -> None:
    """The embedded pipeline's stages are in Server-Timing; the app's own middleware runs, too."""
    answer = ask(client, 5)
    assert {part.split(";")[0] for part in answer.headers["server-timing"].split(", ")} >= {"Model"}
    assert answer.headers["x-marked"] == "yes"


ERRORS: dict[str, tuple[int, str]] = {
    "slow": (504, "Model"),
    "busy": (503, "Model"),
    "lost": (503, "unavailable"),
    "taken": (409, "Model"),
    "bug": (500, "Model"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_are_problem_details(client: Any, what: str) -> None:
    """A stage's failure has the status that it has without FastAPI, with stage and request id."""
    status, stage = ERRORS[what]
    answer = ask(client, what)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["stage"] == stage
    assert answer.json()["request_id"]
    assert "secret" not in answer.text
    if what == "busy":
        assert answer.headers["retry-after"] == "1"
    if what == "taken":
        assert (answer.json()["detail"], answer.headers["x-by"]) == ("taken", "you")


def test_the_apps_own_errors_stay_its_own(client: Any) -> None:
    """A route's HTTPException is FastAPI's; another error is a problem without a stage."""
    assert client.get("/missing").json() == {"detail": "no such thing"}
    own = client.get("/own")
    assert (own.status_code, own.json()["status"], "stage" in own.json()) == (500, 500, False)


def test_the_methods_of_a_local_ingress() -> None:
    """call(..., method=) reaches a method of the ingress; without one it says what to do."""
    with rc.local(application()) as client:
        assert client.call(2, times=3, method="upload") == 12
        with pytest.raises(TypeError, match=r"client\.asgi.*method="):
            client.call(2)
        with pytest.raises(AttributeError, match=r"'Api' has no method 'nope'; it has .*upload"):
            client.call(2, method="nope")
        assert "Api" in repr(client)


def test_two_local_ingresses_are_apart() -> None:
    """Each client's routes have their own instance for self, though Ray shares the app."""
    clients = [rc.local(application()) for _ in range(2)]
    for client in clients:
        assert TestClient(client.asgi).get("/count?n=1").text == "1\n"
        client.close()


def test_without_the_line_errors_are_fastapis() -> None:
    """An app in which nothing is installed answers a stage's error as FastAPI answers any."""
    plain = FastAPI()

    class Plain:
        def __init__(self, pipeline: Any) -> None:
            self.pipeline = pipeline

        @plain.post("/ask")
        async def ask(self, question: dict[str, Any]) -> Any:
            return await self.pipeline(question["x"])

    ingress = serve.deployment(serve.ingress(plain)(Plain))
    stage = rc.stage(serve.deployment(Model).bind(), timeout_s=0.1)
    with rc.local(ingress.bind(stage.embed())) as client:
        http = TestClient(client.asgi, raise_server_exceptions=False)
        assert http.post("/ask", json={"x": "slow"}).text == "Internal Server Error"
        assert "server-timing" not in http.post("/ask", json={"x": 5}).headers


def test_an_embedded_pipeline_outside_of_serve_says_what_to_do() -> None:
    """Awaiting it by hand names the deployment and the ways to run it."""
    embedded = rc.pipeline(serve.deployment(Model).bind()).embed()
    with pytest.raises(rc.RayComposeError, match=r"'Model' is a deployment.*rc\.local"):
        asyncio.run(embedded(1))


class Fussy:
    tries = 0

    def __init__(self) -> None:
        type(self).tries += 1
        if type(self).tries < 3:
            raise OSError(f"no disk, try {type(self).tries}")

    async def __call__(self, x: int) -> int:
        return x


def test_an_embedded_stage_that_cannot_start_is_tried_again() -> None:
    """Every call raises the constructor's error until it succeeds; on another loop, too."""
    Fussy.tries = 0
    embedded = rc.pipeline(serve.deployment(Fussy).bind()).fuse().embed()

    async def calls() -> list[Any]:
        found: list[Any] = [
            *await asyncio.gather(embedded(1), embedded(2), return_exceptions=True),
            *[await asyncio.gather(embedded(x), return_exceptions=True) for x in (3, 4, 5)],
        ]
        await embedded.close()
        return found

    first, second, third, *rest = asyncio.run(calls())
    assert [str(error) for error in (first, second)] == ["no disk, try 1"] * 2
    assert str(third[0]) == "no disk, try 2"
    assert rest == [[4], [5]]
    assert asyncio.run(calls()) == [1, 2, [3], [4], [5]]


def test_an_ingress_that_has_run_here_is_bound_again() -> None:
    """Its class keeps nothing of the instance: it pickles, and the instance is free to go."""
    bound = application()
    with rc.local(bound) as client:
        assert TestClient(client.asgi).post("/ask", json={"x": 5}).json() == 10
        again = rc.local(bound)  # while the other is open
        assert TestClient(again.asgi).post("/ask", json={"x": 6}).json() == 12
        again.close()
        deployment = bound._bound_deployment.options(num_replicas=2)
        assert len(cloudpickle.dumps(deployment.func_or_class)) < 100_000
        assert TestClient(client.asgi).post("/ask", json={"x": 7}).json() == 14
