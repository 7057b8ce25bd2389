"""Requests: a Starlette request that crosses processes and whose JSON needs no await."""

import asyncio
import dataclasses
import gc
import json
import math
import pickle
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pydantic
import pytest
import starlette.requests
from ray import serve
from starlette.testclient import TestClient

import raycompose as rc

KINDS = [
    {"a": [1, {"b": None}]},
    {},
    [1, "two", 3.5],
    [],
    "text",
    "",
    7,
    0,
    -2.5,
    1e300,
    True,
    False,
    None,
]
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/predict",
    "query_string": b"a=1&b=two&b=three",
    "headers": [(b"content-type", b"application/json"), (b"cookie", b"k=v"), (b"x-id", b"9")],
}


def made(value: Any) -> rc.Request:
    return rc.Request(SCOPE, json.dumps(value).encode())


def http(app: Any) -> TestClient:
    return TestClient(rc.local(app).asgi, raise_server_exceptions=True)


async def awaited(request: rc.Request) -> Any:
    return await request.json()


# json() with and without await


@pytest.mark.parametrize("value", KINDS)
def test_json_needs_no_await(value: Any) -> None:
    """``request.json()`` equals the JSON value, for every kind of JSON."""
    assert made(value).json() == value


@pytest.mark.parametrize("value", KINDS)
def test_json_may_be_awaited(value: Any) -> None:
    """``await request.json()`` is the plain value, of Python's own type."""
    result = asyncio.run(awaited(made(value)))
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize("value", KINDS)
def test_json_may_be_read_again(value: Any) -> None:
    """Reading twice, either way, gives the same."""
    request = made(value)
    assert request.json() == request.json() == asyncio.run(awaited(request)) == value


@pytest.mark.parametrize("value", [v for v in KINDS if not isinstance(v, bool) and v is not None])
def test_json_is_an_instance_of_its_kind(value: Any) -> None:
    """Without await the value is a dict, list, str, int or float for isinstance too."""
    assert isinstance(made(value).json(), type(value))


@pytest.mark.parametrize("value", KINDS)
def test_json_is_true_or_false_like_its_value(value: Any) -> None:
    """``if request.json():`` decides as the plain value would."""
    assert bool(made(value).json()) is bool(value)


@pytest.mark.parametrize("value", KINDS)
def test_json_is_encoded_like_its_value(value: Any) -> None:
    """What ``json()`` gives can be encoded as JSON again, awaited or not."""
    assert json.loads(json.dumps({"got": asyncio.run(awaited(made(value)))})) == {"got": value}
    if not isinstance(value, bool) and value is not None:
        assert json.loads(json.dumps({"got": made(value).json()})) == {"got": value}


@pytest.mark.parametrize("value", KINDS)
def test_json_pickles_as_the_plain_value(value: Any) -> None:
    """Sent to another process, the value is Python's own: no type of ours travels."""
    sent = pickle.loads(pickle.dumps([made(value).json()]))[0]
    assert sent == value
    assert type(sent) is type(value)


@pytest.mark.parametrize("value", KINDS)
def test_json_prints_like_its_value(value: Any) -> None:
    """``print(request.json())`` shows the plain value."""
    assert str(made(value).json()) == str(value)
    assert repr(made(value).json()) == repr(value)
    assert f"{made(value).json()}" == f"{value}"


async def returned(request: starlette.requests.Request) -> Any:
    return request.json()


async def nested(request: starlette.requests.Request) -> Any:
    return {"got": [request.json(), (request.json(),)]}


async def yielded(request: starlette.requests.Request) -> Any:
    yield request.json()


def in_a_thread(request: starlette.requests.Request) -> Any:
    return {"got": [request.json(), (request.json(),)]}


@pytest.mark.parametrize("value", KINDS)
@pytest.mark.parametrize("stage", [nested, in_a_thread])
def test_json_is_the_plain_value_in_a_result(stage: Any, value: Any) -> None:
    """What ``json()`` gives is Python's own value wherever a stage puts it, awaited or not."""
    client = rc.local(rc.pipeline(stage, lambda x: x["got"]))
    one, (two,) = client.call(made(value))
    assert (one, two) == (value, value)
    assert {type(one), type(two)} == {type(value)}
    response = http(rc.pipeline(stage)).post("/", content=json.dumps(value))
    assert response.json() == {"got": [value, [value]]}


@pytest.mark.parametrize("value", [True, False, None, [1], "text"])
def test_json_is_the_plain_value_as_a_result(value: Any) -> None:
    """A stage that returns or yields ``request.json()`` gives the JSON value itself."""
    assert (
        rc.local(rc.pipeline(returned, lambda x: type(x).__name__)).call(made(value))
        == type(value).__name__
    )
    for stage in (returned, yielded):
        response = http(rc.pipeline(stage, lambda x: [x])).post("/", content=json.dumps(value))
        assert response.json() == [value]


