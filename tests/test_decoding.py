"""An HTTP request becomes the first stage's arguments; what is wrong with it is a 4xx."""

import contextlib
import dataclasses
import encodings
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Optional
from urllib.parse import parse_qsl

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray import serve
from starlette.requests import Request as StarletteRequest
from starlette.testclient import TestClient
from support.fuzz import examples

import raycompose as rc
from raycompose.flow.json import parse_json
from raycompose.http.forms import form_fields

JSON = {"content-type": "application/json"}
CURL = {"content-type": "application/x-www-form-urlencoded"}


def http(*stages: Any, **options: Any) -> TestClient:
    app = rc.pipeline(*stages)
    return TestClient(rc.local(app.options(**options) if options else app).asgi)


def kind_and_value(x: Any) -> Any:
    """Return what arrived in a form that JSON can hold."""
    return [type(x).__name__, x.decode("latin-1") if isinstance(x, bytes) else x]


def problem(response: Any, status: int) -> dict[str, Any]:
    """Return a response's problem details, having checked their shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/problem+json")
    details: dict[str, Any] = response.json()
    assert details["status"] == status
    assert details["title"]
    return details


ECHO = http(kind_and_value)


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


def pair(a: int, b: int = 10) -> int:
    return a + b


def positional(a: int, /, b: int) -> list[int]:
    return [a, b]


def defaults_by_position(a: int = 1, b: int = 2, /) -> list[int]:
    return [a, b]


def keyword(a: int, *, b: int) -> list[int]:
    return [a, b]


def default_only(*, n: int = 4) -> int:
    return n


def variadic(a: int, **rest: Any) -> Any:
    return [a, rest]


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


# Validation and conversion


class Item(pydantic.BaseModel):
    name: str
    price: float = 1.0


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


def item(item: Item) -> Any:
    assert isinstance(item, Item)
    return item


def point(p: Point) -> Any:
    assert isinstance(p, Point)
    return [p.x, p.y]


def floats(xs: list[float]) -> Any:
    return [type(x).__name__ for x in xs]


def number(n: int) -> int:
    return n + 1


def optional(n: int | None = None) -> Any:
    return [n]


def literal(mode: Literal["fast", "slow"]) -> list[str]:
    return [mode]


def many(items: list[Item], scale: float = 1.0) -> Any:
    return [i.price * scale for i in items]


@pytest.mark.parametrize(
    ("function", "body", "result"),
    [
        (item, {"name": "a"}, {"name": "a", "price": 1.0}),
        (item, {"name": "a", "price": "2.5"}, {"name": "a", "price": 2.5}),
        (point, {"x": 1}, [1, 0]),
        (point, {"x": "1", "y": 2}, [1, 2]),
        (floats, [1, 2.5, "3"], ["float", "float", "float"]),
        (number, 4, 5),
        (number, "4", 5),
        (number, {"n": 4}, 5),
        (number, {"n": "4"}, 5),
        (optional, None, [None]),
        (optional, 3, [3]),
        (optional, {"n": 3}, [3]),
        (literal, "fast", ["fast"]),
        (many, [{"name": "a", "price": 2}], [2.0]),
        (many, {"items": [{"name": "a", "price": 2}], "scale": 2}, [4.0]),
        (lambda x: x, {"n": 4}, {"n": 4}),
    ],
)
def test_the_input_is_converted_as_annotated(function: Any, body: Any, result: Any) -> None:
    """Models, dataclasses, numbers and lists arrive as the annotation says."""
    assert http(function).post("/", json=body).json() == result


@pytest.mark.parametrize(
    ("function", "query", "result"),
    [
        (number, "n=4", 5),
        (item, "name=a&price=2", {"name": "a", "price": 2.0}),
        (point, "x=1&y=2", [1, 2]),
        (optional, "n=3", [3]),
        (literal, "mode=slow", ["slow"]),
        (floats, "xs=1", ["float"]),
    ],
)
def test_query_strings_are_converted_as_annotated(function: Any, query: str, result: Any) -> None:
    """Query parameters are text, and become numbers and models where those are annotated."""
    assert http(function).get(f"/?{query}").json() == result


def test_a_list_is_taken_from_a_repeated_query_parameter() -> None:
    """``?xs=1&xs=2`` gives a parameter annotated ``list[float]`` both."""
    assert http(floats).get("/?xs=1&xs=2").json() == ["float", "float"]


class Search(pydantic.BaseModel):
    words: list[str]
    tags: set[str] | None = pydantic.Field(None, alias="tag")


def search(s: Search) -> Any:
    return [s.words, sorted(s.tags or ())]


@dataclasses.dataclass
class Bag:
    xs: list[int]


@pytest.mark.parametrize(
    ("annotation", "result"),
    [
        (list[int], [1]),
        (list[int] | None, [1]),
        (Optional[list[int]], [1]),  # noqa: UP045  # people write it
        (Sequence[int], [1]),
        (Iterable[int], [1]),
        (Iterator[int], [1]),
        (frozenset[int], [1]),
        (Annotated[list[int] | None, "note"], [1]),
        (int | list[int], 1),
        (str | list[str], "1"),
    ],
)
def test_one_query_parameter_is_a_list_of_one(annotation: Any, result: Any) -> None:
    """``?xs=1`` gives a parameter that takes a list, however that is written, a list of one."""

    def stage(xs: Any, other: int = 0) -> Any:
        return [xs if isinstance(xs, int | str) else list(xs)]

    stage.__annotations__["xs"] = annotation
    assert http(stage).get("/?xs=1").json() == [result]
    assert http(stage).post("/", content="xs=1", headers=CURL).json() == [result]
    if isinstance(result, list):
        assert http(stage).get("/?xs=1&xs=2").json() == [[1, 2]]
        assert http(stage).post("/", json={"xs": [1, 2]}).json() == [[1, 2]]


def test_one_query_parameter_is_a_list_of_one_in_a_model() -> None:
    """A model's field that takes a list, or a dataclass's, gets a list of one, too."""
    assert http(search).get("/?words=a&tag=b").json() == [["a"], ["b"]]
    assert http(lambda bag: bag.xs).get("/").status_code == 422

    def bag(b: Bag) -> Any:
        return b.xs

    assert http(bag).get("/?xs=1").json() == [1]


def first_items(items: Iterable[int]) -> Any:
    return [type(items).__name__, sum(items)]


def first_iterator(items: Iterator[int]) -> Any:
    return next(items)


def of_later(items: list["Later"], one: Optional["Later"] = None) -> Any:  # tested
    return [item.n for item in items]


class Later(pydantic.BaseModel):
    n: int


class Unfinished(pydantic.BaseModel):
    other: "Missing"  # type: ignore[name-defined]  # noqa: F821


def unfinished(x: Unfinished) -> Any:
    return x


@pytest.mark.parametrize(
    ("function", "body", "result"),
    [
        (first_items, [1, "2"], ["list", 3]),
        (first_iterator, ["7", 8], 7),
        (of_later, {"items": [{"n": "1"}]}, [1]),
        (unfinished, {"other": 1}, {"other": 1}),
    ],
)
def test_every_annotation_of_a_first_stage_works_over_http(
    function: Any, body: Any, result: Any
) -> None:
    """Names in annotations are resolved, iterables are lists; what is unclear is left alone."""
    assert http(function).post("/", json=body).json() == result


@pytest.mark.parametrize("body", [{"a": 1}, 5, "text", None])
def test_each_wants_a_list(body: Any) -> None:
    """A pipeline that begins with ``rc.each`` takes a list; anything else is a 422 that says so."""
    client = http(rc.stage(rc.each(number), timeout_s=5), sum)
    details = problem(client.post("/", content=json.dumps(body), headers=JSON), 422)
    assert "list" in details["detail"]
    assert client.post("/", json=[1, 2]).json() == 5


@pytest.mark.parametrize("name", ["self", "request_meta", "pickled_request_metadata"])
def test_names_of_rays_own_are_no_arguments(name: str) -> None:
    """What Ray's own calls have a parameter of cannot be sent to ``**kwargs``: 422, not 500."""
    details = problem(http(lambda **rest: rest).post("/", json={name: 1}), 422)
    assert name in details["detail"]


