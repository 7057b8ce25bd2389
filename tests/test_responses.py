"""What a result becomes over HTTP."""

import asyncio
import datetime
import enum
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from support.local_http import answer, failure, http
from support.results import Item, Point

import raycompose as rc
from raycompose import _serve
from raycompose.graph import metrics

# Results


class Color(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    "result", ["text", "", b"bytes", {"a": [1, None]}, [1], 3, 2.5, True, None]
)
def test_plain_results_are_what_ray_serve_sends(result: Any) -> None:
    """A value is sent as Ray Serve itself would send it: body and content type."""
    response = answer(result)
    body, content_type = _serve.encode_body(result)
    assert response.status_code == 200
    assert response.content == body
    assert response.headers["content-type"] == content_type


async def halves(request: Request) -> AsyncIterator[str]:
    yield "a"
    yield "\ud800"


def test_half_a_character_is_the_fault_of_its_stage() -> None:
    """Text that UTF-8 cannot hold is a 500 that names the stage, whole or in a stream."""
    answer = http(lambda: "\ud800").get("/")
    assert (answer.status_code, answer.json()["stage"]) == (500, "lambda")
    events = http(halves).get("/", headers={"accept": "text/event-stream"}).text
    assert '"stage":"halves"' in events


def sent_at_last() -> object:
    return object()


async def early() -> AsyncIterator[int]:
    if not early.__doc__:
        raise ValueError("before the first item")
    yield 1


async def late() -> AsyncIterator[int]:
    yield 1
    raise ValueError("after the first item")


async def unsendable() -> AsyncIterator[object]:
    yield 1
    yield object()


