"""Pipelines embedded in deployments of one's own."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pydantic
import pytest
import requests
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from ray import serve
from support import pickle_by_value
from support.adding import Plus, deployed, numbers, plus
from support.cluster import HERE

import raycompose as rc

Deploy = Callable[..., rc.Client]

pickle_by_value(__name__)


def test_an_embedded_pipeline_is_an_awaitable_callable() -> None:
    """embed() gives the pipeline's result when awaited, without a cluster for functions."""
    embedded = rc.pipeline(lambda x, by=2: x * by, rc.parallel(repr, rc.passthrough)).embed()
    assert asyncio.run(embedded(3)) == ("6", 6)
    assert asyncio.run(embedded(3, by=3)) == ("9", 9)


def test_an_embedded_pipeline_streams() -> None:
    """embed().stream gives the items; calling it the wrong way round says what to do."""

    async def items(app: rc.Pipeline[Any, Any]) -> list[Any]:
        return [item async for item in app.embed().stream(3)]

    streaming, plain = rc.pipeline(numbers, lambda x: x * 2), rc.pipeline(lambda x: x)
    assert asyncio.run(items(streaming)) == [0, 2, 4]
    with pytest.raises(TypeError, match=r"use .*stream"):
        asyncio.run(streaming.embed()(3))
    with pytest.raises(TypeError, match="call it instead"):
        asyncio.run(items(plain))


def test_an_embedded_pipelines_stages_are_the_deployments_own() -> None:
    """A deployment with an embedded pipeline brings its stages along, and no front."""
    app = plus("A") | plus("B")
    outer = serve.deployment(Plus, name="Outer")
    assert deployed(outer.bind(app.embed())) == ["A", "B", "Outer"]
    assert deployed(outer.bind(app.fuse("B").embed())) == ["A", "Outer"]
    assert deployed(outer.bind(app.fuse().embed())) == ["Outer"]


def test_an_embedded_pipeline_is_a_stages_argument_on_the_local_engine() -> None:
    """A deployment with an embedded pipeline can itself be a stage, on the local engine too."""

    class Outer:
        def __init__(self, pipeline: Any) -> None:
            self.pipeline = pipeline

        async def __call__(self, x: int) -> int:
            result: int = await self.pipeline(x)
            return result * 10

    outer = serve.deployment(Outer).bind((plus("A") | plus("B")).embed())
    assert rc.local(outer).call(1) == 30


class Question(pydantic.BaseModel):
    n: int


class Answer(pydantic.BaseModel):
    result: int
    same_process: bool


def answer(x: int) -> dict[str, Any]:
    if x == 13:
        raise rc.HTTPError(409, "unlucky", {"X-Number": "13"})
    return {"result": x, "pid": os.getpid()}


api = FastAPI(title="Numbers")


class Api:
    """A FastAPI ingress that runs two pipelines."""

    def __init__(self, pipeline: Any, stream: Any) -> None:
        self.pipeline = pipeline
        self.streaming = stream

    @api.post("/predict")
    async def predict(self, question: Question) -> Answer:
        result = await self.pipeline(question.n)
        return Answer(result=result["result"], same_process=result["pid"] == os.getpid())

    @api.get("/items")
    async def items(self, n: int) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async for item in self.streaming.stream(n):
                yield f"{item}\n"

        return StreamingResponse(lines(), media_type="text/plain")


@pytest.fixture(scope="module")
def url(deploy: Deploy) -> str:
    """Where the FastAPI application answers."""
    ingress = serve.deployment(serve.ingress(api)(Api), **HERE)
    near, far = plus("Near", **HERE), plus("Far", **HERE)
    pipeline = rc.pipeline(near, far, answer).fuse("Near")
    client = deploy(ingress.bind(pipeline.embed(), rc.pipeline(numbers, near, far).embed()))
    assert client.url is not None
    return client.url


def test_fastapi_answers_with_an_embedded_pipeline(url: str) -> None:
    """A route awaits the pipeline in its own process; FastAPI validates what goes in and out."""
    response = requests.post(url + "predict", json={"n": 5}, timeout=30)
    assert response.json() == {"result": 7, "same_process": True}
    assert requests.post(url + "predict", json={"n": "five"}, timeout=30).status_code == 422


def test_fastapi_describes_itself(url: str) -> None:
    """The ingress's OpenAPI description has its routes and models, and there is a page for it."""
    description = requests.get(url + "openapi.json", timeout=30).json()
    assert description["info"]["title"] == "Numbers"
    assert set(description["paths"]) == {"/predict", "/items"}
    assert set(description["components"]["schemas"]) >= {"Question", "Answer"}
    assert "swagger" in requests.get(url + "docs", timeout=30).text.lower()


def test_fastapi_streams_from_an_embedded_pipeline(url: str) -> None:
    """A route passes the pipeline's items on as they come."""
    assert requests.get(url + "items?n=4", timeout=30).text == "2\n3\n4\n5\n"


def test_fastapi_answers_with_a_stages_http_error(url: str) -> None:
    """An rc.HTTPError in a stage becomes that HTTP status, with its headers, here too."""
    response = requests.post(url + "predict", json={"n": 11}, timeout=30)
    assert response.status_code == 409
    assert response.headers["X-Number"] == "13"
    assert "unlucky" in response.text


def test_an_embedded_pipeline_adds_no_deployment(url: str) -> None:
    """Serve sees the ingress and the stages that are not fused, and no front of the pipeline."""
    name = url.rstrip("/").rsplit("/", 1)[-1]
    assert set(serve.status().applications[name].deployments) == {"Api", "Near", "Far"}