def test_charsets_leave_nothing_behind() -> None:
    """Python remembers each name of a codec that it looks up; senders do not choose those."""
    for n in range(50):
        for charset in (f"no-such-{n}", "utf" + "-" * n + "8", "utf" + "_" * n + "8"):
            kind = f"text/plain; charset={charset}"
            assert ECHO.post("/", content=b"x", headers={"content-type": kind}).status_code < 500
    assert _charsets_of_senders() == []


async def title_of_form(request: StarletteRequest) -> Any:
    form = await request.form()
    return form["a"] if form is await request.form() else "read twice"


@pytest.mark.parametrize("stage", [lambda x: x["a"], title_of_form])
def test_charsets_of_multipart_forms_leave_nothing_behind(stage: Any) -> None:
    """Nor by a multipart form, whoever reads it; unknown, it is Latin-1, as Starlette has it."""
    client = http(stage)
    form = b'--b"\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xe9\r\n--b"--\r\n'

    def sent(kind: str) -> Any:
        headers = {"content-type": f"multipart/form-data; {kind}"}
        return client.post("/", content=form, headers=headers)

    for charset in ("no-such", "utf--16--no", "cp-----1252", "latin-1"):
        assert sent(rf'boundary="b\""; charset={charset}').text == "é"
    assert sent(r'charset="cp1251"; boundary="b\""').text == "й"
    assert sent("charset=no-such-boundary").status_code == 400
    assert _charsets_of_senders() == []


