"""What an error becomes over HTTP: problem details, and nothing that tells secrets."""

import asyncio
import json
import logging
import re
import subprocess
import sys
from typing import Any

import numpy as np
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
from support.local_http import failure, http
from support.results import SECRET, Item, Point

import raycompose as rc

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
