"""``rc.local(app).asgi``: an ASGI app that any server runs, as the deployed pipeline answers."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
import uvicorn
from fastapi import FastAPI, WebSocket
from ray import serve
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from support.cluster import free_port
from support.waiting import until

import raycompose as rc


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Run uvicorn with an ASGI app, and give its URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()


def test_the_stages_live_as_long_as_what_answers_http() -> None:
    """``rc.local(app).asgi`` is all that one keeps: nothing is torn down until it goes, too."""
    torn_down: list[bool] = []

    class Stage:
        @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]  # Ray's
        async def __call__(self, xs: list[int]) -> list[int]:
            return [x + 1 for x in xs]

        def __del__(self) -> None:
            torn_down.append(True)

    client = TestClient(rc.local(rc.pipeline(serve.deployment(Stage))).asgi)
    gc.collect()
    for x in range(3):
        assert client.post("/", json=x).json() == x + 1
        time.sleep(0.05)  # what was to end would have
    assert not torn_down
    del client
    gc.collect()
    until(lambda: torn_down)


def test_uvicorn_runs_it() -> None:
    """``uvicorn.run(rc.local(app).asgi)`` answers, again and again on one connection."""
    with served(rc.local(rc.pipeline(lambda x: x + 1)).asgi) as url, requests.Session() as session:
        assert [session.post(url, json=n).json() for n in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("server", ["uvicorn", "TestClient"])
def test_background_tasks_of_a_response_run_to_their_end(server: str) -> None:
    """A response's background task goes on when the client has its answer and has left."""
    done = []

    async def task() -> None:
        await asyncio.sleep(0.2)
        done.append(True)

    async def stage(x: Any) -> JSONResponse:
        return JSONResponse(x, background=BackgroundTask(task))

    asgi = rc.local(rc.pipeline(stage)).asgi
    if server == "uvicorn":
        with served(asgi) as url:
            assert requests.post(url, json=1, headers={"connection": "close"}).json() == 1
            until(lambda: done)
    else:
        assert TestClient(asgi).post("/", json=1).json() == 1
        until(lambda: done)


def test_a_stage_sees_when_the_client_leaves() -> None:
    """``is_disconnected()`` is false until the client has left, and then the stage is stopped."""
    asked: list[bool] = []
    stopped = threading.Event()

    async def stage(request: Request) -> AsyncIterator[str]:
        try:
            while not await request.is_disconnected():
                asked.append(False)
                yield "here\n"
                await asyncio.sleep(0.01)
        finally:
            stopped.set()

    with served(rc.local(rc.pipeline(stage)).asgi) as url:
        with requests.post(url, json=1, stream=True) as response:
            lines = response.iter_lines()
            assert [next(lines) for _ in range(5)] == [b"here"] * 5
        assert stopped.wait(30)
    assert len(asked) >= 5


@pytest.mark.parametrize("accept", ["text/plain", "application/x-ndjson", "text/event-stream"])
@pytest.mark.parametrize("mapped", [False, True], ids=["source", "mapped"])
def test_a_stage_whose_client_leaves_may_still_clean_up(accept: str, mapped: bool) -> None:
    """What a stream's stage awaits in ``finally`` is not cancelled again."""
    began, cleaned_up = threading.Event(), threading.Event()

    async def source(x: Any) -> AsyncIterator[str]:
        yield "here\n"
        if mapped:
            yield "hang"
        else:
            began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
            if not mapped:
                cleaned_up.set()

    async def hang(item: str) -> str:
        if item == "hang":
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.02)
                cleaned_up.set()
        return item

    app = rc.pipeline(source, hang) if mapped else rc.pipeline(source)
    with served(rc.local(app).asgi) as url:
        with requests.post(url, json=1, stream=True, headers={"accept": accept}) as response:
            lines = response.iter_lines()  # let go of, it would close the connection
            assert b"here" in next(lines)
            assert began.wait(30)
        assert cleaned_up.wait(30)


def test_a_request_has_an_id() -> None:
    """An error names its request, by the id that the sender gave it or by one of its own."""

    def stage(x: Any) -> Any:
        raise ValueError

    client = TestClient(rc.local(rc.pipeline(stage)).asgi)
    ids = [client.post("/", json=1).json()["request_id"] for _ in range(2)]
    assert len(set(ids)) == 2
    mine = client.post("/", json=1, headers={"x-request-id": "mine"})
    assert mine.json()["request_id"] == mine.headers["x-request-id"] == "mine"


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_leaves_the_connection_in_order(status: int) -> None:
    """A status that allows no body has none, and the connection's next request is answered."""

    def stage(what: Any) -> Any:
        if what == "raise":
            raise HTTPException(status)
        return JSONResponse("body", status_code=status) if what == "return" else what

    with served(rc.local(rc.pipeline(stage)).asgi) as url, requests.Session() as session:
        for what in ("raise", "return", "raise"):
            response = session.post(url, json=what)
            assert (response.status_code, response.content) == (status, b"")
            assert session.post(url, json=[what]).json() == [what]


def test_a_fastapi_ingress_answers_websockets() -> None:
    """Its routes get what the client sends, and are told when it has left."""
    api = FastAPI()
    left: list[int] = []

    @serve.deployment
    @serve.ingress(api)
    class Api:
        def __init__(self, pipeline: Any) -> None:
            self._pipeline = pipeline

        @api.websocket("/shout")
        async def shout(self, socket: WebSocket) -> None:
            await socket.accept()
            try:
                while (text := await socket.receive_text()) != "bye":
                    await socket.send_text(await self._pipeline(text))
                await socket.close(1001)
            except WebSocketDisconnect as error:
                self._pipeline.left(error.code)

    class Shout:
        async def __call__(self, text: str) -> str:
            return text.upper()

        def left(self, code: int) -> None:
            left.append(code)

    # Not a pipeline, whose copy could not tell this test.
    with rc.local(Api.bind(Shout())) as client:  # type: ignore[attr-defined]  # what Ray makes of it
        http = TestClient(client.asgi)
        with http.websocket_connect("/shout") as socket:
            for text in ("a", "b"):
                socket.send_text(text)
                assert socket.receive_text() == text.upper()
        until(lambda: len(left) == 1)  # 1000, or 1006 where TestClient was faster to end
        with http.websocket_connect("/shout") as socket:
            socket.send_text("bye")
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_text()
        assert closed.value.code == 1001
        with pytest.raises(WebSocketDisconnect), http.websocket_connect("/none"):
            pass


def test_a_pipeline_has_no_websockets() -> None:
    """A client that asks for one is refused, as by any server without that route."""
    with (
        pytest.raises(WebSocketDisconnect),
        TestClient(rc.local(rc.pipeline(str.upper)).asgi).websocket_connect("/"),
    ):
        pass
