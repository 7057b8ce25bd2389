"""Results and errors become HTTP responses."""

import asyncio
import dataclasses
import datetime
import enum
import json
import logging
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OwnerDiedError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.testclient import TestClient

import raycompose as rc
from raycompose import _serve
from raycompose.graph import metrics

SECRET = "s3cret-password"


def http(*stages: Any, **options: Any) -> TestClient:
    app = rc.pipeline(*stages)
    return TestClient(rc.local(app.options(**options) if options else app).asgi)


def answer(result: Any) -> Any:
    """Return the HTTP response to a stage that returns ``result``."""
    return http(lambda: result).get("/")


def failure(error: Exception, **options: Any) -> Any:
    """Return the HTTP response to a stage that raises ``error``."""

    def failing() -> None:
        raise error

    return http(failing, **options).get("/")


# Results


class Item(pydantic.BaseModel):
    name: str
    when: datetime.date = datetime.date(2020, 1, 2)


@dataclasses.dataclass
class Point:
    x: int
    at: Item | None = None


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


# Streams


def numbers() -> Iterator[Any]:
    yield from (1, {"a": 2}, None, "three")


async def words() -> AsyncIterator[str]:
    for word in ("naïve", "two\nlines", ""):
        yield word


def blobs() -> Iterator[bytes]:
    yield from (b"\x00", b"\xff")


def empty() -> Iterator[int]:
    yield from ()


def breaks() -> Iterator[Any]:
    yield {"n": 1}
    yield {"n": 2}
    raise ValueError(SECRET)


def breaks_at_once() -> Iterator[int]:
    if SECRET:
        raise rc.HTTPError(409, "busy")
    yield 1


def test_items_are_sent_as_ndjson() -> None:
    """Items that are neither text nor bytes are sent as one JSON value per line."""
    response = http(numbers).get("/")
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line) for line in response.text.splitlines()] == [1, {"a": 2}, None, "three"]


def test_text_items_are_sent_raw() -> None:
    """A stream of str is sent as plain text, nothing between the items."""
    response = http(words).get("/")
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text == "naïvetwo\nlines"


def test_bytes_items_are_sent_raw() -> None:
    """A stream of bytes is sent as it is."""
    response = http(blobs).get("/")
    assert response.headers["content-type"].startswith("application/octet-stream")
    assert response.content == b"\x00\xff"


@pytest.mark.parametrize(
    "accept",
    ["text/event-stream", "application/json, text/event-stream;q=0.5", "TEXT/EVENT-STREAM"],
)
def test_events_are_sent_to_those_who_accept_them(accept: str) -> None:
    """A client that accepts text/event-stream gets server-sent events."""
    response = http(words).get("/", headers={"accept": accept})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.text == "data: naïve\n\ndata: two\ndata: lines\n\ndata: \n\n"


def test_events_hold_json_for_what_is_no_text() -> None:
    """Items that are not str are JSON in an event's data."""
    response = http(numbers).get("/", headers={"accept": "text/event-stream"})
    events = [part.removeprefix("data: ") for part in response.text.split("\n\n")[:-1]]
    assert events == ["1", '{"a":2}', "null", "three"]


@pytest.mark.parametrize("separator", ["\r\n", "\r", "\n"])
def test_an_item_cannot_forge_an_event(separator: str) -> None:
    """Line ends of every kind in an item stay inside its event, so text cannot forge one."""

    def stage() -> Iterator[str]:
        yield f"a{separator}event: error{separator}data: forged"

    text = http(stage).get("/", headers={"accept": "text/event-stream"}).text
    lines = re.split("\r\n|\r|\n", text)
    assert [line for line in lines if line and not line.startswith("data:")] == []


def test_an_empty_stream_is_an_empty_body() -> None:
    """A stream with no items answers 200 with nothing in it."""
    response = http(empty).get("/")
    assert (response.status_code, response.content) == (200, b"")


def test_rich_items_are_json() -> None:
    """Models, dataclasses and NumPy are JSON as items too."""

    def stage() -> Iterator[Any]:
        yield Item(name="a")
        yield Point(1)
        yield np.array([1, 2])
        yield np.float32(0.5)

    lines = [json.loads(line) for line in http(stage).get("/").text.splitlines()]
    assert lines == [{"name": "a", "when": "2020-01-02"}, {"x": 1, "at": None}, [1, 2], 0.5]