class Model(pydantic.BaseModel):
    x: Any


async def refused(request: starlette.requests.Request) -> Any:
    raise rc.HTTPError(422, {"got": [request.json()]})


async def modelled(request: starlette.requests.Request) -> Any:
    return Model(x=[request.json()])


@dataclasses.dataclass
class Held:
    x: Any


async def held_in_several(request: starlette.requests.Request) -> Any:
    return [Held([Model(x=request.json())]), float("nan")]


@pytest.mark.parametrize("value", KINDS)
def test_json_is_the_plain_value_in_problem_details(value: Any) -> None:
    """An error's detail shows what ``json()`` gave, and nothing else of the request."""
    secrets = {"authorization": "Bearer s", "cookie": "k=v"}
    answer = http(rc.pipeline(refused)).post("/", content=json.dumps(value), headers=secrets)
    assert answer.json()["data"] == {"got": [value]}
    assert "Bearer" not in answer.text


@pytest.mark.parametrize("value", KINDS)
def test_json_is_the_plain_value_in_a_model(value: Any) -> None:
    """A pydantic model that holds what ``json()`` gave is sent, as deep as it may be."""
    content = json.dumps(value)
    assert http(rc.pipeline(modelled)).post("/", content=content).json() == {"x": [value]}
    assert http(rc.pipeline(held_in_several)).post("/", content=content).json() == [
        {"x": [{"x": value}]}, None]  # fmt: skip


@pytest.mark.parametrize("value", KINDS)
def test_json_shows_nothing_of_its_request(value: Any) -> None:
    """Nothing that ``json()`` gives leads to the request and its headers."""

    async def reachable(request: rc.Request) -> list[Any]:
        found: list[Any] = [request.json()]
        for _ in range(3):
            held = gc.get_referents(*(o for o in found if not isinstance(o, type | ModuleType)))
            found += held
        return found

    assert not any(isinstance(o, rc.Request) for o in asyncio.run(reachable(made(value))))


class Kind:
    def __call__(self, value: Any) -> str:
        return type(value).__name__


class Asks:
    def __init__(self, kind: Any) -> None:
        self._kind = kind

    async def __call__(self, request: starlette.requests.Request) -> Any:
        return await self._kind.remote(request.json())


class Gives:
    async def __call__(self, request: starlette.requests.Request) -> Any:
        return request.json()


async def kind_of_referred(ref: rc.Ref[Any]) -> str:
    return type(await ref).__name__


@pytest.mark.parametrize("value", [True, None, {"a": 1}, 7])
def test_json_is_the_plain_value_for_others(value: Any) -> None:
    """A handle's callee, an embedded pipeline and who awaits a reference get Python's own value."""
    embedded = rc.pipeline(lambda x: type(x).__name__).embed()

    async def asks(request: starlette.requests.Request) -> Any:
        return await embedded(request.json())

    for app in (
        serve.deployment(Asks).bind(serve.deployment(Kind).bind()),
        rc.pipeline(serve.deployment(Gives).bind(), kind_of_referred),
        asks,
    ):
        answer = http(rc.pipeline(app)).post("/", content=json.dumps(value))
        assert answer.text == type(value).__name__


def test_json_that_was_changed_pickles_as_it_is() -> None:
    """An object that a stage changed crosses processes with the change, awaited or not."""

    async def change(request: rc.Request) -> Any:
        body: Any = request.json()
        body["more"] = 1
        waited = await request.json()
        waited["other"] = 2
        return pickle.loads(pickle.dumps([body, waited, request.json(), await body]))

    body, waited, again, later = asyncio.run(change(made({"a": 1})))
    assert body == later == {"a": 1, "more": 1}
    assert waited == {"a": 1, "other": 2}
    assert again == {"a": 1}


@pytest.mark.parametrize("body", [b"{", b"NaN", b"1e999", b"", b"[" * 10_000])
def test_malformed_json_is_pythons_own_error(body: bytes) -> None:
    """``except json.JSONDecodeError`` catches it, also in another process."""
    with pytest.raises(json.JSONDecodeError) as caught:
        rc.Request(SCOPE, body).json()
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, json.JSONDecodeError)
    assert (again.msg, again.lineno) == (caught.value.msg, 1)
    assert isinstance(again, rc.HTTPError)
    assert again.status == 400
    assert str(again) == str(caught.value)


