"""The HTTP edge of running pipelines: whatever is sent is answered, and does no harm."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import http.client
import itertools
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from ray import serve
from support.edge import (
    FUZZED,
    GOOD,
    JSON,
    SECRET,
    TIMEOUT_S,
    Edge,
    Sent,
    deployed_edge,
    held,
    logged,
    not_our_fault,
    problem,
    works,
)
from support.fuzz import FUZZ, examples
from support.hostile import any_request
from support.waiting import until

APPS = (*FUZZED, "several")


@pytest.fixture(scope="module")
def edge(cluster: None, end_later: Any) -> Iterator[Edge]:
    """The pipelines that this file asks for, deployed at once."""
    yield deployed_edge(*APPS)
    for app in APPS:
        end_later(partial(serve.delete, app))


# Whatever is sent


pytestmark = pytest.mark.timeout(1800 if FUZZ else 180)
EXAMPLES = examples(8, long=1000)
"""How many requests each sender sends; ``make fuzz`` sends the many."""
AT_ONCE = 8
"""How many senders there are at once, each with its own requests and its own connection."""


@pytest.mark.parametrize("app", FUZZED)
def test_whatever_is_sent_is_answered(edge: Edge, app: str) -> None:
    """No request makes a 500 or a cut or missing answer; good ones are answered all the while."""

    def sender(number: int) -> None:
        @seed(FUZZED.index(app) * AT_ONCE + number)
        @settings(max_examples=EXAMPLES, deadline=None, database=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(any_request)
        def run(sent: Sent) -> None:
            not_our_fault(edge.send(app, sent))

        run()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [pool.submit(sender, number) for number in range(AT_ONCE)]
        while not all(run.done() for run in runs):
            works(edge, app)
    for run in runs:
        run.result()
    works(edge, app)


# By hand: bodies

CESU = b"\xed\xa0\x80"  # half of a surrogate pair, encoded as if it were a character


def text(charset: str) -> dict[str, str]:
    return {"content-type": f"text/plain; charset={charset}"}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        pytest.param(b'{"name": }', JSON, 400, id="malformed"),
        pytest.param(b'{"name": "a", "xs": [1, 2', JSON, 400, id="truncated"),
        pytest.param(b"[" * 100_000, JSON, 400, id="100k brackets"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, JSON, 400, id="100k brackets, closed"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, JSON, 400, id="100k objects"),
        pytest.param(b'{"name": "a", "n": NaN}', JSON, 400, id="NaN"),
        pytest.param(b"[Infinity, -Infinity]", JSON, 400, id="Infinity"),
        pytest.param(b'{"name": "a", "n": 1e400}', JSON, 400, id="1e400"),
        pytest.param(b"[" + b"9" * 5000 + b"]", JSON, 400, id="5000 digits"),
        pytest.param(b'{"name": "a", "name": "b"}', JSON, 200, id="duplicate keys"),
        pytest.param(b"[1]", {"content-type": "image/png"}, 200, id="wrong type"),
        pytest.param(b"[1]", {"content-type": ";;=,/"}, 200, id="a type that is none"),
        pytest.param(b"[1]", {}, 200, id="no type"),
        pytest.param(b"[1", {}, 400, id="no type, truncated"),
        pytest.param(b"\xff\xfe\xfd", {}, 200, id="no type, no text"),
        pytest.param(b"[1]", {"content-type": "multipart/form-data"}, 400, id="multipart"),
        pytest.param(b'{"name": "\xff"}', JSON, 400, id="invalid UTF-8"),
        pytest.param(b"\xff", text("utf-8"), 400, id="text of invalid UTF-8"),
        pytest.param(b'"\\ud800"', JSON, 400, id="surrogate, escaped"),
        pytest.param(b'{"name": "\\udfff"}', JSON, 400, id="surrogate in an object"),
        pytest.param(b'"' + CESU + b'"', JSON, 400, id="surrogate in JSON"),
        pytest.param(b"\x00[\xd8\x00]", JSON, 400, id="surrogate in UTF-16"),
        pytest.param('"\\ud800"'.encode("utf-16"), JSON, 400, id="surrogate, escaped in UTF-16"),
        pytest.param("[1e400]".encode("utf-16"), JSON, 400, id="1e400 in UTF-16"),
        pytest.param(CESU, text("utf-8"), 400, id="surrogate in text"),
        pytest.param(b"\\ud800", text("unicode_escape"), 400, id="surrogate by unicode_escape"),
        pytest.param(b"\\ud800", text("raw-unicode-escape"), 400, id="surrogate by raw escape"),
        pytest.param(b"+2AA-", text("utf-7"), 400, id="surrogate by UTF-7"),
        pytest.param(b"a" * 500_000 + b"-" + b"b" * 500_000, text("punycode"), 400, id="punycode"),
        pytest.param(b"a", text("klingon"), 400, id="unknown charset"),
        pytest.param(
            b"a=%ff", {"content-type": "application/x-www-form-urlencoded"}, 400, id="form"
        ),
        pytest.param(b"\xef\xbb\xbf[1]", JSON, 200, id="BOM"),
        pytest.param("[1]".encode("utf-16"), JSON, 200, id="UTF-16"),
        pytest.param(b"\x1f\x8b\x08", JSON | {"content-encoding": "gzip"}, 400, id="compressed"),
        pytest.param(b"", JSON, 200, id="empty"),
        pytest.param(b"   ", JSON, 400, id="blank"),
        pytest.param(b"\0", JSON, 400, id="NUL"),
    ],
)
def test_a_hostile_body_is_the_senders_fault(
    edge: Edge, body: bytes, headers: dict[str, str], status: int
) -> None:
    """Each hostile body has its status, is never a 500 for any first stage, and does no harm."""
    assert edge.send("value", Sent(headers=headers, body=body)).status == status
    for app in FUZZED:
        not_our_fault(edge.send(app, Sent(headers=headers, body=body)))
        works(edge, app)


@pytest.mark.parametrize("app", [*FUZZED, "several"])
def test_names_that_mean_something_to_python_are_just_names(edge: Edge, app: str) -> None:
    """Keys such as ``__class__`` and ``self`` are data, in a body and in a query."""
    names = ["__class__", "__proto__", "__init__", "self", "request", "args", "kwargs", "item"]
    for key in names:
        for body in ({key: {"x": 1}}, {key: {"x": 1}, **dict.fromkeys(names, "x")}):
            answer = edge.post(app, body)
            not_our_fault(answer)
            assert app != "value" or answer.json() == body
        not_our_fault(edge.send(app, Sent("GET", f"?{key}=1")))
    works(edge, app)


def test_very_many_wrong_values_are_one_answer(edge: Edge) -> None:
    """What is said of an invalid body does not grow without bound with what is invalid."""
    answer = edge.post("floats", ["x"] * 200_000)
    assert "200000" in problem(answer, 422)["detail"]
    assert len(answer.body) < 1000
    works(edge, "floats")


# By hand: the wire


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD"])
def test_every_method_is_answered(edge: Edge, method: str) -> None:
    """A method other than POST is answered alike, HEAD without a body."""
    answer = edge.send("value", Sent(method, headers=JSON, body=b"[1]"))
    assert answer.status == 200
    assert answer.body == (b"" if method == "HEAD" else b"[1]")
    wrong = edge.send("value", Sent(method, headers=JSON, body=b"[1"))
    assert wrong.status == 400
    works(edge, "value")


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("/", "/asks/"),
        ("/a/b", "/asks/a/b"),
        ("/a%20b", "/asks/a b"),
        ("/../model", "/asks/../model"),
        ("/%2e%2e/model", "/asks/../model"),
        ("/%00", "/asks/\0"),
        ("/%ff", "/asks/\ufffd"),
        ("//x", "/asks//x"),
        ("/" + "x" * 10_000, "/asks/" + "x" * 10_000),
    ],
    ids=lambda text: text[:20],
)
def test_a_path_below_the_prefix_reaches_the_pipeline(edge: Edge, path: str, seen: str) -> None:
    """What follows the route prefix, encoded or not, stays with its application."""
    answer = edge.send("asks", Sent(path=path, headers=JSON, body=b"1"))
    assert answer.json()["path"] == seen
    works(edge, "asks")


def test_a_query_of_very_many_names_takes_no_longer_than_it_should(edge: Edge) -> None:
    """Very many query parameters take about as long as one that is repeated as often."""

    def took_s(names: list[str]) -> float:
        started = time.monotonic()
        answer = edge.send("value", Sent("GET", "?" + "&".join(names)))
        assert list(answer.json()) == list(dict.fromkeys(names))
        return time.monotonic() - started

    different, same = [f"{n:04x}" for n in range(13_000)], ["same"] * 13_000
    fastest = {what[0]: min(took_s(what) for _ in range(3)) for what in (same, different)}
    assert fastest["0000"] < 10 * fastest["same"], fastest  # were it the square: 50 times


@pytest.mark.parametrize(
    "sent",
    [
        Sent("GET", "?x=" + "y" * 1_000_000),
        Sent("GET", "/" + "y" * 1_000_000),
        Sent(headers={"x-long": "y" * 1_000_000}),
        Sent(headers={f"x-{n}": "y" for n in range(90)}),
        Sent(headers={"content-type": "text/plain; charset=" + "y" * 10_000}, body=b"1"),
        Sent(headers={"content-type": "a/b" + ";x=y" * 10_000}, body=b"1"),
    ],
    ids=["query", "path", "header", "headers", "charset", "content type"],
)
def test_what_is_too_long_is_the_senders_fault(edge: Edge, sent: Sent) -> None:
    """A very long query, path or header is answered, or refused by the server."""
    assert edge.send("value", sent).status in (200, 400, 414, 431)
    works(edge, "value")


def status_of(connection: socket.socket) -> int:
    """The status of the next response on a connection; 0 when it is closed without one."""
    with connection, connection.makefile("rb") as answer:
        return int((answer.readline().split() or [b"", b"0"])[1])


POST = b"POST /value HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"FOO /value HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /value\xff\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /value HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", 400),
        (b"GET /value HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n", 400),
        (b"GET /value HTTP/1.1\r\n\r\n", 200),
        (b"GET /value HTTP/1.0\r\n\r\n", 200),
        (b"GET http://elsewhere/value HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (POST + b"Content-Length: -5\r\n\r\n", 400),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n11", 400),
        (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n1\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n1\r\n2\r\n0\r\n\r\n", 200),
        (b"GET /asks HTTP/1.1\r\nHost: [::\r\n\r\n", 400),
    ],
    ids=lambda data: repr(data)[:60],
)
def test_what_is_hardly_http_is_answered(edge: Edge, data: bytes, status: int) -> None:
    """What is not HTTP, or says two things at once, is refused and leaves the endpoint be."""
    assert status_of(edge.raw(data)) == status
    works(edge, "value")


@pytest.mark.parametrize("name", ["x-request-id", "serve_multiplexed_model_id", "x-session-id"])
def test_headers_that_ray_reads_are_rays_to_refuse(edge: Edge, name: str) -> None:
    """Ray's proxy decodes some headers itself: what is not UTF-8 does not get to a pipeline."""
    answer = edge.send("value", Sent(headers=JSON | {name: "\xff"}, body=b"1"))
    assert answer.status == 200 or "problem" not in answer.headers["content-type"]
    works(edge, "value")