async def added(items: AsyncIterator[int], by: int = 0) -> int:
    return sum([i async for i in items], by)


async def added_up(items: rc.Stream[int]) -> int:
    return sum([i async for i in items])


def added_in_a_thread(items: rc.Stream[int]) -> int:
    return sum(items)


async def passed_on(items: rc.Stream[int]) -> AsyncIterator[int]:
    async for item in items:
        yield item


STREAM_TAKERS = [
    (added_up,),
    (added_in_a_thread,),
    (serve.deployment(added_up).bind(),),
    (passed_on, added_up),
]


@pytest.mark.parametrize("stages", [(added,), *STREAM_TAKERS])
def test_a_list_is_sent_to_a_first_stage_that_takes_a_stream(stages: Any) -> None:
    """Over HTTP the items of a stream are a list; what is none is a 422."""
    client = http(*stages)
    assert client.post("/", json=[1, "2"]).json() == 3
    assert client.get("/?items=1").json() == 1
    problem(client.post("/", json=[1, "x"]), 422)
    problem(client.post("/", json=5), 422)


def test_a_first_stage_that_is_passed_a_stream_gets_one() -> None:
    """``pass_by="stream"`` takes a list over HTTP as well, of anything."""
    client = http(rc.stage(lambda items: list(items), name="unannotated", pass_by="stream"))
    assert client.post("/", json=[1, "x"]).json() == [1, "x"]
    problem(client.post("/", json={"a": 1}), 422)


def test_a_stream_beside_other_arguments_is_a_list() -> None:
    """A stage that takes several gets its stream out of an object."""
    assert http(added).post("/", json={"items": [1, 2], "by": 3}).json() == 6


def _charsets_of_senders() -> list[str]:
    """What Python remembers of the names that senders made up."""
    return [name for name in encodings._cache if "no_such" in name or "--" in name]


@pytest.mark.parametrize("text", ["a=" + "%41" * 500_000, "a=" + "%x" * 500_000, "%" * 500_000])
def test_a_form_takes_a_few_times_its_size(text: str) -> None:
    """However a form is escaped, decoding it takes no more than ten times its memory."""
    body = text.encode()
    tracemalloc.start()
    fields = form_fields(body, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fields == parse_qsl(text, keep_blank_values=True)
    assert peak < 11 * len(body)


@settings(max_examples=examples(300, 5000), deadline=None)
@given(st.lists(st.sampled_from([*"%%%==&&++\n\r 4aFgé3dD", "%C3%A9", "%ff", "%c3"]), max_size=12))
def test_a_form_is_read_as_python_reads_it(parts: list[str]) -> None:
    """What the standard library reads in a form is read, and what it refuses is refused."""
    text = "".join(parts)
    try:
        expected = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=5)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            form_fields(text.encode(), 5)
        return
    assert form_fields(text.encode(), 5) == expected


def test_a_form_of_very_many_fields_is_refused() -> None:
    """A field takes many times the memory of its text, so there is a limit to them."""
    body = b"&".join(b"a" for _ in range(200_000)) + b"&b=1"
    problem(ECHO.post("/", content=body, headers=CURL), 400)


