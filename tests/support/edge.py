"""Pipelines behind HTTP, and the other end of the wire."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import http.client
import json
import os
import re
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pydantic
import pytest
import ray
from ray import serve

import raycompose as rc
from support.cluster import FREE
from support.waiting import poll

TIMEOUT_S = 30.0
"""How long any answer may take before its test fails rather than hangs."""
SECRET = "the-password-of-the-database"
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


def deployed_edge(*names: str) -> Edge:
    """Deploy some of the pipelines, all at once."""
    apps = {name: app for name, app in pipelines().items() if name in names}
    serve.run_many(
        [serve.RunTarget(app, name=name, route_prefix=f"/{name}") for name, app in apps.items()]
    )
    return Edge(rc.connect(names[0]).url or "")


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


def logged(app: str, pattern: str, *, deadline_s: float = TIMEOUT_S) -> re.Match[str] | None:
    """Find something in the logs of an application's replicas."""

    def found() -> Any:
        written = "".join(f.read_text() for f in sorted(logs().glob(f"replica_{app}_*.log")))
        return re.search(pattern, written, re.DOTALL)

    return poll(found, deadline_s)  # type: ignore[no-any-return]


def logs() -> Path:
    """Where the session's replicas write their logs."""
    return Path(ray.nodes()[0]["ObjectStoreSocketName"]).parent.parent / "logs" / "serve"