def test_a_websocket_is_refused(edge: Edge) -> None:
    """A pipeline answers no WebSockets: Ray refuses the handshake, and nothing is left behind."""
    handshake = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert status_of(edge.raw(b"GET /value HTTP/1.1\r\nHost: x\r\n" + handshake + key)) >= 400
    works(edge, "value")


def test_a_slow_body_holds_up_nobody(edge: Edge) -> None:
    """While a body comes byte by byte others are answered, and it is answered when it is there."""
    body = b'[1, {"a": null}]'
    head = POST + b"Content-Length: %d\r\n\r\n" % len(body)
    with edge.raw(head) as slow, slow.makefile("rb") as answer:
        for byte in body:
            works(edge, "value")
            slow.sendall(bytes([byte]))
        assert answer.readline().split()[1] == b"200"


@pytest.mark.parametrize("number", range(3))  # Ray tells of it now in one way, now in another
def test_a_client_that_leaves_in_its_body_leaves_nothing(edge: Edge, number: int) -> None:
    """A body that breaks off ends its request: its place is free, and it is no error of ours."""
    names = (f"gone-{number}-{attempt}" for attempt in itertools.count())
    asked, answered = GOOD["several"]

    def left_in_the_replica() -> Any:
        """Whether it had got there: on a busy machine one may leave before."""
        name = next(names)
        head = "POST /several HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n"
        with edge.raw(f"{head}X-Request-Id: {name}\r\n\r\n{{".encode()):
            waiting = until(lambda: held(edge, "several", asked))  # max_ongoing_requests=1
        waiting.sock.settimeout(TIMEOUT_S)
        response = http.client.HTTPResponse(waiting.sock)
        response.begin()
        assert json.loads(response.read()) == answered
        waiting.close()
        return logged("several", rf"{name} -- POST /several CANCELLED", deadline_s=2)

    assert until(left_in_the_replica)
    assert not logged("several", rf"request gone-{number}-\d+ failed", deadline_s=0)