@pytest.mark.parametrize(
    ("function", "body", "result"),
    [
        ("batched", {"a": "1", "b": 2}, 3),
        ("anything", {"a": 1}, [{"a": 1}]),
        ("anything", 5, [5]),
    ],
)
def test_methods_take_an_object(function: str, body: Any, result: Any) -> None:
    """A batched method of two parameters gets its object spread; ``*args`` gets it whole."""

    class Model:
        @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]  # Ray's
        async def batched(self, a: list[int], b: list[int]) -> list[int]:
            return [x + y for x, y in zip(a, b, strict=True)]

        def anything(self, *args: Any) -> Any:
            return list(args)

    client = http(rc.stage(serve.deployment(Model).bind(), method=function))
    assert client.post("/", json=body).json() == result


@pytest.mark.parametrize(
    ("function", "body", "where"),
    [
        (item, {"price": 1}, "name"),
        (item, {"name": "a", "price": "much"}, "price"),
        (item, [1], "item"),
        (point, {"y": 1}, "x"),
        (floats, [1, "two"], "xs.1"),
        (floats, "text", "xs"),
        (number, "four", "n"),
        (number, 4.5, "n"),
        (literal, "medium", "mode"),
        (many, {"items": [{"name": "a"}, {"price": 1}]}, "items.1.name"),
    ],
)
def test_what_does_not_validate_is_a_422_with_where_and_what(
    function: Any, body: Any, where: str
) -> None:
    """An invalid value answers 422; the detail says where it is and what is wrong."""
    detail = problem(http(function).post("/", json=body), 422)["detail"]
    assert where in str(detail)
    assert len(str(detail)) > len(where) + 5


def test_invalid_values_are_not_a_stages_failure() -> None:
    """The stage does not run when its input is invalid."""
    calls = []

    def stage(n: int) -> None:
        calls.append(n)

    problem(http(stage).post("/", json="x"), 422)
    assert calls == []


def test_the_users_own_validation_error_is_the_servers_fault() -> None:
    """A pydantic error that a stage raises by itself is not blamed on the sender."""

    def stage(x: Any) -> Any:
        return Item.model_validate({"wrong": x})

    problem(http(stage).post("/", json=1), 500)


def test_a_validator_that_raises_is_a_422() -> None:
    """A model's own validator decides, and what it says reaches the sender."""

    class Positive(pydantic.BaseModel):
        n: int

        @pydantic.field_validator("n")
        @classmethod
        def check(cls, n: int) -> int:
            if n <= 0:
                raise ValueError("must be above zero")
            return n

    def stage(p: Positive) -> int:
        return p.n

    assert "above zero" in problem(http(stage).post("/", json={"n": 0}), 422)["detail"]


def test_types_that_pydantic_does_not_know_are_left_alone() -> None:
    """An annotation that cannot be validated leaves the input as it is."""

    class Opaque:
        pass

    def stage(x: Opaque) -> Any:
        return x

    assert http(stage).post("/", json=[1]).json() == [1]


# Malformed


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"a": }',
        b"nonsense",
        b"\xff\xfe\x00",
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": NaN}',
        b"Infinity",
        b"[-Infinity]",
        b'{"a": 1} trailing',
        b"9" * 10_000,
        b"'single'",
    ],
    ids=repr,
)
def test_malformed_json_is_a_400(body: bytes) -> None:
    """What is not valid JSON answers 400; NaN and Infinity are not JSON."""
    detail = problem(ECHO.post("/", content=body, headers=JSON), 400)["detail"]
    assert "JSON" in detail


@pytest.mark.parametrize(
    "body",
    [
        b"1" * 448_000,
        b"[" + b"1" * 448_000 + b"]",
        b"[0." + b"1" * 448_000 + b"]",
        b"[" + b",".join([b"1" * 4000] * 112) + b"]",
        json.dumps("x" * 448_000).encode(),
        json.dumps("é" * 75_000).encode(),
        b"\xef\xbb\xbf" + json.dumps("x" * 448_000).encode(),
        json.dumps("x" * 112_000).encode("utf-32"),
    ],
    ids=["digits", "digits in a list", "float", "integers", "text", "escaped", "signed", "utf-32"],
)
def test_long_json_takes_no_more_time_than_in_python(body: bytes) -> None:
    """448 kB of one number or text are read in a time like that of the standard library."""
    ours, pythons = (
        min(_cpu_s(partial(parse, body)) for _ in range(5)) for parse in (parse_json, json.loads)
    )
    assert ours < 30 * pythons + 0.01  # it is about the same; a square would be 10,000 times it


