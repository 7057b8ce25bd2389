"""The HTTP edge of a running pipeline: hostile requests, problem details, metrics."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import http.client
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pydantic
import pytest
import ray
import requests
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

import raycompose as rc

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import this file

TIMEOUT_S = 30.0
"""How long any answer may take before its test fails rather than hangs."""
SECRET = "the-password-of-the-database"
FREE: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}}
JSON = {"content-type": "application/json"}


# What is deployed: a pipeline for each kind of first stage, all total functions, and misbehaviour


class Item(pydantic.BaseModel):
    name: str
    n: int = 0


@dataclass
class Point:
    x: int
    y: int = 0


def model(item: Item) -> Any:
    if item.name == SECRET:
        raise ValueError(SECRET)
    return item


def floats(xs: list[float]) -> int:
    return len(xs)


def value(x=None):  # type: ignore[no-untyped-def]  # the kind of stage that is meant
    return x


def asks(request):  # type: ignore[no-untyped-def]  # as above
    query = dict(request.query_params)
    return {"path": request.url.path, "query": query, "json": request.json()}


def several(point: Point, n: int = 0) -> int:
    return point.x + point.y + n


def misbehave(stage: str, x: Any) -> Any:
    if x.get("raise") == stage:
        raise ValueError(SECRET)
    return x


def inline(x: Any) -> Any:
    return misbehave("inline", x)


class Stage:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: Any) -> Any:
        return misbehave(self.name, x)


class Mortal:
    def __call__(self, x: Any) -> Any:
        if x.get("die"):
            os._exit(1)
        return x


async def forever(x: Any) -> None:
    await asyncio.Event().wait()


def refuse(x: Any) -> None:
    evil = "b\r\nSet-Cookie: a=b"
    raise rc.HTTPError(400, f"x{evil}", {"X-Good": evil, f"X-{evil}": "1"})


def deployed(name: str) -> serve.Application:
    return serve.deployment(Stage).options(name=name, **FREE).bind(name)


def three_kinds() -> rc.Pipeline[Any, Any]:
    """A function, a stage that gets fused, and a stage in a replica of its own."""
    return rc.pipeline(inline, deployed("Fused"), deployed("Remote"))


def faults() -> rc.Pipeline[Any, Any]:
    busy = serve.deployment(forever).options(
        name="Busy", max_ongoing_requests=1, max_queued_requests=1, **FREE
    )
    mortal = serve.deployment(Mortal).options(num_replicas=2, **FREE)
    branches = {
        "refuse": refuse,
        "busy": busy.bind(),
        "timeout": rc.stage(forever, timeout_s=0.2),
        "mortal": mortal.bind(),
    }
    choice = rc.switch(lambda x: x.get("then"), branches, default=rc.passthrough)
    return rc.pipeline(three_kinds(), choice).fuse("Fused")


def pipelines() -> dict[str, rc.Pipeline[Any, Any]]:
    return {
        **{f.__name__: rc.pipeline(f).options(debug=True) for f in (model, floats, value, asks)},
        "several": rc.pipeline(several).options(max_ongoing_requests=1),
        "faults": faults().options(name="Faults", max_body_bytes=1000),
        "metered": rc.pipeline(three_kinds(), rc.shadow(forever, max_in_flight=1))
        .fuse("Fused")
        .options(name="Metered"),
    }


METERED: list[dict[str, str]] = [{}] * 5 + [
    {"raise": s} for s in ("inline", "Fused", "Remote") for _ in range(2)
]
"""What is sent to the pipeline whose metrics are read: first, for Ray exports them in a while."""


# The other end of the wire


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body, parse_constant=pytest.fail)


@dataclass
class Sent:
    """A request to one of the pipelines."""

    method: str = "POST"
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None


class Edge:
    """The running endpoint; each thread keeps its connection."""

    def __init__(self, url: str) -> None:
        split = urlsplit(url)
        self.address = (split.hostname or "", split.port or 0)
        self._kept = threading.local()

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.address, timeout=TIMEOUT_S)

    def send(self, app: str, sent: Sent) -> Answer:
        """Send a request and read the whole answer: ``http.client`` raises if it is cut short."""
        if not hasattr(self._kept, "connection"):
            self._kept.connection = self.connection()
        connection: http.client.HTTPConnection = self._kept.connection
        try:
            connection.request(sent.method, f"/{app}{sent.path}", sent.body, sent.headers)
            response = connection.getresponse()
            body = response.read()
        except BaseException:
            connection.close()
            raise
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body)

    def post(self, app: str, value: Any, **headers: str) -> Answer:
        return self.send(app, Sent(headers=JSON | headers, body=json.dumps(value)))

    def raw(self, data: bytes) -> socket.socket:
        """Open a connection and send bytes as they are."""
        connection = socket.create_connection(self.address, timeout=TIMEOUT_S)
        connection.sendall(data)
        return connection


GOOD = {
    "model": ({"name": "a", "n": "1"}, {"name": "a", "n": 1}),
    "floats": ([1, "2.5"], 2),
    "value": ([1, {"a": None}], [1, {"a": None}]),
    "asks": (5, {"path": "/asks", "query": {}, "json": 5}),
    "several": ({"point": {"x": 1, "y": "2"}, "n": 3}, 6),
    "faults": ({"fine": 1}, {"fine": 1}),
}
FUZZED = ["model", "floats", "value", "asks"]


def works(edge: Edge, app: str) -> None:
    """The next good request is answered as ever."""
    asked, answered = GOOD[app]
    answer = edge.post(app, asked)
    assert (answer.status, answer.json()) == (200, answered)


def problem(answer: Answer, status: int | None = None) -> Any:
    """The problem details, which agree with the status and name the request."""
    assert answer.headers["content-type"] == "application/problem+json", answer
    details = answer.json()
    assert details["status"] == answer.status == (status or answer.status), details
    assert details["title"]
    assert details["request_id"] == answer.headers["x-request-id"]
    return details


def not_our_fault(answer: Answer) -> None:
    """The request was answered, or it is its sender who is told to be at fault."""
    if answer.status != 200:
        assert 400 <= answer.status < 500, answer.body.decode()
        problem(answer)


def until(condition: Callable[[], Any], deadline_s: float = TIMEOUT_S) -> Any:
    """Wait for what happens elsewhere, and return it."""
    end = time.monotonic() + deadline_s
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def edge(cluster: None) -> Iterator[Edge]:
    """All the pipelines, deployed at once."""
    apps = pipelines()
    serve.run_many(
        [serve.RunTarget(app, name=name, route_prefix=f"/{name}") for name, app in apps.items()]
    )
    edge = Edge(rc.connect("value").url or "")
    for sent in METERED:
        assert edge.post("metered", sent).status == (500 if sent else 200)
    yield edge
    with ThreadPoolExecutor() as pool:
        list(pool.map(serve.delete, apps))


@pytest.fixture(scope="module")
def logs(edge: Edge) -> Path:
    """Where the session's replicas write their logs."""
    return Path(ray.nodes()[0]["ObjectStoreSocketName"]).parent.parent / "logs" / "serve"