# What does not fit


def test_debug_shows_an_internal_error(edge: Edge) -> None:
    """Only ``options(debug=True)`` shows message and traceback to the sender."""
    details = problem(edge.post("model", {"name": SECRET}), 500)
    assert f"ValueError: {SECRET}" in details["detail"]
    assert details["detail"].startswith("Traceback")


@pytest.mark.parametrize(
    ("app", "sent", "told"),
    [
        ("model", {"name": 1, "n": "x"}, ["item.name: ", "valid string", "item.n: ", "integer"]),
        ("model", {"n": 1}, ["item.name: Field required"]),
        ("model", [1], ["item: "]),
        ("floats", [1, "x", 2, None], ["xs.1: ", "valid number", "xs.3: "]),
        ("floats", {"xs": 5}, ["xs: ", "valid list"]),
        ("several", {"point": {"x": "a"}}, ["point.x: ", "valid integer"]),
        ("several", {"point": {"x": 1, "y": 2}, "n": 1.5}, ["n: ", "fractional"]),
        ("several", {"n": 1}, ["missing: point"]),
        ("several", {"point": {"x": 1}, "m": 1}, ["unknown: m", "n, point"]),
    ],
)
def test_an_invalid_value_is_a_422_with_where_and_what(
    edge: Edge, app: str, sent: Any, told: list[str]
) -> None:
    """What does not fit a model, a dataclass or a list is told with its place and the reason."""
    details = problem(edge.post(app, sent), 422)
    assert all(part in details["detail"] for part in told), details
    assert "stage" not in details  # none has run


def test_query_strings_are_converted_or_a_422(edge: Edge) -> None:
    """Numbers in a query string are converted as annotated, or refused with where and what."""
    assert edge.send("model", Sent("GET", "?name=a&n=7")).json() == {"name": "a", "n": 7}
    assert edge.send("floats", Sent("GET", "?xs=1&xs=2.5&xs=3")).json() == 3
    details = problem(edge.send("model", Sent("GET", "?name=a&n=seven")), 422)
    assert "item.n: Input should be a valid integer" in details["detail"]
    details = problem(edge.send("floats", Sent("GET", "?xs=1&xs=two")), 422)
    assert "xs.1: Input should be a valid number" in details["detail"]