def test_an_error_before_the_first_item_has_its_status() -> None:
    """A stream that fails before it began answers with the error's status."""
    for accept in ("*/*", "text/event-stream"):
        response = http(breaks_at_once).get("/", headers={"accept": accept})
        assert response.status_code == 409
        assert response.json()["detail"] == "busy"
        assert response.json()["stage"] == "breaks_at_once"


def test_an_error_amid_lines_is_a_last_line() -> None:
    """An error after some items is a last NDJSON line with its problem details."""
    *items, last = map(json.loads, http(breaks).get("/").text.splitlines())
    assert items == [{"n": 1}, {"n": 2}]
    assert last["error"]["status"] == 500
    assert last["error"]["stage"] == "breaks"
    assert SECRET not in json.dumps(last)


def test_an_error_amid_events_is_an_event_of_its_own() -> None:
    """An error after some items is an event named error."""
    text = http(breaks).get("/", headers={"accept": "text/event-stream"}).text
    *_, last = text.removesuffix("\n\n").split("\n\n")
    kind, data = last.split("\n")
    assert kind == "event: error"
    assert json.loads(data.removeprefix("data: "))["stage"] == "breaks"
    assert SECRET not in text


def test_an_error_amid_lines_shows_its_message_in_debug() -> None:
    """With ``debug=True`` the last line of a stream that broke says why."""
    assert SECRET in http(breaks, debug=True).get("/").text


def test_an_error_amid_raw_text_ends_the_transfer_badly() -> None:
    """Raw text has no room for an error, so the transfer is broken off."""

    def stage() -> Iterator[str]:
        yield "some"
        raise ValueError("broken")

    with pytest.raises(Exception, match="broken"):
        http(stage).get("/")


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


