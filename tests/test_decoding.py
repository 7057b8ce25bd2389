"""What a request's body and query become, and how a first stage is given them."""

import json
from typing import Any

import pydantic
import pytest
from starlette.testclient import TestClient
from support.first_stages import pair, variadic
from support.local_http import CURL, ECHO, JSON, http, kind_and_value, problem

import raycompose as rc

# Bodies


@pytest.mark.parametrize("value", [{"a": [1]}, [1, 2], "text", 3, 2.5, True, None, {}, []])
@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/ld+json",
        "APPLICATION/JSON",
    ],
)
def test_json_is_decoded(value: Any, kind: str) -> None:
    """Every kind of JSON value arrives as it is, under every JSON content type."""
    response = ECHO.post("/", content=json.dumps(value), headers={"content-type": kind})
    assert response.json() == [type(value).__name__, value]


@pytest.mark.parametrize("value", [{"a": [1]}, [1, 2], "text", 3, True, None])
@pytest.mark.parametrize("headers", [CURL, {}], ids=["curl -d", "no type"])
def test_json_is_recognised_under_the_type_that_curl_sends(value: Any, headers: Any) -> None:
    """``curl -d '{...}'`` sends JSON as a form, and it is JSON all the same."""
    response = ECHO.post("/", content=json.dumps(value), headers=headers)
    assert response.json() == [type(value).__name__, value]


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ("a=1&b=two+words&c=", {"a": "1", "b": "two words", "c": ""}),
        ("name=J%C3%BCrgen", {"name": "Jürgen"}),
        ("a=1&a=2", {"a": ["1", "2"]}),
        ("a=%7B", {"a": "{"}),
    ],
)
def test_a_form_is_a_dict(body: str, form: Any) -> None:
    """A urlencoded form arrives as a dict of str; what is sent twice is a list."""
    assert ECHO.post("/", content=body, headers=CURL).json() == ["dict", form]


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("text/plain", "naïve".encode(), "naïve"),
        ("text/plain; charset=latin-1", "naïve".encode("latin-1"), "naïve"),
        ('text/plain; charset="utf-16"', "naïve".encode("utf-16"), "naïve"),
        ("text/csv; header=present; CHARSET=UTF-8", b"a,b", "a,b"),
        ("text/html", b"<p>", "<p>"),
        ("text/plain", b'{"a": 1}', '{"a": 1}'),
    ],
)
def test_text_is_a_str(kind: str, body: bytes, text: str) -> None:
    """Text arrives as a str, decoded by its charset, and is never taken for JSON."""
    response = ECHO.post("/", content=body, headers={"content-type": kind})
    assert response.json() == ["str", text]


@pytest.mark.parametrize("kind", ["application/octet-stream", "image/png", "audio/wav"])
def test_other_types_are_bytes(kind: str) -> None:
    """Any other type arrives as bytes, untouched."""
    body = bytes(range(256))
    response = ECHO.post("/", content=body, headers={"content-type": kind})
    assert response.json() == ["bytes", body.decode("latin-1")]


def test_without_a_type_what_is_no_json_is_text() -> None:
    """A body without a type is JSON if it can be, else text."""
    assert ECHO.post("/", content=b"hello world").json() == ["str", "hello world"]


def test_without_a_type_what_is_no_text_is_bytes() -> None:
    """A body without a type that is neither JSON nor text is bytes: an unknown type."""
    assert ECHO.post("/", content=b"\x89PNG\xff\xfe").json() == ["bytes", "\x89PNG\xff\xfe"]


def test_without_a_body_the_query_is_a_dict() -> None:
    """No body: the query parameters arrive as a dict of str."""
    assert ECHO.get("/?a=1&b=two").json() == ["dict", {"a": "1", "b": "two"}]


def test_a_body_wins_over_the_query() -> None:
    """With a body the query parameters are not the input."""
    assert ECHO.post("/?a=1", json=5).json() == ["int", 5]