def _cpu_s(action: Callable[[], Any]) -> float:
    began = time.thread_time()
    with contextlib.suppress(ValueError):  # so many digits are refused
        action()
    return time.thread_time() - began


@pytest.mark.parametrize("body", [b"{", b'{"a": NaN}', b"[1,", b"[" * 100_000])
@pytest.mark.parametrize("headers", [CURL, {}], ids=["curl -d", "no type"])
def test_what_begins_like_json_and_is_not_is_a_400(body: bytes, headers: Any) -> None:
    """A broken object or list is malformed JSON under curl's type too, not a form."""
    problem(ECHO.post("/", content=body, headers=headers), 400)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"\xff\xff", "text/plain"),
        (b"\xff", "text/plain; charset=utf-8"),
        (b"x", "text/plain; charset=no-such-charset"),
        (b"x", "text/plain; charset=base64"),
        (b"x", "text/plain; charset=rot13"),
        (b"x", "text/plain; charset=\x00"),
        (b"x", "text/plain; charset="),
        (b"\x00", "text/plain; charset=utf-32"),
        (b"a=%FF", "application/x-www-form-urlencoded"),
        (b"\xff=1", "application/x-www-form-urlencoded"),
        (b"&".join(b"a%d=1" % i for i in range(100_000)), "application/x-www-form-urlencoded"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_undecodable_text_and_forms_are_the_senders_fault(body: bytes, kind: str) -> None:
    """Text or a form that cannot be decoded answers 4xx, never 5xx."""
    response = ECHO.post("/", content=body, headers={"content-type": kind})
    assert response.status_code < 500


def test_an_unknown_charset_is_named() -> None:
    """A charset that does not exist answers 400 or 415 and names it."""
    response = ECHO.post("/", content=b"x", headers={"content-type": "text/plain; charset=klingon"})
    assert "klingon" in problem(response, response.status_code)["detail"]
    assert response.status_code in (400, 415)


def test_a_compressed_body_is_a_415() -> None:
    """A content encoding that is not undone is refused rather than handed on as garbage."""
    response = ECHO.post("/", content=b"\x1f\x8b", headers={**JSON, "content-encoding": "gzip"})
    assert response.status_code in (400, 415)


def upload(file: bytes, title: str, tags: list[str], n: int = 1) -> Any:
    return [file.decode(), title, tags, n]


def test_a_multipart_form_is_an_object_of_fields_and_bytes() -> None:
    """Fields arrive as text and files as bytes; several parameters get theirs, converted."""
    sent: Any = {"data": {"title": "t", "tags": "a", "n": "3"}, "files": {"file": ("x", b"text")}}
    assert http(upload).post("/", **sent).json() == ["text", "t", ["a"], 3]
    twice = [("xs", ("x", b"1")), ("xs", ("y", b"2"))]
    assert http(lambda x: [b.decode() for b in x["xs"]]).post("/", files=twice).json() == ["1", "2"]
    both = http(rc.parallel(a=lambda form: form["file"].decode(), b=lambda form: form["title"]))
    assert both.post("/", **sent).json() == {"a": "text", "b": "t"}
    large = {"file": ("x", b"z" * 3_000_000)}
    assert http(lambda form: len(form["file"])).post("/", files=large).json() == 3_000_000


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("body", [b"x", b"--x", b"--x\r\n\r\n", b"\xff" * 100])
def test_a_malformed_multipart_form_is_the_senders_fault(kind: str, body: bytes) -> None:
    """A multipart form that cannot be parsed is a 400, or what of it there is."""
    assert ECHO.post("/", content=body, headers={"content-type": kind}).status_code < 500


def test_a_body_that_is_too_long_is_a_413() -> None:
    """A body longer than max_body_bytes answers 413 and says the limit."""
    client = http(kind_and_value, max_body_bytes=10)
    assert client.post("/", content=b"[1, 2, 34]").status_code == 200
    details = problem(client.post("/", content=b"[1, 2, 345]"), 413)
    assert "10" in details["detail"]


def test_a_body_that_is_too_long_is_not_read_to_its_end() -> None:
    """A body without end is refused once the limit has passed, not collected."""
    sent = []

    def endless() -> Any:
        for _ in range(1000):
            sent.append(1)
            yield b"x" * 100

    assert http(kind_and_value, max_body_bytes=50).post("/", content=endless()).status_code == 413


# Hostile


@pytest.mark.parametrize(
    "body",
    [
        b'"\\ud800"',
        b'{"\\udfff": 1}',
        b'{"a": 1, "a": 2}',
        b"1e400",
        b"-1e400",
        b"1e-400",
        b"[1e999999999]",
        b"123456789012345678901234567890",
        b'{"__class__": "x", "__init__": 1, "__dict__": {}}',
        b'"\\u0000"',
        b"[" * 200 + b"]" * 200,
        b"[" * 900 + b"]" * 900,
        b"[" * 5000 + b"]" * 5000,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b"-0",
        b"[]" + b" " * 10_000,
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize(
    "function", [lambda x: x, item, number, floats, variadic, pair], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("headers", [JSON, CURL, {}], ids=["json", "curl", "none"])
def test_a_hostile_body_is_never_a_server_error(
    function: Callable[..., Any], body: bytes, headers: Any
) -> None:
    """Whatever is sent, it is the sender's fault (4xx) or works; it is never a 5xx."""
    response = http(function).post("/", content=body, headers=headers)
    assert response.status_code < 500, response.text


@pytest.mark.parametrize("body", [b"1e400", b"[-1e999]", b'{"a": 1e400}'])
def test_a_number_beyond_all_floats_is_answered_in_json(body: bytes) -> None:
    """A number that no float holds is refused, or answered in valid JSON: never as Infinity."""
    response = ECHO.post("/", content=body, headers=JSON)
    assert response.status_code in (200, 400, 422)
    assert "Infinity" not in response.text


@settings(
    max_examples=examples(150, long=10_000), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(body=st.binary(max_size=60), headers=st.sampled_from([JSON, CURL, {}]))
def test_random_bytes_are_never_a_server_error(body: bytes, headers: Any) -> None:
    """Random bytes under any of the usual types are 2xx or 4xx."""
    assert ECHO.post("/", content=body, headers=headers).status_code < 500


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner),
    max_leaves=8,
)  # fmt: skip


@settings(
    max_examples=examples(150, long=10_000), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(value=_json)
def test_every_json_value_arrives_as_it_was_sent(value: Any) -> None:
    """Any JSON value reaches a stage unchanged, and back."""
    response = http_echo.post("/", content=json.dumps(value), headers=JSON)
    assert response.json() == [value]


http_echo = http(lambda x: [x])


@pytest.mark.parametrize("query", ["a=%FF", "a=%", "=", "a&b", "%00=%00", "a=" + "x" * 50_000])
def test_a_hostile_query_is_never_a_server_error(query: str) -> None:
    """Whatever the query holds, it is a dict of str or a 4xx."""
    assert ECHO.get(f"/?{query}").status_code < 500


def test_nothing_is_taken_for_a_header_or_the_scope() -> None:
    """What the body holds does not reach the headers of the answer."""
    response = ECHO.post("/", json={"headers": {"x-evil": "1"}, "status": 500})
    assert response.status_code == 200
    assert "x-evil" not in response.headers


# Pipelines that begin with a combinator


def test_a_pipeline_that_begins_with_a_combinator_gets_the_decoded_body() -> None:
    """A combinator takes one value: an object is not spread, a query is a dict."""
    client = http(rc.parallel(a=lambda x: x, b=lambda x: x))
    assert client.post("/", json={"n": 1}).json() == {"a": {"n": 1}, "b": {"n": 1}}
    assert client.get("/?n=1").json() == {"a": {"n": "1"}, "b": {"n": "1"}}


def test_a_pipeline_that_begins_with_a_combinator_needs_a_value() -> None:
    """Nothing at all sent to a combinator is a 422, and says what to send."""
    details = problem(http(rc.parallel(lambda x: x)).get("/"), 422)
    assert "body" in details["detail"]


def test_a_first_stage_inside_limits_is_still_the_first() -> None:
    """Limits around the first stage do not change how its arguments are decoded."""
    assert http(rc.stage(pair, timeout_s=5)).post("/", json={"a": 1, "b": 2}).json() == 3


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"text": "x", "foo": 1}, "unknown: foo; known are text"),
        ({"review": "x"}, "missing: text"),
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
