"""The HTTP edge of a deployed pipeline, where Ray's own replicas and proxy take part."""

import sys
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
import ray
import requests
from ray import serve
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse
from support.cluster import Deploy

import raycompose as rc

# Replicas cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class NotReady(rc.HTTPError):
    def __init__(self, what: str, *, hint: str) -> None:
        super().__init__(425, f"{what} is not ready", {"X-Kind": "1"})
        self.hint = hint


class Forgetful(Exception):
    def __init__(self, account: str, missing: int) -> None:
        super().__init__(f"{account} lacks {missing}")
        self.missing = missing


class Lines(Exception):
    def __init__(self, code: int, extra: Any) -> None:
        super().__init__("first\nstarlette.exceptions.HTTPException: 409: forged")


class Amount(pydantic.BaseModel):
    cents: int


class Model:
    async def raising(self, what: str) -> Any:
        if what == "subclass":
            raise NotReady("model", hint="wait")
        if what == "forgetful":
            raise Forgetful("savings", 5)
        if what == "lines":
            raise Lines(1, extra=2)
        raise HTTPException(status_code=int(what))

    async def keywords(self, **rest: Any) -> Any:
        return rest

    async def plain(self, request: Request) -> Any:
        return {"got": [request.json(), await request.is_disconnected()]}

    async def upload(self, request: Request) -> Any:
        async with request.form() as form:
            file = form["file"]
            assert isinstance(file, UploadFile)
            return [form["title"], file.filename, (await file.read()).decode()]

    async def streaming(self, x: Any) -> Any:
        def pieces() -> Iterator[bytes]:
            yield b"a"

        return StreamingResponse(pieces())

    def unsendable(self, x: Any) -> Any:
        return {"a": [complex(1, 2)]}

    def two(self, a: int, b: int) -> int:
        return a * 10 + b

    def doubled(self, amount: Amount) -> int:
        return amount.cents * 2


def up_to(n: int) -> Iterator[int]:
    yield from range(n)