# Whatever is sent


# Not st.text(...), which hardly ever takes the few characters that matter from so many.
_character = st.characters() | st.sampled_from('\0\ud800\udfff"\\')
_text = st.lists(_character, max_size=8).map("".join)
_any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=8,
)
_nearly_right = st.one_of(
    st.fixed_dictionaries({"name": _text | _any_json}, optional={"n": _any_json}),
    st.fixed_dictionaries({"xs": _any_json}),
    st.lists(st.floats() | st.integers() | st.text("0123456789.eE+-_ naif", max_size=6)),
    st.dictionaries(st.sampled_from(["item", "xs", "x", "request", "self", "args"]), _any_json),
)


def as_bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


_json_text = st.builds(
    json.dumps, _text | _any_json | _nearly_right, ensure_ascii=st.booleans()
).map(as_bytes)


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    text = draw(_json_text)
    start = draw(st.integers(0, len(text)))
    return text[:start] + draw(st.binary(max_size=3)) + text[draw(st.integers(start, len(text))) :]


_pieced = st.lists(
    st.sampled_from(
        [*'[]{}":,', "\\ud800", "\ud800", "\ufeff", "+2AA-", "1e400", "NaN", "9" * 5000, "a="]
    ),
    min_size=1,
    max_size=6,
).map(lambda pieces: as_bytes("".join(pieces)))
_token = st.text("abcxyzABC019!#$%&'*+-.^_`|~", min_size=1, max_size=10)
_charset = st.sampled_from(
    [
        "utf-8",
        "latin-1",
        "utf-16",
        "UTF-32",
        "utf-7",
        "unicode_escape",
        "hex",
        "punycode",
        "gb18030",
    ]
)
_content_type = st.one_of(
    st.just("application/json"),
    st.sampled_from(
        [
            *("application/problem+json", "application/x-www-form-urlencoded", "text/plain"),
            *("text/html; a=b", "application/octet-stream", "multipart/form-data"),
        ]
    ),
    st.builds("text/plain; charset={}".format, _charset | _token),
    st.builds("{}/{};{}".format, _token, _token, _token),
    st.just(""),
)
_visible = "".join(map(chr, range(0x21, 0x7F)))
_latin = st.text([*_visible, " ", "\t", *map(chr, range(0x80, 0x100))], max_size=20)
# Ray's proxy reads these itself, and answers 500 when they are not UTF-8: see below.
_read_by_ray = st.sampled_from(["x-request-id", "serve-multiplexed-model-id", "x-session-id"])
_headers: st.SearchStrategy[dict[str, str]] = st.one_of(
    st.just({}),
    st.dictionaries(st.builds("x-{}".format, _token), _latin, max_size=3),
    st.dictionaries(_read_by_ray, st.text(_visible, min_size=1, max_size=20), max_size=1),
    st.dictionaries(
        st.sampled_from(["accept", "cookie", "range", "content-encoding", "traceparent", "origin"]),
        _latin,
        max_size=3,
    ),
)
_query = st.one_of(
    st.just(""),
    st.builds("?{}".format, st.text(_visible.replace("#", ""), max_size=20)),
    st.builds("?{}={}".format, st.sampled_from(["xs", "name", "n", "x"]), st.from_regex(
        r"(-?[0-9]{1,3}|%[0-9a-fA-F]{2}|nan|1e999|&xs=|\+){1,3}", fullmatch=True)),
)  # fmt: skip
_bodies = st.one_of(
    *(_json_text, _damaged(), _pieced, st.binary(min_size=1, max_size=60)),
    st.builds(json.dumps, _text, ensure_ascii=st.booleans()).map(as_bytes),
    _text.map(as_bytes),
    st.none(),
)
_requests = st.builds(
    lambda method, path, query, kind, headers, body: Sent(
        method, path + query, headers | ({"content-type": kind} if kind else {}), body
    ),
    st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    st.sampled_from(["", "", "/", "/a/b", "/%2e%2e"]),
    _query,
    _content_type,
    _headers,
    _bodies,
)