def test_with_nothing_at_all_there_is_no_argument() -> None:
    """Nothing at all: the stage is called with no argument."""
    assert http(lambda: "called").get("/").text == "called"
    assert http(lambda x="default": x).get("/").text == "default"
    assert http(lambda *args, **kwargs: [len(args), len(kwargs)]).get("/").json() == [0, 0]


def test_nothing_sent_to_a_stage_that_needs_something_is_a_422() -> None:
    """A required parameter that was not sent is named."""
    details = problem(http(lambda wanted: wanted).get("/"), 422)
    assert "wanted" in details["detail"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_every_method_is_answered(method: str) -> None:
    """The HTTP method does not matter."""
    assert ECHO.request(method, "/?a=1").json() == ["dict", {"a": "1"}]


# Arguments


def positional(a: int, /, b: int) -> list[int]:
    return [a, b]


def defaults_by_position(a: int = 1, b: int = 2, /) -> list[int]:
    return [a, b]


def keyword(a: int, *, b: int) -> list[int]:
    return [a, b]


def default_only(*, n: int = 4) -> int:
    return n


@pytest.mark.parametrize(
    ("function", "body", "result"),
    [
        (pair, {"a": 1, "b": 2}, 3),
        (pair, {"a": 1}, 11),
        (positional, {"a": 1, "b": 2}, [1, 2]),
        (defaults_by_position, {"b": 5}, [1, 5]),
        (defaults_by_position, {"a": 5}, [5, 2]),
        (lambda *args: list(args), {"a": 1}, [{"a": 1}]),
        (lambda **rest: rest, {"x": 1}, {"x": 1}),
        (keyword, {"a": 1, "b": 2}, [1, 2]),
        (default_only, {"n": 7}, 7),
        (variadic, {"a": 1, "b": 2, "c": 3}, [1, {"b": 2, "c": 3}]),
        (variadic, {"a": 1}, [1, {}]),
        (lambda a, b: [a, b], {"b": 1, "a": 2}, [2, 1]),
        (lambda **all_: all_, {"x": 1}, {"x": 1}),
    ],
)
def test_an_object_is_spread_over_several_parameters(function: Any, body: Any, result: Any) -> None:
    """An object gives each parameter its value by name; defaults fill in what is not sent."""
    assert http(function).post("/", json=body).json() == result


def test_query_parameters_are_spread_and_converted() -> None:
    """Query parameters are spread over several parameters and converted as annotated."""
    assert http(pair).get("/?a=1&b=2").json() == 3
    assert http(keyword).get("/?a=1&b=2").json() == [1, 2]


def test_form_fields_are_spread_and_converted() -> None:
    """Form fields are spread over several parameters and converted as annotated."""
    assert http(pair).post("/", content="a=1&b=2", headers=CURL).json() == 3


def test_a_value_that_is_no_object_is_the_first_argument() -> None:
    """A list or a number goes to the first of several parameters when the others have defaults."""
    assert http(pair).post("/", json=5).json() == 15


def test_a_value_that_is_no_object_where_several_are_required_is_a_422() -> None:
    """A number sent to a stage that requires two parameters names what is missing."""
    details = problem(http(lambda a, b: [a, b]).post("/", json=5), 422)
    assert "b" in details["detail"]


def test_a_value_for_a_keyword_only_parameter_is_a_422() -> None:
    """A number sent to a stage that takes its parameters by name alone is the sender's fault."""
    assert "n" in problem(http(default_only).post("/", json=5), 422)["detail"]


def test_a_value_for_a_stage_without_parameters_is_no_server_error() -> None:
    """What a stage without parameters is sent is ignored, or refused as the sender's fault."""
    assert http(lambda: 1).post("/", json={"a": 1}).status_code in (200, 422)
    assert http(lambda: 1).post("/", json=5).status_code in (200, 422)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "a"),
        ({"b": 1}, "a"),
        ({"a": 1, "b": 2, "surplus": 3}, "surplus"),
        ({"a": "text"}, "a"),
        ({"a": None}, "a"),
        ({"a": 1, "b": [1]}, "b"),
    ],
)
def test_wrong_arguments_are_a_422_that_names_them(body: Any, named: str) -> None:
    """Missing, unknown and invalid arguments answer 422 and say which."""
    details = problem(http(pair).post("/", json=body), 422)
    assert named in details["detail"]


