"""One meaning of misuse, whichever engine: what is called wrongly says what to do instead."""

# mypy does not see what Ray's decorators add: .bind.
# mypy: disable-error-code="attr-defined"

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from ray import serve
from starlette.requests import Request
from starlette.testclient import TestClient
from support import pickle_by_value
from support.cluster import HERE
from support.local_http import http as http_of

import raycompose as rc
from raycompose.errors import Hinting

pickle_by_value(__name__)

api = FastAPI()


class Api:
    """A FastAPI app, with a method besides its route."""

    @api.get("/")
    def root(self) -> str:
        return "here"

    def double(self, x: int, times: int = 2) -> int:
        return x * times


def items(x: int) -> Iterator[int]:
    yield x


def total(a: int, b: int) -> int:
    return a + b


@pytest.fixture(scope="module", params=["local", "distributed"])
def opened(request: pytest.FixtureRequest) -> Any:
    """Opens an application on the engine."""
    if request.param == "local":
        return rc.local
    return request.getfixturevalue("deploy")


@pytest.fixture(scope="module")
def streaming(opened: Any) -> Any:
    return opened(rc.pipeline(items))


@pytest.fixture(scope="module")
def fastapi(opened: Any) -> Any:
    return opened(serve.deployment(serve.ingress(api)(Api), name="Api", **HERE).bind())


@pytest.fixture(scope="module")
def adding(opened: Any) -> Any:
    return opened(rc.pipeline(total))


@pytest.mark.parametrize("options", [{}, {"timeout_s": 20}])
def test_a_call_of_what_streams(streaming: Any, options: Any) -> None:
    """``call`` on a pipeline that streams says to stream, and ``stream`` works."""
    with pytest.raises(TypeError, match=r"this pipeline streams: use client\.stream\(\.\.\.\)"):
        streaming.call(1, **options)
    assert list(streaming.stream(1)) == [1]


def test_a_stream_of_what_does_not(adding: Any) -> None:
    """``stream`` on a pipeline of one value says to call."""
    with pytest.raises(TypeError, match=r"does not stream: use client\.call\(\.\.\.\)"):
        list(adding.stream(1, 2))
    assert adding.call(1, 2) == 3


@pytest.mark.parametrize("options", [{}, {"timeout_s": 20}])
def test_a_call_of_a_fastapi_app(fastapi: Any, options: Any) -> None:
    """It answers HTTP, and its methods are called by name."""
    with pytest.raises(TypeError, match=r"FastAPI app, which answers HTTP: .*method=\"\.\.\.\""):
        fastapi.call(1, **options)
    with pytest.raises(TypeError, match="FastAPI app, which answers HTTP"):
        list(fastapi.stream(1))
    assert fastapi.call(4, method="double", **options) == 8
    assert fastapi.call(4, times=3, method="double") == 12


def test_an_object_for_several_parameters(adding: Any) -> None:
    """A mapping with their names is spread; one without them is one value, of too few."""
    assert adding.call({"a": 1, "b": 2}) == adding.call(a=1, b=2) == 3
    for wrong in ({"a": 1}, {"a": 1, "c": 2}):
        with pytest.raises(TypeError, match="missing 1 required positional argument") as caught:
            adding.call(wrong)
        assert rc.failed_stage(caught.value) == "total"


@pytest.mark.parametrize(
    ("made", "tried", "instead"),
    [
        (lambda: rc.pipeline(total), "remote", "client = rc.run(app)"),
        (lambda: rc.pipeline(total), "call", "client = rc.local(app)"),
        (lambda: rc.pipeline(total).embed(), "remote", "'await pipeline(x)'"),
        (lambda: rc.local(rc.pipeline(total)), "remote", "await acall(...)"),
    ],
)
def test_what_is_like_a_handle_and_is_none(made: Any, tried: str, instead: str) -> None:
    """A habit from handles is told what to do; any other name is Python's plain error."""
    with pytest.raises(AttributeError, match=f"no attribute '{tried}': ") as caught:
        getattr(made(), tried)
    assert instead in str(caught.value)
    assert not hasattr(made(), tried)
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        made().nothing  # noqa: B018


def test_a_propertys_own_error_is_not_hidden() -> None:
    """An ``AttributeError`` inside of a property is raised as it is."""

    class Broken(Hinting):
        @property
        def value(self) -> int:
            raise AttributeError("its own")

    with pytest.raises(AttributeError, match=r"^its own$"):
        Broken().value  # noqa: B018