def test_the_client_is_there_until_it_leaves() -> None:
    """``is_disconnected()`` is false as long as the client waits for the answer."""

    async def ask(request: starlette.requests.Request) -> Any:
        for n in range(3):
            if await request.is_disconnected():
                return
            yield n

    assert http(rc.pipeline(ask)).post("/", json=1).text.split() == ["0", "1", "2"]
    assert http(rc.pipeline(lambda x: x, ask)).post("/", json=1).text.split() == ["0", "1", "2"]
    again = pickle.loads(pickle.dumps(made(1)))
    assert asyncio.run(again.is_disconnected()) is False


def test_json_of_the_seed_reads_either_way() -> None:
    """``request.json()["data"]`` and ``(await request.json())["data"]`` are the same."""

    def plain(request: starlette.requests.Request) -> Any:
        body: Any = request.json()
        return body["data"]

    async def awaiting(request: starlette.requests.Request) -> Any:
        return (await request.json())["data"]

    for stage in (plain, awaiting):
        assert http(rc.pipeline(stage)).post("/", json={"data": [1, 2]}).json() == [1, 2]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"nonsense"])
def test_a_body_that_is_not_json_raises_a_value_error(body: bytes) -> None:
    """``json()`` of what is not JSON raises a ValueError, as Starlette's does."""
    with pytest.raises(ValueError, match=r"."):
        rc.Request(SCOPE, body).json()