AT_ONCE = 8
"""How many senders there are at once, each with its own requests and its own connection."""


@pytest.mark.parametrize("app", FUZZED)
def test_whatever_is_sent_is_answered(edge: Edge, app: str) -> None:
    """No request makes a 500 or a cut or missing answer; good ones are answered all the while."""

    def sender(number: int) -> None:
        @seed(FUZZED.index(app) * AT_ONCE + number)
        @settings(max_examples=100, deadline=None, database=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(_requests)
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
        pytest.param(b"[1]", {"content-type": "multipart/form-data"}, 415, id="multipart"),
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


def chunks(total: int) -> Iterator[bytes]:
    piece = b"x" * min(total, 1 << 20)
    for _ in range(total // len(piece)):
        yield piece


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize(
    ("app", "length", "limit"), [("faults", 1001, 1000), ("value", 100 << 20, 64 << 20)]
)
def test_a_body_over_the_limit_is_a_413(
    edge: Edge, app: str, length: int, limit: int, chunked: bool
) -> None:
    """A body beyond ``max_body_bytes``, set or by default, is refused, however it is sent."""
    body = chunks(length) if chunked else b"x" * length
    answer = edge.send(app, Sent(headers={"content-type": "text/plain"}, body=body))
    assert str(limit) in problem(answer, 413)["detail"]
    works(edge, app)


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_a_body_as_long_as_the_limit_is_taken(edge: Edge, chunked: bool) -> None:
    """``max_body_bytes`` is the longest body that is accepted."""
    body = b'{"a": ""}'.ljust(1000)
    sent = Sent(headers=JSON, body=iter([body[:7], body[7:]]) if chunked else body)
    assert edge.send("faults", sent).json() == {"a": ""}


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


def held(edge: Edge, app: str, value: Any) -> http.client.HTTPConnection | None:
    """Send a request that may never be answered: its connection, or ``None`` if it was."""
    connection = edge.connection()
    connection.request("POST", f"/{app}", json.dumps(value), JSON)
    assert connection.sock
    connection.sock.settimeout(0.5)
    try:
        connection.getresponse().read()
    except TimeoutError:
        return connection
    connection.close()
    return None


@pytest.mark.parametrize("number", range(3))  # Ray tells of it now in one way, now in another
def test_a_client_that_leaves_in_its_body_leaves_nothing(
    edge: Edge, logs: Path, number: int
) -> None:
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
        return logged(logs, "several", rf"{name} -- POST /several CANCELLED", deadline_s=2)

    assert until(left_in_the_replica)
    assert not logged(logs, "several", rf"request gone-{number}-\d+ failed", deadline_s=0)


# Problem details


def logged(
    logs: Path, app: str, pattern: str, *, deadline_s: float = TIMEOUT_S
) -> re.Match[str] | None:
    """Find something in the logs of an application's replicas."""

    def found() -> Any:
        written = "".join(f.read_text() for f in sorted(logs.glob(f"replica_{app}_*.log")))
        return re.search(pattern, written, re.DOTALL)

    return found() or until(found, deadline_s)  # type: ignore[no-any-return]


@pytest.mark.parametrize("stage", ["inline", "Fused", "Remote"])
def test_an_internal_error_is_told_to_the_log_alone(edge: Edge, logs: Path, stage: str) -> None:
    """A 500 names stage and request; the replica's log has the traceback under that name."""
    answer = edge.post("faults", {"raise": stage})
    details = problem(answer, 500)
    assert details["stage"] == stage
    assert "detail" not in details
    for leaked in (SECRET, "ValueError", "Traceback", "misbehave"):
        assert leaked not in answer.body.decode() + str(answer.headers)
    found = logged(
        logs,
        "faults_Faults",
        rf"request {details['request_id']} failed in stage '{stage}'\n"
        r"Traceback [^\n]*:\n(?:(?!INFO ).)*in misbehave\n(?:(?!INFO ).)*ValueError: (\S*)",
    )
    assert found
    assert found[1] == SECRET
    works(edge, "faults")


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


def test_an_error_cannot_forge_headers(edge: Edge) -> None:
    """Line ends in an error's detail and headers stay where they are."""
    answer = edge.post("faults", {"then": "refuse"})
    assert problem(answer, 400)["detail"] == "xb\r\nSet-Cookie: a=b"
    assert "set-cookie" not in answer.headers
    assert answer.headers["x-good"] == "b??Set-Cookie: a=b"
    works(edge, "faults")


def test_a_timeout_is_a_504(edge: Edge) -> None:
    """A stage that outlives its ``timeout_s`` answers 504 and is named."""
    assert problem(edge.post("faults", {"then": "timeout"}), 504)["stage"] == "forever"


def test_a_full_stage_is_a_503_until_a_client_leaves(edge: Edge) -> None:
    """Back-pressure answers 503 with ``Retry-After``; who leaves makes room again."""
    body = {"then": "busy"}
    waiting = [until(lambda: held(edge, "faults", body)) for _ in range(2)]
    answer = edge.post("faults", body)
    details = problem(answer, 503)
    assert details["stage"] == "Busy"
    assert int(answer.headers["retry-after"]) >= 1
    works(edge, "faults")  # the stages before it are free
    for connection in waiting:
        connection.close()
    again = until(lambda: held(edge, "faults", body))
    assert again
    again.close()


def test_a_stage_that_dies_is_a_503_that_says_which(edge: Edge, logs: Path) -> None:
    """A replica that dies in a request answers it with 503, and the others answer the next."""
    details = problem(edge.post("faults", {"then": "mortal", "die": True}), 503)
    assert details["stage"] == "Mortal"
    assert "try again" in details["detail"]
    assert logged(logs, "faults_Faults", rf"{details['request_id']} failed.*ActorDiedError")
    body = {"then": "mortal"}
    assert edge.post("faults", body).json() == body


# Server-Timing and metrics


@pytest.mark.parametrize(
    ("sent", "stages"),
    [
        ({}, ["inline", "Fused", "Remote"]),
        ({"raise": "Fused"}, ["inline", "Fused"]),
        ({"raise": "Remote"}, ["inline", "Fused", "Remote"]),
    ],
)
def test_server_timing_names_each_kind_of_stage(edge: Edge, sent: Any, stages: list[str]) -> None:
    """A function, a fused and a remote stage that have run are timed, whatever came of them."""
    timing = edge.post("faults", sent).headers["server-timing"]
    timed = dict(re.findall(r"(\w+);dur=([0-9.]+)", timing))
    assert [name for name in timed if name in ("inline", "Fused", "Remote")] == stages
    assert all(0 <= float(ms) < TIMEOUT_S * 1000 for ms in timed.values())


def scraped() -> dict[tuple[str, str], float]:
    """What Ray's own Prometheus endpoint says of one pipeline, by sample and stage."""
    found = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for family in text_string_to_metric_families(requests.get(url, timeout=TIMEOUT_S).text):
            for name, labels, number, *_ in family.samples:
                if labels.get("pipeline") == "Metered" and "_bucket" not in name:
                    found[name.removeprefix("ray_raycompose_"), labels["stage"]] = number
    return found


def test_metrics_are_at_rays_prometheus_endpoint(edge: Edge) -> None:
    """Calls, errors and dropped mirrored calls are counted per stage, of every kind."""
    counts = {
        ("stage_latency_ms_count", "inline"): 11,
        ("stage_latency_ms_count", "Fused"): 9,
        ("stage_latency_ms_count", "Remote"): 7,
        ("stage_errors_total", "inline"): 2,
        ("stage_errors_total", "Fused"): 2,
        ("stage_errors_total", "Remote"): 2,
        ("shadow_dropped_total", "shadow"): 4,
    }
    until(lambda: counts.keys() <= scraped().keys())
    found = scraped()
    assert {key: found.get(key) for key in counts} == counts, found
    sums = [number for (name, _), number in found.items() if name == "stage_latency_ms_sum"]
    assert len(sums) == 3
    assert all(0 < ms < 11 * TIMEOUT_S * 1000 for ms in sums)
