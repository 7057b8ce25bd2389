"""What a first stage is given is converted and validated as it is annotated."""

import dataclasses
import encodings
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, Optional, TypedDict
from urllib.parse import parse_qsl

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import serve
from starlette.requests import Request as StarletteRequest
from support.first_stages import Item, floats, item, number
from support.fuzz import examples
from support.local_http import CURL, ECHO, JSON, http, problem

import raycompose as rc
from raycompose.http.forms import form_fields

# Validation and conversion


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


def point(p: Point) -> Any:
    assert isinstance(p, Point)
    return [p.x, p.y]


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
    async for one in items:
        yield one


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


MEASURE = """
import tracemalloc
from urllib.parse import parse_qsl
from raycompose.http.forms import form_fields
for text in ("a=" + "%41" * 500_000, "a=" + "%x" * 500_000, "%" * 500_000):
    body = text.encode()
    tracemalloc.start()
    fields = form_fields(body, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fields == parse_qsl(text, keep_blank_values=True)
    assert peak < 11 * len(body), (text[:5], peak, len(body))
print("measured")
"""


def test_a_form_takes_a_few_times_its_size() -> None:
    """However a form is escaped, decoding it takes no more than ten times its memory.

    In a process of its own: beside threads that hold no lock of Python's, as Ray's, stopping
    tracemalloc may crash (seen in 3.11).
    """
    measuring = [sys.executable, "-W", "ignore", "-c", MEASURE]
    done = subprocess.run(measuring, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout == "measured\n", done.stderr


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


# TypedDicts, references, what collects names, defaults


class Order(TypedDict):
    item: str
    count: int


class Batch(TypedDict, total=False):
    orders: list[Order]
    note: Annotated[Order | None, "of the first"]


def ordered(order: Order) -> Any:
    return [order["count"], order["item"]]


def batch(batch: Batch) -> Any:
    return batch


def orders(orders: Sequence[Order]) -> int:
    return sum(order["count"] for order in orders)


async def referred(ref: rc.Ref[Item]) -> str:
    return (await ref).name


async def referred_of_several(ref: rc.Ref[int], times: int = 1) -> Any:
    return [type(ref).__name__, await ref * times]


def collecting(base: int = 0, **scores: int) -> int:
    return base + sum(scores.values())


def with_default(n: int = 5) -> int:
    return n


@pytest.mark.parametrize(
    ("function", "body", "result"),
    [
        (ordered, {"item": "a", "count": "2"}, [2, "a"]),
        (ordered, {"order": {"item": "a", "count": "2"}}, [2, "a"]),
        (orders, [{"item": "a", "count": "2"}], 2),
        (batch, {"orders": [{"item": "a", "count": "2"}]},
         {"orders": [{"item": "a", "count": 2}]}),
        (batch, {"note": {"item": "a", "count": "2"}}, {"note": {"item": "a", "count": 2}}),
        (referred, {"name": "a"}, "a"),
        (referred, {"ref": {"name": "a"}}, "a"),
        (referred_of_several, "3", ["Ref", 3]),
        (referred_of_several, {"ref": "3", "times": "2"}, ["Ref", 6]),
        (collecting, {"a": 1, "b": "2"}, 3),
        (collecting, {"base": "1", "b": "2"}, 3),
        (with_default, {}, 5),
    ],
)  # fmt: skip
def test_what_stands_for_a_type_is_converted(function: Any, body: Any, result: Any) -> None:
    """A TypedDict of any kind, what is behind a reference, what ``**names`` collects."""
    response = http(function).post("/", json=body)
    assert (response.text if isinstance(result, str) else response.json()) == result


@pytest.mark.parametrize(
    ("function", "body", "detail"),
    [
        (ordered, {"item": "a"}, "order.count: Field required"),
        (ordered, [1], "order: Input should be a valid dictionary"),
        (orders, [1], "orders.0: Input should be a valid dictionary"),
        (batch, {"orders": 1}, "batch.orders: Input should be a valid list"),
        (referred, {"nam": "a"}, "ref.name: Field required"),
        (referred_of_several, "x", "ref: Input should be a valid integer"),
        (collecting, {"a": "x"}, "a: Input should be a valid integer"),
        (collecting, 1.5, "base: Input should be a valid integer"),
        (with_default, {"m": 1}, "unknown: m; known: n"),
        (optional, {"m": 1}, "unknown: m; known: n"),
    ],
)
def test_what_stands_for_a_type_is_validated(function: Any, body: Any, detail: str) -> None:
    """The client is told where and what is wrong."""
    assert detail in problem(http(function).post("/", json=body), 422)["detail"]