# Errors


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (rc.HTTPError(404, "no such model"), 404, "no such model"),
        (rc.HTTPError(404), 404, None),
        (rc.HTTPError(422, {"field": ["wrong"]}), 422, {"field": ["wrong"]}),
        (rc.HTTPError(503, "later"), 503, "later"),
        (rc.HTTPError(499, "odd"), 499, "odd"),
        (HTTPException(418, "teapot"), 418, "teapot"),
        (rc.StageTimeoutError("slow", 1.5), 504, "1.5"),
        (rc.NoMatchError("switch", "'c'", ("'a'", "'b'")), 422, "'a', 'b'"),
        (ValueError(SECRET), 500, None),
        (TimeoutError(SECRET), 500, None),
        (KeyError(SECRET), 500, None),
    ],
)
def test_errors_are_problem_details(error: Exception, status: int, detail: Any) -> None:
    """Each error answers with its status as problem+json, and with the stage that raised it."""
    response = failure(error)
    assert response.status_code == status
    assert response.headers["content-type"].startswith("application/problem+json")
    details = response.json()
    assert details["status"] == status
    assert isinstance(details["title"], str)
    assert details["title"]
    assert details["stage"] == "failing"
    if detail is None:
        assert details.get("detail") in (None, "")
    elif isinstance(detail, str):
        assert detail in details["detail"]
    else:
        assert details["data"] == detail
        assert json.loads(details["detail"]) == detail  # RFC 9457: a string
    assert set(details) <= {
        "type",
        "status",
        "title",
        "detail",
        "data",
        "stage",
        "request_id",
        "instance",
    }


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        RuntimeError("outer", SECRET),
        KeyError(SECRET),
        AssertionError(SECRET),
        OSError(SECRET),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_internal_errors_message_stays_in_the_log(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A 500 shows neither message nor traceback to the client; the log has both."""
    logger = logging.getLogger("ray.serve")
    logger.setLevel(logging.ERROR)
    logger.addHandler(caplog.handler)
    try:
        response = failure(error)
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(logging.CRITICAL)
    assert response.status_code == 500
    assert SECRET not in response.text + str(response.headers)
    assert "Traceback" not in response.text
    assert SECRET in caplog.text
    assert "Traceback" in caplog.text


def test_debug_shows_the_message_and_the_traceback() -> None:
    """``options(debug=True)`` shows an internal error to the client."""
    detail = failure(ValueError(SECRET), debug=True).json()["detail"]
    assert SECRET in detail
    assert "Traceback" in detail


def test_the_cause_of_a_client_error_is_not_shown() -> None:
    """What an HTTPError was raised from does not reach the client."""

    def failing() -> None:
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise rc.HTTPError(400, "bad") from error

    assert SECRET not in http(failing).get("/").text


def test_headers_of_an_http_error_are_sent() -> None:
    """``HTTPError(headers=...)`` adds response headers."""
    error = rc.HTTPError(429, "slow down", headers={"Retry-After": "5", "X-Kind": "limit"})
    response = failure(error)
    assert (response.headers["retry-after"], response.headers["x-kind"]) == ("5", "limit")


@pytest.mark.parametrize("evil", ["5\r\nX-Evil: 1", "5\nX-Evil: 1", "5\rX-Evil: 1", "a\0b"])
def test_headers_cannot_be_injected(evil: str) -> None:
    """Line ends in a header's value or name cannot add another header."""
    response = failure(rc.HTTPError(400, "bad", headers={"Retry-After": evil}))
    assert response.status_code == 400
    assert "x-evil" not in response.headers
    assert not re.search("[\r\n\0]", response.headers["retry-after"])
    named = failure(rc.HTTPError(400, "bad", headers={f"X-{evil}": "1"}))
    assert named.status_code == 400
    assert all(not re.search("[\r\n\0]", name) for name in named.headers)


@pytest.mark.parametrize("value", ["☃", 5, "\ud800"])
def test_headers_that_cannot_be_sent_do_not_hide_the_error(value: Any) -> None:
    """A header value that HTTP cannot carry does not turn the answer into another error."""
    assert failure(rc.HTTPError(409, "busy", headers={"X-Note": value})).status_code == 409


def test_headers_cannot_contradict_the_body() -> None:
    """An error's own Content-Length or Content-Type does not falsify the problem details."""
    headers = {"Content-Length": "1", "Content-Type": "text/html"}
    response = failure(rc.HTTPError(400, "<script>", headers=headers))
    assert response.json()["detail"] == "<script>"
    assert response.headers["content-type"].startswith("application/problem+json")
    assert int(response.headers["content-length"]) == len(response.content)


@pytest.mark.parametrize("detail", ["</script>\r\nX-Evil: 1", "\ud800", "\0"])
def test_a_detail_stays_in_the_body(detail: str) -> None:
    """Nothing that a detail holds reaches the headers, or keeps the answer from being sent."""
    response = failure(rc.HTTPError(400, detail))
    assert response.status_code == 400
    assert "x-evil" not in response.headers


@pytest.mark.parametrize(
    "detail", [object(), {1, 2}, float("nan"), Point(1), Item(name="a"), np.array([1]), b"bytes"]
)
def test_a_detail_that_is_no_json_keeps_its_status(detail: Any) -> None:
    """A detail that JSON cannot hold does not turn a 400 into a 500."""
    response = failure(rc.HTTPError(400, detail))
    assert response.status_code == 400
    json.loads(response.text, parse_constant=lambda constant: pytest.fail(constant))


@pytest.mark.parametrize(
    ("error", "status", "after"),
    [
        (BackPressureError(3, 2), 503, "1"),
        (BackPressureError(3, 2, 429, 7.0), 429, "7"),
        (BackPressureError(3, 2, 503, 0.2), 503, "1"),
    ],
)
def test_back_pressure_says_when_to_come_back(error: Exception, status: int, after: str) -> None:
    """Back-pressure answers 503 (or the 429 that was configured) with ``Retry-After``."""
    response = failure(error)
    assert response.status_code == status
    assert response.headers["retry-after"] == after


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError(SECRET, None),
        NodeDiedError(SECRET),
        ObjectLostError("", None, SECRET),
        OwnerDiedError("", None, SECRET),
        ReplicaUnavailableError(SECRET),
        WorkerCrashedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_ran_the_stage_was_lost(error: Exception) -> None:
    """A lost replica, actor, worker, node or result is no fault of the stage: 503, try again."""
    response = failure(error)
    assert (response.status_code, response.json()["stage"]) == (503, "failing")
    assert response.json()["detail"] == "a stage is unavailable; try again later"
    assert SECRET not in response.text


def test_retry_after_is_not_before_the_time() -> None:
    """``Retry-After`` is whole seconds, rounded up: coming back earlier is in vain."""
    assert failure(BackPressureError(3, 2, 503, 7.4)).headers["retry-after"] == "8"


def test_a_stage_deeper_in_the_graph_is_named() -> None:
    """The stage in the answer is the innermost one that failed."""

    def failing(x: int) -> int:
        raise ValueError(x)

    app = rc.pipeline(lambda x: x, rc.parallel(rc.pipeline(lambda x: x, failing), lambda x: x))
    assert http(app).post("/", json=1).json()["stage"] == "failing"


def test_an_error_of_the_request_names_no_stage() -> None:
    """A request that is at fault before any stage ran is not blamed on one."""
    response = http(lambda x: x).post(
        "/", content=b"{", headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert "stage" not in response.json()


def test_an_error_response_has_server_timing_too() -> None:
    """A failed request still says how long each stage took."""
    assert "failing;dur=" in failure(ValueError("x")).headers["server-timing"]


@pytest.mark.parametrize(
    "statement", ["raise SystemExit(3)", "raise StopIteration", "raise GeneratorExit"]
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_ends_a_program_or_a_loop_is_an_error_of_that_request(
    statement: str, kind: str
) -> None:
    """``sys.exit()`` and the like in a stage answer 500, and the next request is answered."""
    program = f"""
import raycompose as rc
from starlette.testclient import TestClient
{kind} failing(bad=None):
    if bad:
        {statement}
    return "fine"
client = TestClient(rc.local(rc.pipeline(failing)).asgi, raise_server_exceptions=False)
print(client.get("/?bad=1").status_code, client.get("/").text)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["500 fine"], done.stderr


def test_concurrent_requests_do_not_mix() -> None:
    """Answers, errors and timings belong to their own request."""

    async def stage(request: Request) -> Any:
        n = int(request.query_params["n"])
        await asyncio.sleep(0.01 * (n % 3))
        if n % 2:
            raise rc.HTTPError(400 + n, str(n))
        return n

    app = rc.local(rc.pipeline(stage)).asgi

    async def call() -> list[tuple[int, Any]]:
        return list(await asyncio.gather(*(_get(app, n) for n in range(8))))

    assert asyncio.run(call()) == [(400 + n, str(n)) if n % 2 else (200, n) for n in range(8)]


async def _get(app: Any, n: int) -> tuple[int, Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": f"n={n}"}
    await app({**scope, "query_string": f"n={n}".encode()}, receive, send)
    body = json.loads(b"".join(m.get("body", b"") for m in sent))
    return sent[0]["status"], body["detail"] if isinstance(body, dict) else body


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


# The form of a stream


def form(response: Any) -> str:
    kind: str = response.headers["content-type"].split(";")[0]
    return {"text/event-stream": "sse", "application/x-ndjson": "ndjson"}.get(kind, "raw")


@pytest.mark.parametrize(
    ("accept", "of_text", "of_objects"),
    [
        ("", "raw", "ndjson"),
        ("*/*", "raw", "ndjson"),
        ("application/json", "raw", "ndjson"),
        ("text/event-stream", "sse", "sse"),
        ("text/event-stream, */*;q=0.1", "sse", "sse"),
        ("text/event-stream;q=0", "raw", "ndjson"),
        ("text/event-stream;q=0, */*", "raw", "ndjson"),
        ("text/event-stream;q=0.5, application/x-ndjson", "ndjson", "ndjson"),
        ("application/x-ndjson;q=0.5, text/event-stream", "sse", "sse"),
        ("text/plain, text/event-stream;q=0.9", "raw", "sse"),
        ("text/*, text/event-stream;q=0.2", "raw", "sse"),
        ("text/event-stream;q=nonsense", "raw", "ndjson"),
    ],
)
def test_accept_is_honoured_with_its_weights(accept: str, of_text: str, of_objects: str) -> None:
    """A client gets the form that it asks for by name, unless it likes the natural one better."""
    assert form(http(words).get("/", headers={"accept": accept})) == of_text
    assert form(http(numbers).get("/", headers={"accept": accept})) == of_objects


@pytest.mark.parametrize("stream", ["sse", "ndjson", "raw"])
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "text/plain"])
@pytest.mark.parametrize("stage", [words, numbers])
def test_options_fix_the_form(stage: Any, accept: str, stream: str) -> None:
    """``options(stream=...)`` decides, whatever the client accepts and the items are."""
    assert form(http(stage, stream=stream).get("/", headers={"accept": accept})) == stream


def test_a_form_that_there_is_not_is_refused() -> None:
    """``options(stream=...)`` takes one of three."""
    with pytest.raises(rc.CompositionError, match="'sse', 'ndjson', 'raw'"):
        rc.pipeline(words).options(stream="xml")


def events() -> Iterator[Any]:
    yield rc.Event({"n": 1}, event="delta", id="1")
    yield rc.Event("two\nlines", id="2")
    yield "[DONE]"


def test_items_may_name_and_number_their_events() -> None:
    """``rc.Event`` sets SSE's fields; in the other forms its data is the item."""
    assert http(events, stream="sse").get("/").text == (
        'event: delta\nid: 1\ndata: {"n":1}\n\nid: 2\ndata: two\ndata: lines\n\ndata: [DONE]\n\n'
    )
    lines = http(events, stream="ndjson").get("/").text.splitlines()
    assert [json.loads(line) for line in lines] == [{"n": 1}, "two\nlines", "[DONE]"]
    assert http(events, stream="raw").get("/").text == '{"n":1}two\nlines[DONE]'
    assert list(rc.local(rc.pipeline(events)).stream())[1] == rc.Event("two\nlines", id="2")


@pytest.mark.parametrize("text", ["two\nlines", "\r", "\0", 5])
@pytest.mark.parametrize("field", ["event", "id"])
def test_an_events_fields_are_of_one_line(field: str, text: Any) -> None:
    """What would forge another field is refused where the event is made."""
    with pytest.raises(ValueError, match=field):
        rc.Event("data", **{field: text})


def split_character() -> Iterator[bytes]:
    for byte in "aé€".encode():
        yield bytes([byte])


def not_text() -> Iterator[bytes]:
    yield b"text"
    yield b"\xff"
    yield b"more"


def test_bytes_are_text_where_the_form_is_text() -> None:
    """Bytes are decoded across items, so that no character breaks; what is no text is an error."""
    lines = http(split_character, stream="ndjson").get("/").text.splitlines()
    assert "".join(map(json.loads, lines)) == "aé€"
    text = http(split_character, stream="sse").get("/").text
    assert "".join(re.findall("data: (.*)", text)) == "aé€"
    first, error = map(json.loads, http(not_text, stream="ndjson").get("/").text.splitlines())
    assert first == "text"
    assert error["error"]["stage"] == "not_text"
    *_, last = http(not_text, stream="sse").get("/").text.removesuffix("\n\n").split("\n\n")
    assert last.startswith("event: error\n")
    assert http(not_text).get("/").content == b"text\xffmore"


def test_what_is_no_text_is_json_amid_raw_text() -> None:
    """An object after a str in raw text is JSON, not Python's way to write it."""

    def stage() -> Iterator[Any]:
        yield "text "
        yield {"a": None}

    assert http(stage).get("/").text == 'text {"a":null}'


def test_one_result_is_one_item() -> None:
    """Where one branch streams and another gives one value, ``stream()`` gives that one."""
    app = rc.switch("at", {"many": lambda x: x["n"], "one": lambda x: x["n"]})
    mixed = rc.switch("at", {"many": rc.pipeline(lambda x: x["n"], count), "one": lambda x: "one"})
    client = rc.local(mixed)
    assert list(client.stream({"at": "many", "n": 2})) == [0, 1]
    assert list(client.stream({"at": "one"})) == ["one"]
    with pytest.raises(TypeError, match="does not stream"):
        list(rc.local(app).stream({"at": "one", "n": 1}))


def count(n: int) -> Iterator[int]:
    yield from range(n)