@pytest.mark.parametrize("kind", ["text/plain", "application/xml"])
def test_what_does_not_fit_says_that_it_was_not_sent_as_json(kind: str) -> None:
    """The usual reason is a forgotten content type."""
    client, body = http(pair), '"text"'
    details = problem(client.post("/", content=body, headers={"content-type": kind}), 422)
    assert f"was sent as {kind}; JSON is sent as application/json" in details["detail"]
    assert "sent as" not in problem(client.post("/", content=body, headers=JSON), 422)["detail"]


@pytest.mark.parametrize("key", ["self", "cls", "__class__", "args", "kwargs", "value", "ctx", ""])
@pytest.mark.parametrize("function", [pair, variadic, kind_and_value, lambda **kwargs: 1])
def test_names_that_mean_something_to_python_are_just_names(function: Any, key: str) -> None:
    """No key of an object reaches anything but the stage's own parameters."""
    response = http(function).post("/", json={"a": 1, key: 2})
    assert response.status_code in (200, 422)


class Adder:
    def __call__(self, a: int, b: int = 0) -> int:
        return a + b


def test_self_is_no_parameter_of_a_callable_object() -> None:
    """``self`` cannot be sent: it is unknown."""
    assert "self" in problem(http(Adder()).post("/", json={"a": 1, "self": 2}), 422)["detail"]
    assert http(Adder()).post("/", json={"a": 1, "b": 2}).json() == 3


class Query(pydantic.BaseModel):
    q: str = "default"


class Open(Query, extra="allow"):
    pass


def test_a_model_is_not_made_of_its_defaults_for_a_parameters_name() -> None:
    """``{"ask": {...}}`` is what ``ask`` is to be, unless the model keeps others."""

    def asked(ask: Query) -> Any:
        return ask.model_dump()

    def kept(ask: Open) -> Any:
        return ask.model_dump()

    def named(q: Query) -> Any:
        return q.model_dump()

    assert http(asked).post("/", json={"ask": {"q": "v"}}).json() == {"q": "v"}
    assert http(asked).post("/", json={"q": "v"}).json() == {"q": "v"}
    assert http(asked).post("/", json={}).json() == {"q": "default"}
    assert http(kept).post("/", json={"ask": 1}).json() == {"q": "default", "ask": 1}
    assert http(named).post("/", json={"q": "v"}).json() == {"q": "v"}
    assert problem(http(asked).post("/", json={"ask": {"q": 1}}), 422)["detail"].startswith("ask.q")


def test_a_first_stage_inside_limits_is_still_the_first() -> None:
    """Limits around the first stage do not change how its arguments are decoded."""
    assert http(rc.stage(pair, timeout_s=5)).post("/", json={"a": 1, "b": 2}).json() == 3


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"text": "x", "foo": 1}, "unknown: foo; known: text"),
        ({"review": "x"}, "missing: text; unknown: review"),
        ({}, "missing: text"),
        ({"text": 5}, "text: Input should be a valid string"),
        (5, "text: Input should be a valid string"),
    ],
)
def test_an_object_that_does_not_fit_one_parameter(body: Any, detail: str) -> None:
    """It is told which member is missing or unknown, as where there are several parameters."""

    def takes_text(text: str) -> str:
        return text

    answer = TestClient(rc.local(rc.pipeline(takes_text)).asgi).post("/", json=body)
    assert (answer.status_code, answer.json()["detail"]) == (422, detail)


@pytest.mark.parametrize(
    ("kind", "hints"),
    [("text/plain", True), ("application/x-www-form-urlencoded", False), ("", False)],
)
def test_how_to_send_json_is_told_where_it_was_not_known_as_such(kind: str, hints: bool) -> None:
    """Under what ``curl -d`` sends JSON is known: another type would change nothing."""

    def number(n: int) -> int:
        return n

    response = http(number).post("/", content='"x"', headers={"content-type": kind})
    assert ("JSON is sent as" in problem(response, 422)["detail"]) == hints