@pytest.mark.parametrize("body", [b"{", b'{"a": NaN}', b"\xff", b"[" * 100_000])
def test_malformed_json_in_the_users_hands_is_the_senders_fault(body: bytes) -> None:
    """A stage that calls ``request.json()`` on a malformed body answers 400, not 500."""

    def plain(request: starlette.requests.Request) -> Any:
        return request.json()

    response = http(rc.pipeline(plain)).post(
        "/", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["stage"] == "plain"


def test_one_caller_cannot_change_what_another_reads() -> None:
    """``json()`` is a value: changing it does not change the request for those who read next."""
    request = made({"a": 1})
    request.json()["a"] = 2
    assert request.json() == {"a": 1}


# What is Starlette's


def test_headers_query_cookies_and_path_are_starlettes() -> None:
    """Headers, query parameters, cookies, method and path are those of the HTTP request."""

    def show(request: starlette.requests.Request) -> dict[str, Any]:
        assert isinstance(request, starlette.requests.Request)
        return {
            "header": request.headers["X-Id"],
            "query": request.query_params.multi_items(),
            "cookies": request.cookies,
            "method": request.method,
            "path": request.url.path,
            "client": request.client is not None,
        }

    client = http(rc.pipeline(show))
    client.cookies.set("k", "v")
    assert client.put("/deep/er?a=1&b=2&b=3", headers={"x-id": "9"}).json() == {
        "header": "9",
        "query": [["a", "1"], ["b", "2"], ["b", "3"]],
        "cookies": {"k": "v"},
        "method": "PUT",
        "path": "/deep/er",
        "client": True,
    }


def test_the_body_may_be_read_in_every_way() -> None:
    """``body()`` and ``stream()`` give the whole body, as often as they are asked."""

    async def read(request: starlette.requests.Request) -> Any:
        streamed = b"".join([chunk async for chunk in request.stream()])
        return [streamed.decode(), (await request.body()).decode(), await request.json()]

    content = b'{"a": 1}'
    response = http(rc.pipeline(read)).post("/", content=content)
    assert response.json() == [content.decode(), content.decode(), {"a": 1}]


def test_a_body_in_pieces_is_put_together() -> None:
    """A body that arrives in chunks is one body."""

    async def read(request: starlette.requests.Request) -> str:
        return (await request.body()).decode()

    def pieces() -> Iterator[bytes]:
        yield b"one,"
        yield b"two"

    assert http(rc.pipeline(read)).post("/", content=pieces()).text == "one,two"


def test_a_form_is_starlettes() -> None:
    """``await request.form()`` parses the form, urlencoded or multipart."""

    async def read(request: starlette.requests.Request) -> Any:
        return dict(await request.form())

    assert http(rc.pipeline(read)).post("/", data={"a": "1"}).json() == {"a": "1"}

    async def upload(request: starlette.requests.Request) -> Any:
        async with request.form() as form:
            file: Any = form["file"]
            return [form["title"], file.filename, file.content_type, (await file.read()).decode()]

    sent = {"file": ("a.txt", b"text", "text/plain")}
    client = http(rc.pipeline(upload))
    assert client.post("/", data={"title": "t"}, files=sent).json() == [
        "t", "a.txt", "text/plain", "text"]  # fmt: skip
    bad = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post("/", content=b"--y\r\n", headers=bad).status_code == 400


def test_a_parameter_named_request_gets_one() -> None:
    """An unannotated parameter named ``request`` gets the request over HTTP."""
    app = rc.pipeline(lambda request: request.json()["n"] + 1)
    assert http(app).post("/", json={"n": 1}).json() == 2


# Pickling


def test_a_request_pickles() -> None:
    """A request crosses processes with its headers, query, cookies, path and body."""
    again = pickle.loads(pickle.dumps(made({"a": 1})))
    assert isinstance(again, rc.Request)
    assert again.json() == {"a": 1}
    assert again.headers["x-id"] == "9"
    assert again.query_params.getlist("b") == ["two", "three"]
    assert again.cookies == {"k": "v"}
    assert again.url.path == "/predict"
    assert asyncio.run(again.body()) == b'{"a": 1}'


def test_a_request_made_of_a_value_pickles() -> None:
    """A later stage's request crosses processes with the value that it was made of."""
    again = pickle.loads(pickle.dumps(rc.Request.of({"a": (1, 2)}, SCOPE)))
    assert again.json() == {"a": (1, 2)}
    assert again.headers["x-id"] == "9"


def test_a_request_that_was_read_pickles() -> None:
    """Having read the JSON does not keep a request from crossing processes."""
    request = made([1, 2])
    asyncio.run(awaited(request))
    assert pickle.loads(pickle.dumps(request)).json() == [1, 2]


def test_what_cannot_be_sent_is_left_out_of_the_scope() -> None:
    """Objects that a server puts into the scope do not keep a request from pickling."""
    scope = {**SCOPE, "app": lambda: None, "state": {"lock": object()}, "extensions": {"x": open}}
    assert pickle.loads(pickle.dumps(rc.Request(scope, b"1"))).json() == 1


# Later stages


@pytest.mark.parametrize(
    ("output", "body"),
    [
        ({"a": 1}, {"a": 1}),
        ({}, {}),
        ([1, 2], {"data": [1, 2]}),
        ("text", {"data": "text"}),
        (None, {"data": None}),
        (3, {"data": 3}),
    ],
)
def test_a_later_stage_gets_the_output_as_the_requests_json(output: Any, body: Any) -> None:
    """A mapping is the body as it is; anything else is ``{"data": output}``."""

    def later(request: starlette.requests.Request) -> Any:
        return request.json()

    async def awaiting(request: starlette.requests.Request) -> Any:
        return [await request.json(), json.loads(await request.body())]

    assert http(rc.pipeline(lambda: output, later)).get("/").json() == body
    assert http(rc.pipeline(lambda: output, awaiting)).get("/").json() == [body, body]


def test_a_later_stage_keeps_headers_query_and_path() -> None:
    """The headers, the query and the path of a later stage's request are the original's."""

    def later(request: starlette.requests.Request) -> Any:
        return [request.headers["x-id"], request.query_params["q"], request.url.path]

    app = rc.pipeline(lambda x: x, later)
    response = http(app).post("/deep?q=1", json=5, headers={"x-id": "9"})
    assert response.json() == ["9", "1", "/deep"]


def test_a_later_stage_works_without_http() -> None:
    """Called from Python, a stage that takes a request gets one made of the value."""

    def later(request: starlette.requests.Request) -> Any:
        return [request.json(), dict(request.query_params), request.headers.get("x")]

    assert rc.local(rc.pipeline(lambda x: x, later)).call(5) == [{"data": 5}, {}, None]
    assert rc.local(rc.pipeline(later)).call({"a": 1}) == [{"a": 1}, {}, None]


def test_a_request_is_passed_on_between_stages() -> None:
    """A stage that returns its request hands the same request to the next."""

    def first(request: starlette.requests.Request) -> Any:
        return request

    def second(request: starlette.requests.Request) -> Any:
        return request.json()

    assert http(rc.pipeline(first, second)).post("/", json={"a": 1}).json() == {"a": 1}


@pytest.mark.parametrize("output", [math.nan, {1, 2}, {"a": object}])
def test_an_output_that_is_no_json_is_still_read(output: Any) -> None:
    """``json()`` of a later stage gives the value itself, whether JSON could hold it or not."""

    def later(request: starlette.requests.Request) -> Any:
        return str(request.json())

    assert rc.local(rc.pipeline(lambda: output, later)).call()


@pytest.mark.parametrize("begin", [rc.passthrough, rc.parallel(lambda x: x)])
def test_a_request_reaches_stages_behind_a_combinator(begin: Any) -> None:
    """A stage behind a combinator gets the decoded body as its request's JSON."""

    def later(request: starlette.requests.Request) -> Any:
        return [request.json(), request.headers["x-id"]]

    response = http(rc.pipeline(begin, later)).post("/", json={"a": 1}, headers={"x-id": "9"})
    assert response.json()[1] == "9"
    assert response.status_code == 200