def test_the_class_of_pipelines_is_no_constructor() -> None:
    """``rc.Pipeline(...)`` says how pipelines are made."""
    with pytest.raises(TypeError, match=r"made by rc\.pipeline\(\.\.\.\)"):
        rc.Pipeline(total)  # type: ignore[arg-type]


def test_a_closed_client(opened: Any) -> None:
    """It says that it is closed, and closing it again does nothing."""
    client = opened(rc.pipeline(total))
    client.close()
    client.close()
    with pytest.raises(rc.RayComposeError, match="is closed: open another"):
        client.call(1, 2)
    with pytest.raises(rc.RayComposeError, match="is closed: open another"):
        list(client.stream(1, 2))


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda: rc.pipeline(len, rc.each), r"rc\.each makes a stage, and is none: call it"),
        (lambda: rc.pipeline(len, rc.pipeline), r"call it, as in rc\.pipeline\(\.\.\.\)"),
        (lambda: rc.pipeline(len, rc.Ref[str]), "not a stage: got raycompose"),
        (lambda: rc.pipeline(len, list[int]), "not a stage: got (the class )?list"),
        (lambda: rc.optional(len, abs), r"would be returned, not called: rc\.fallback"),
        (lambda: rc.optional(len, rc.pipeline(abs)), r"default=Pipeline\(abs\) would be returned"),
    ],
)
def test_what_makes_stages_is_none(compose: Any, message: str) -> None:
    """A combinator or a type that is not called, and a stage in the place of a value."""
    with pytest.raises(rc.CompositionError, match=message):
        compose()


def test_an_http_errors_status_comes_first() -> None:
    """Whatever is given for the status is in the message."""
    with pytest.raises(ValueError, match=r"HTTPError\(status, detail\) .* got 'bad'"):
        rc.HTTPError("bad", 403)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 200"):
        rc.HTTPError(200)


def with_request(request: Request, k: int) -> Any:
    return k


def request_last(k: int, request: Request) -> Any:
    return k


YES: Any = "yes"


def with_default(x: int = 0) -> int:
    return x


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda: rc.pipeline(with_request), "takes a request, and also requires k, which nothing"),
        (lambda: rc.pipeline(request_last), "'request' is a Request, .* put it first"),
        (lambda: rc.stage(with_default, stream=True), "stream=True, but it returns int: yield"),
        (lambda: rc.stage(len, stream=YES), "stream='yes' must be True, False or None"),
        (lambda: rc.pick(["a", "b"]), r"takes the keys one by one, got \['a', 'b'\]"),
    ],
)
def test_what_no_request_can_give_is_refused(compose: Any, message: str) -> None:
    """Where it is composed, rather than for every request."""
    with pytest.raises(rc.CompositionError, match=message):
        compose()


@pytest.mark.parametrize("timeout_s", ["x", -1, True])
def test_a_deadline_that_is_none(timeout_s: Any) -> None:
    """Said before anything is called, by each way to call."""
    client = rc.local(rc.pipeline(len))
    message = "must be a number of seconds, or None"
    with pytest.raises(ValueError, match=message):
        client.call([], timeout_s=timeout_s)
    with pytest.raises(ValueError, match=message):
        asyncio.run(client.acall([], timeout_s=timeout_s))
    with pytest.raises(ValueError, match=message):
        list(client.stream([], timeout_s=timeout_s))


def test_a_closed_clients_http() -> None:
    """Its stages are torn down: it says so, as ``call`` does."""
    client = rc.local(rc.pipeline(len))
    http = TestClient(client.asgi)
    assert http.post("/", json=[1]).json() == 1
    client.close()
    with pytest.raises(rc.RayComposeError, match="is closed: open another"):
        http.post("/", json=[1])


def test_what_is_no_application_is_not_deployed() -> None:
    """Ray is not started for it."""
    with pytest.raises(rc.CompositionError, match="not a stage: got 3"):
        rc.run(3)


def test_values_that_cannot_be_sent_or_chosen_by() -> None:
    """What is at fault is named: a key of another type, a member that is no key."""
    client = http_of(lambda x: {(1, 2): x}, debug=True)
    assert "a dict with a tuple for a key" in client.post("/", json=1).text
    client = http_of(rc.split((len, 100), key="user"))
    answer = client.post("/", json={"user": {}})
    assert (answer.status_code, answer.json()["detail"]) == (
        422, "'split' chooses by 'user', which is no dict"
    )  # fmt: skip
    assert http_of(only_others).post("/", json=1).json()["detail"] == "send an object"


def only_others(**others: int) -> Any:
    return others