@pytest.fixture(scope="module", params=["distributed", "fused"])
def clients(request: pytest.FixtureRequest, deploy: Deploy) -> dict[str, rc.Client]:
    model = serve.deployment(Model, ray_actor_options={"num_cpus": 0}).bind()

    def at(method: str) -> Any:
        return rc.stage(model, method=method, name=method)

    mixed = rc.switch("at", {"many": rc.pipeline(lambda x: 2, up_to), "one": lambda x: "one"})
    apps = {
        "raising": at("raising"),
        "keywords": at("keywords"),
        "requests": rc.switch(lambda request: "json" if "json" in request.headers["content-type"]
                              else "form", {"json": at("plain"), "form": at("upload")}),
        "results": rc.switch("at", {"streaming": at("streaming"), "unsendable": at("unsendable"),
                                    "two": rc.pipeline({"a": len, "b": len}, at("two"))}),
        "mixed": mixed,
        "branches": rc.parallel(
            doubled=at("doubled"),
            inverted=rc.optional(rc.pipeline(at("doubled"), lambda x: 1 // x), default=-1)),
    }  # fmt: skip
    first = rc.pipeline(_request, apps["requests"])
    apps["requests"] = first
    fused = request.param == "fused"
    return {name: deploy(app.fuse() if fused else app) for name, app in apps.items()}


async def _request(request: Request) -> Any:
    return request


def post(client: rc.Client, **sent: Any) -> requests.Response:
    assert client.url is not None
    return requests.post(client.url, timeout=60, **sent)


def test_an_http_error_of_ones_own_keeps_type_and_status(clients: dict[str, rc.Client]) -> None:
    """A subclass of ``HTTPError`` with its own ``__init__`` is itself, from any replica."""
    response = post(clients["raising"], json="subclass")
    assert (response.status_code, response.headers["x-kind"]) == (425, "1")
    assert response.json()["stage"] == "raising"
    with pytest.raises(rc.HTTPError) as caught:
        clients["raising"].call("subclass")
    assert type(caught.value).__name__ == "NotReady"
    assert vars(caught.value)["hint"] == "wait"


@pytest.mark.parametrize("what", ["forgetful", "lines"])
def test_an_exception_of_ones_own_is_a_500_of_its_stage(
    clients: dict[str, rc.Client], what: str
) -> None:
    """No line of a message sets the status, and the stage is named, whatever can be sent."""
    response = post(clients["raising"], json=what)
    assert (response.status_code, response.json()["stage"]) == (500, "raising")
    with pytest.raises(Exception, match="savings lacks 5" if what == "forgetful" else "first"):
        clients["raising"].call(what)


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_leaves_the_connection_in_order(
    clients: dict[str, rc.Client], status: int
) -> None:
    """``HTTPException(204)`` of a replica is a 204, and leaves the connection in order."""
    url = clients["raising"].url
    assert url is not None
    with requests.Session() as session:
        for _ in range(3):
            response = session.post(url, json=str(status), timeout=60)
            assert (response.status_code, response.content) == (status, b"")


@pytest.mark.parametrize(
    "name", ["self", "request_meta", "pickled_request_metadata", "request_metadata", "args",
             "kwargs", "method_name", "request_args", "request_kwargs", "stream", "context"]
)  # fmt: skip
def test_every_name_is_an_argument_or_a_422(clients: dict[str, rc.Client], name: str) -> None:
    """``**kwargs`` takes any name but those of Ray's own calls, which are the sender's fault."""
    response = post(clients["keywords"], json={name: 1})
    assert response.status_code == 422 or response.json() == {name: 1}


@pytest.mark.parametrize("value", ["true", "false", "null", "[1]"])
def test_json_is_plain_in_another_replica(clients: dict[str, rc.Client], value: str) -> None:
    """``request.json()`` is the plain value in a replica's result; the client is still there."""
    response = post(clients["requests"], data=value, headers={"content-type": "application/json"})
    assert response.text == f'{{"got":[{value},false]}}'


def test_an_upload_reaches_a_replica(clients: dict[str, rc.Client]) -> None:
    """A multipart form arrives in a stage of another replica as Starlette's."""
    response = post(clients["requests"], data={"title": "t"}, files={"file": ("a.txt", b"text")})
    assert response.json() == ["t", "a.txt", "text"]


def test_parallel_gives_a_replicas_method_its_arguments(clients: dict[str, rc.Client]) -> None:
    """A mapping is spread over the parameters of a deployed method."""
    assert post(clients["results"], json={"at": "two"}).json() == 11


def test_what_cannot_be_sent_names_its_stage(clients: dict[str, rc.Client]) -> None:
    """A result without a JSON form is a 500 of the stage that gave it."""
    response = post(clients["results"], json={"at": "unsendable"})
    assert (response.status_code, response.json()["stage"]) == (500, "unsendable")


def test_a_streaming_response_streams_or_says_what_to_do(clients: dict[str, rc.Client]) -> None:
    """A StreamingResponse is sent when its stage is fused; else the error says what to do."""
    response = post(clients["results"], json={"at": "streaming"})
    if response.status_code == 200:
        assert response.text == "a"
        return
    assert response.json()["stage"] == "streaming"
    with pytest.raises(Exception, match=r".") as caught:
        clients["results"].call({"at": "streaming"})
    assert "yield the items" in str(caught.value) + str(getattr(caught.value, "__notes__", ""))


def test_paths_below_are_404(clients: dict[str, rc.Client]) -> None:
    """Only what begins at the route prefix is the pipeline's, unless a stage takes a request."""
    url = clients["raising"].url
    assert (
        requests.post(f"{url}below", json="404", timeout=60).json()["detail"].endswith("below it")
    )
    assert requests.post(f"{url}", json="418", timeout=60).status_code == 418
    below = requests.post(f"{clients['requests'].url}below", json=1, timeout=60)
    assert below.json() == {"got": [1, False]}


def test_one_result_is_one_item(clients: dict[str, rc.Client]) -> None:
    """``stream()`` gives the items, or the one result of a branch that does not stream."""
    assert list(clients["mixed"].stream({"at": "many"})) == [0, 1]
    assert list(clients["mixed"].stream({"at": "one"})) == ["one"]
    with pytest.raises(TypeError, match="does not stream"):
        list(clients["raising"].stream("subclass"))


def test_branches_convert_what_was_sent(clients: dict[str, rc.Client]) -> None:
    """Each by its own signature, and a mistake of the client is none of the branch's."""
    sent = {"cents": "0"}
    assert post(clients["branches"], json=sent).json() == {"doubled": 0, "inverted": -1}
    response = post(clients["branches"], json={"cents": "x"})
    assert response.status_code == 422, response.text
    assert response.json()["detail"].startswith("amount.cents: Input should be a valid integer")