@pytest.mark.parametrize("stage", [sent_at_last, early, late, unsendable])
def test_what_fails_on_its_way_out_is_counted(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that fails, early or late, and what cannot be sent are errors of their stage."""
    counted: list[tuple[str, str]] = []
    monkeypatch.setattr(metrics, "count", lambda name, _, stage: counted.append((name, stage)))
    assert "stage" in http(stage).get("/").text
    assert counted == [("stage_errors", stage.__name__)]


def test_accept_may_be_in_several_lines() -> None:
    """Of several ``Accept`` lines each counts, as HTTP has it."""
    lines = [("accept", "application/json"), ("accept", "text/event-stream")]
    response = http(late).get("/", headers=lines)
    assert response.headers["content-type"].startswith("text/event-stream")


def test_text_is_sent_as_text() -> None:
    """A str is a text/plain body in UTF-8, without quotes."""
    response = answer("naïve")
    assert response.text == "naïve"
    assert response.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("result", "sent"),
    [
        (Item(name="a"), {"name": "a", "when": "2020-01-02"}),
        ([Item(name="a")], [{"name": "a", "when": "2020-01-02"}]),
        ({"item": Item(name="a")}, {"item": {"name": "a", "when": "2020-01-02"}}),
        (Point(1), {"x": 1, "at": None}),
        (Point(1, Item(name="a")), {"x": 1, "at": {"name": "a", "when": "2020-01-02"}}),
        ([Point(1)], [{"x": 1, "at": None}]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([1.5, 2.5], dtype=np.float32), [1.5, 2.5]),
        (np.array(5), 5),
        (np.float32(1.5), 1.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        ({"scores": np.array([1.0]), "n": np.int64(2)}, {"scores": [1.0], "n": 2}),
        ([np.float64(0.5)], [0.5]),
        ((1, 2), [1, 2]),
        ({"color": Color.RED}, {"color": "red"}),
        ({"path": Path("a")}, {"path": "a"}),
        ({"at": datetime.datetime(2020, 1, 2)}, {"at": "2020-01-02T00:00:00"}),
        ([{"deep": [Point(1)]}], [{"deep": [{"x": 1, "at": None}]}]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_rich_results_are_json(result: Any, sent: Any) -> None:
    """Pydantic models, dataclasses, NumPy and what stands inside them are sent as JSON."""
    response = answer(result)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert response.json() == sent


@pytest.mark.parametrize(
    "response",
    [
        PlainTextResponse("teapot", status_code=418, headers={"x-kind": "tea"}),
        JSONResponse({"a": 1}, status_code=201),
        Response(b"\x00\x01", media_type="image/png"),
        Response(status_code=204),
    ],
)
def test_a_starlette_response_is_sent_as_it_is(response: Response) -> None:
    """A Response keeps its status, headers and body."""
    got = answer(response)
    assert got.status_code == response.status_code
    assert got.content == response.body
    for key, value in response.headers.items():
        if key != "server-timing":
            assert got.headers[key] == value


def test_a_streaming_response_is_sent_as_it_is() -> None:
    """A StreamingResponse that a stage makes streams to the client."""

    async def stage() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in (b"a", b"b"):
                yield piece

        return StreamingResponse(pieces(), media_type="text/x-pieces")

    response = http(stage).get("/")
    assert (response.text, response.headers["content-type"]) == (
        "ab",
        "text/x-pieces; charset=utf-8",
    )


def test_one_response_object_may_be_returned_twice() -> None:
    """A Response that is made once and returned at every request stays as it is."""
    shared = PlainTextResponse("same")
    client = http(lambda: shared)
    assert [client.get("/").text for _ in range(2)] == ["same", "same"]


def test_a_result_that_cannot_be_sent_is_an_error_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A result with no HTTP form is a 500, and the log says what type it was."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with caplog.at_level(logging.ERROR, "ray.serve"):
        logging.getLogger("ray.serve").addHandler(caplog.handler)
        try:
            response = answer(Unsendable())
        finally:
            logging.getLogger("ray.serve").removeHandler(caplog.handler)
            logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    assert response.status_code == 500
    assert "Unsendable" not in response.text
    assert "Unsendable" in caplog.text


class Unsendable:
    __slots__ = ()


# Server-Timing


def test_server_timing_names_each_stage() -> None:
    """``Server-Timing`` gives each stage's time in milliseconds."""

    async def slow(x: Any = None) -> Any:
        await asyncio.sleep(0.05)
        return x

    timing = http(slow, rc.stage(lambda x: x, name="fast")).get("/").headers["server-timing"]
    times = dict(re.findall(r"([^,; ]+);dur=([0-9.]+)", timing))
    assert list(times) == ["slow", "fast"]
    assert 50 <= float(times["slow"]) < 1000
    assert float(times["fast"]) < 50


def test_server_timing_keeps_to_the_grammar() -> None:
    """A stage's name that is no token is made one, and never breaks the header."""
    app = rc.stage(lambda: 1, name="my stage;dur=0, évil\r\nx: y")
    timing = http(app).get("/").headers["server-timing"]
    assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+;dur=[0-9.]+", timing)


def test_server_timing_does_not_hide_a_responses_own() -> None:
    """A Response's own Server-Timing is kept beside the stages'."""

    def stage() -> Response:
        return PlainTextResponse("x", headers={"server-timing": "db;dur=5"})

    timings = http(stage).get("/").headers.get_list("server-timing")
    joined = ", ".join(timings)
    assert "db;dur=5" in joined
    assert "stage;dur=" in joined


# What keeps the connection in order, and JSON valid


def test_a_shared_response_is_not_changed() -> None:
    """A Response that is made once gets no header that stays with it."""
    shared = PlainTextResponse("same", headers={"x-kind": "1", "Transfer-Encoding": "chunked"})
    before = list(shared.raw_headers)
    client = http(lambda: shared)
    for _ in range(3):
        response = client.get("/")
        assert len(response.headers.get_list("server-timing")) == 1
        assert "transfer-encoding" not in response.headers
    assert shared.raw_headers == before


@pytest.mark.parametrize("name", ["Transfer-Encoding", "Connection", "Upgrade", "TE", "Trailer"])
def test_headers_of_the_connection_are_not_an_errors(name: str) -> None:
    """An error's headers say nothing of framing or the connection: those are the server's."""
    response = failure(rc.HTTPError(400, "x", {name: "chunked", "X-Kind": "1"}))
    assert name.lower() not in response.headers
    assert response.headers["x-kind"] == "1"


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_none(status: int) -> None:
    """``HTTPException(204)`` and ``(304)`` send no body, nor does a Response of that status."""
    response = failure(HTTPException(status, headers={"X-Kind": "1"}))
    assert (response.status_code, response.content) == (status, b"")
    assert response.headers["x-kind"] == "1"
    assert answer(JSONResponse("body", status_code=status)).content == b""


@pytest.mark.parametrize(
    ("result", "sent"),
    [
        (float("nan"), None),
        ([1.0, float("inf"), -float("inf")], [1.0, None, None]),
        ({"a": {"b": (float("nan"), 2)}}, {"a": {"b": [None, 2]}}),
        (np.array([1.0, np.nan]), [1.0, None]),
        (np.float32("nan"), None),
        ({"point": Point(1), "n": [float("nan")]}, {"point": {"x": 1, "at": None}, "n": [None]}),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_not_finite_is_null(result: Any, sent: Any) -> None:
    """NaN and the infinities are ``null`` in a result, and in an item: JSON does not have them."""
    assert answer(result).json() == sent

    def stage() -> Iterator[Any]:
        yield result

    assert json.loads(http(stage).get("/").text) == sent


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (Unsendable(), "Unsendable"),
        ({"a": [1, Unsendable()]}, "Unsendable in a list in a dict"),
        ([b"\xff"], "bytes in a list"),
        (rc.pipeline(len), "a description of what could run"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_sent_is_told_by_stage_and_type(result: Any, kind: str) -> None:
    """A result, or an item, that has no JSON form names the stage that gave it and its type."""

    def culprit() -> Any:
        return result

    def items() -> Iterator[Any]:
        yield 1
        yield result
        yield 2

    details = http(culprit, debug=True).get("/").json()
    assert (details["status"], details["stage"]) == (500, "culprit")
    assert kind in details["detail"]
    assert http(culprit).get("/").json()["stage"] == "culprit"
    if not isinstance(result, rc.Pipeline):
        first, error = map(json.loads, http(items, debug=True).get("/").text.splitlines())
        assert first == 1
        assert error["error"]["stage"] == "items"
        assert kind in error["error"]["detail"]


def test_a_function_that_returns_a_pipeline_is_told_so() -> None:
    """A pipeline is a description: returned from a stage it is an error that says what to do."""

    def choose() -> Any:
        return rc.pipeline(len)

    with pytest.raises(rc.RayComposeError, match=r"rc\.when") as caught:
        rc.local(rc.pipeline(choose)).call()
    assert rc.failed_stage(caught.value) == "choose"


def test_a_detail_that_is_an_object_is_a_member_of_its_own() -> None:
    """``detail`` is a string, as RFC 9457 has it; an object is in ``data``."""
    details = failure(rc.HTTPError(422, {"field": ["wrong"]})).json()
    assert details["data"] == {"field": ["wrong"]}
    assert json.loads(details["detail"]) == details["data"]
    assert "data" not in failure(rc.HTTPError(422, "text")).json()


@pytest.mark.parametrize("path", ["/below", "/below/it", "/a//b", "/%2e%2e/x"])
def test_paths_below_a_pipeline_are_404(path: str) -> None:
    """A pipeline answers at its own path alone, unless a stage takes the request."""
    response = http(lambda x=None: 1).get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"

    def asks(request: Request) -> str:
        return request.url.path

    assert http(asks).get("/below/it").text == "/below/it"
    assert http(lambda x=None: x, asks).get("/below/it?x=1").text == "/below/it"
