"""Pipelines that begin with a combinator: each branch converts what was sent over HTTP."""

import asyncio
import json
import pickle
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any

import pydantic
import pytest
from starlette.requests import Request
from support.local_http import http, problem

import raycompose as rc
from raycompose.graph.sequences import Sequence
from raycompose.http.entering import Entering, conversions, entered


class Text(pydantic.BaseModel):
    text: str


def shout(item: Text) -> str:
    return item.text.upper()


async def slowly(item: Any) -> str:
    await asyncio.sleep(9)
    return "late"


def repeat(text: str, times: int = 1) -> str:
    return text * times


def increment(x: int) -> int:
    return x + 1


def double(numbers: rc.Stream[int]) -> Any:
    async def items() -> Any:
        async for number in numbers:
            yield number * 2

    return items()


def is_long(item: Text) -> bool:
    return len(item.text) > 3


async def is_long_in_a_while(item: Text) -> bool:
    await asyncio.sleep(0)
    return is_long(item)


def grow(item: Text) -> Text:
    return Text(text=item.text + "+")


def grow_pair(text: str, n: int = 0) -> dict[str, Any]:
    return {"text": text + "+", "n": n + 1}


def grow_by_place(text: str, n: int = 0, /) -> dict[str, Any]:
    return grow_pair(text, n)


def over_limit(item: Text, limit: int = 3) -> bool:
    return len(item.text) > limit


def whole(order: dict[str, Any], verbose: bool = False) -> Any:
    return [order, verbose] if verbose else order


def answer(request: Request, n: int = 0) -> str:
    return request.method


def session(item: Text) -> str:
    return item.text


async def referred(ref: rc.Ref[Any]) -> Any:
    return await ref


def total(xs: list[int]) -> int:
    return sum(xs)


def path(request: Request) -> Any:
    return [request.method, request.json()]


def test_a_pipeline_that_begins_with_a_combinator_gets_the_decoded_body() -> None:
    """A combinator takes one value: an object is not spread, a query is a dict."""
    client = http(rc.parallel(a=lambda x: x, b=lambda x: x))
    assert client.post("/", json={"n": 1}).json() == {"a": {"n": 1}, "b": {"n": 1}}
    assert client.get("/?n=1").json() == {"a": {"n": "1"}, "b": {"n": "1"}}


def test_a_pipeline_that_begins_with_a_combinator_needs_a_value() -> None:
    """Nothing at all sent to a combinator is a 422, and says what to send."""
    details = problem(http(rc.parallel(lambda x: x)).get("/"), 422)
    assert "body" in details["detail"]


@pytest.mark.parametrize(
    ("first", "sent", "detail"),
    [
        (rc.pick("text"), {"txt": 1}, "missing: text"),
        (rc.pick("a", "b"), {}, "missing: a, b"),
        (rc.pick("text"), ["text"], "takes an object, but was sent list"),
        (rc.assign(x=lambda v: 1), [1], "takes an object, but was sent list"),
        (rc.each(lambda v: 1), {"a": 1}, "takes a list, but was sent an object"),
    ],
)
def test_what_a_first_combinator_cannot_take_is_a_422(first: Any, sent: Any, detail: str) -> None:
    """The client's mistake is told, whatever stands behind the combinator."""
    details = problem(http(first, lambda v: v).post("/", json=sent), 422)
    assert detail in details["detail"]


LONG, SHORT, WRONG = {"text": "long"}, {"text": "a"}, {"txt": "a"}


@pytest.mark.parametrize(
    ("first", "sent", "result"),
    [
        (rc.parallel(a=shout, b=repeat, c=rc.passthrough), SHORT, {"a": "A", "b": "a", "c": SHORT}),
        (rc.parallel(rc.pipeline(shout, len), shout), LONG, [4, "LONG"]),
        (rc.race(shout, shout, need=2), LONG, ["LONG", "LONG"]),
        (rc.when(is_long, shout, repeat), LONG, "LONG"),
        (rc.when(is_long, shout, repeat), SHORT | {"times": "2"}, "aa"),
        (rc.when(is_long_in_a_while, shout, repeat), LONG, "LONG"),
        (rc.when(rc.stage(is_long), shout, repeat), LONG, "LONG"),
        (rc.when(lambda x: x["text"] == "a", shout, repeat), SHORT, "A"),
        (rc.switch("text", {"a": shout}, default=repeat), SHORT, "A"),
        (rc.split((shout, 100), (increment, 0)), SHORT, "A"),
        (rc.each(increment), ["1", 2], [2, 3]),
        (rc.each(rc.parallel(shout, shout)), [SHORT], [["A", "A"]]),
        (rc.parallel(rc.each(increment), total), ["1"], [[2], 1]),
        (rc.optional(shout, default="none"), SHORT, "A"),
        (rc.fallback(shout, repeat), SHORT, "A"),
        (rc.assign(loud=shout), SHORT, {"text": "a", "loud": "A"}),
        (rc.loop(grow, until=lambda item: len(item.text) > 3), SHORT, {"text": "a+++"}),
        (rc.loop(grow_pair, until=lambda x: x["n"] > 3), {"text": "", "n": "2"},
         {"text": "++", "n": 4}),
        (rc.loop(rc.fallback(grow, grow), until=is_long), SHORT, {"text": "a+++"}),
        (rc.loop(grow_by_place, until=lambda x: x["n"] > 3), {"text": "", "n": "2"},
         {"text": "++", "n": 4}),
        (rc.loop(answer, until=bool), SHORT, "POST"),
        (rc.pipeline(rc.shadow(increment), shout), SHORT, "A"),
        (rc.pipeline(rc.stage(rc.shadow(increment), name="mirror"), shout), SHORT, "A"),
        (rc.pipeline(rc.stage(rc.passthrough, timeout_s=9), rc.shadow(len), shout, len), LONG, 4),
        (rc.pipeline(rc.shadow(len), rc.parallel(referred, increment)), "1", ["1", 2]),
        (rc.pipeline(rc.passthrough, rc.parallel(referred, rc.pick("text"))), SHORT, [SHORT, "a"]),
        (rc.pipeline(rc.passthrough, rc.parallel(referred, rc.each(increment))), [1], [[1], [2]]),
        (rc.when(partial(over_limit, limit=3), shout, repeat), LONG, "LONG"),
        (rc.when(over_limit, shout, repeat), LONG, "LONG"),
        (rc.parallel(whole), SHORT, [SHORT]),
        (rc.parallel(whole), {"order": SHORT, "verbose": "1"}, [[SHORT, True]]),
        (rc.stage(rc.parallel(shout), affinity=session), SHORT, ["A"]),
        (rc.pipeline(rc.passthrough, rc.parallel(shout)), SHORT, ["A"]),
        (rc.stage(rc.parallel(shout, shout), timeout_s=9, name="both"), SHORT, ["A", "A"]),
        (rc.parallel(path), SHORT, [["POST", SHORT]]),
    ],
    ids=str,
)  # fmt: skip
def test_each_branch_converts_what_was_sent(first: Any, sent: Any, result: Any) -> None:
    """By its own signature, as the one first stage of a pipeline does."""
    response = http(first).post("/", json=sent)
    assert (response.text if isinstance(result, str) else response.json()) == result


@pytest.mark.parametrize(
    ("first", "sent", "stage", "detail"),
    [
        (rc.parallel(a=shout, b=repeat), WRONG, "shout", "item.text: Field required"),
        (rc.parallel(a=repeat), WRONG, "repeat", "missing: text; unknown: txt"),
        (rc.race(shout, slowly), WRONG, "shout", "item.text: Field required"),
        (rc.when(is_long, shout), WRONG, "when", "item.text: Field required"),
        (rc.optional(shout, default="none"), WRONG, "shout", "item.text: Field required"),
        (rc.fallback(shout, repeat), WRONG, "shout", "item.text: Field required"),
        (rc.fallback(repeat, lambda x: 1), WRONG, "repeat", "missing: text"),
        (rc.assign(n=shout), WRONG, "shout", "item.text: Field required"),
        (rc.loop(grow, until=is_long), WRONG, "grow", "item.text: Field required"),
        (rc.loop(rc.each(increment), until=all), WRONG, "each", "takes a list, but was sent an"),
        (rc.when(over_limit, shout), WRONG, "when", "item.text: Field required"),
        (rc.parallel(rc.pipeline(shout, len)), WRONG, "shout", "item.text: Field required"),
        (rc.parallel(rc.each(increment)), 1, "each", "takes a list, but was sent int 1"),
        (rc.parallel(rc.pick("a"), rc.pick("text")), LONG, "pick", "missing: a"),
        (rc.pipeline(rc.shadow(shout), increment), WRONG, "increment", "unknown: txt"),
        (rc.stage(rc.parallel(shout), retry=3), WRONG, "shout", "item.text: Field required"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_branch_cannot_take_is_a_422(first: Any, sent: Any, stage: str, detail: str) -> None:
    """The client's mistake is never the pipeline's failure, for which a default would stand."""
    details = problem(http(first).post("/", json=sent), 422)
    assert (details["stage"], detail in details["detail"]) == (stage, True), details


def test_an_error_tells_which_item_of_a_list_it_was() -> None:
    """The index is a member of the problem details, of a failure inside, too."""

    def inverted(x: float) -> float:
        return 1 / x

    client = http(rc.each(inverted))
    assert problem(client.post("/", json=[1, "x"]), 422)["index"] == 1
    assert problem(client.post("/", json=[1, 2, 0]), 500)["index"] == 2
    assert "index" not in problem(client.post("/", json=2), 422)
    nested = http(rc.each(rc.each(inverted)))
    assert problem(nested.post("/", json=[[1], [2], [1, 0]]), 500)["index"] == 2
    with pytest.raises(ZeroDivisionError) as caught:
        rc.local(rc.each(inverted)).call([4, 0])
    assert "at index 1 of the input of 'each'" in caught.value.__notes__  # type: ignore[attr-defined]  # new in 3.11


def test_one_error_object_that_is_raised_for_several_items_tells_the_last() -> None:
    """Nothing is left of the request before."""
    error = ValueError("always the same")

    def failing(x: int) -> int:
        if x:
            raise error
        return x

    client = http(rc.each(failing))
    for index in (2, 0, 1):
        sent = [0, 0, 0]
        sent[index] = 1
        assert problem(client.post("/", json=sent), 500)["index"] == index
    assert len(getattr(error, "__notes__", ())) <= 2


def test_an_error_in_a_list_is_what_a_client_may_know_of_it() -> None:
    """``return_exceptions`` puts a mistake of the client at its place, and tells no secrets."""

    def checked(x: int) -> int:
        if x > 2:
            raise rc.HTTPError(404, f"there is no {x}")
        if x > 1:
            raise RuntimeError("a secret")
        return x

    found = http(rc.each(checked, return_exceptions=True)).post("/", json=[1, "x", 2, 3]).json()
    invalid = "x: Input should be a valid integer, unable to parse string as an integer"
    unprocessable = {"status": 422, "title": found[1]["title"], "detail": invalid}
    assert found == [
        1,
        unprocessable | {"stage": "checked"},
        {"status": 500, "title": "Internal Server Error", "stage": "checked"},
        {"status": 404, "title": "Not Found", "detail": "there is no 3", "stage": "checked"},
    ]


def test_an_errors_detail_in_a_list_may_be_anything() -> None:
    """What JSON cannot hold is told as text, and the other items are not lost."""

    def failing(x: int) -> int:
        detail = {"when": datetime(2020, 1, 1)} if x else {"what": complex(1, 2)}
        raise rc.HTTPError(400, detail)

    found = http(rc.each(failing, return_exceptions=True)).post("/", json=[1, 0]).json()
    assert [item["detail"] for item in found] == [
        {"when": "2020-01-01T00:00:00"},
        "{'what': (1+2j)}",
    ]


def test_a_step_that_passes_on_leaves_how_values_travel() -> None:
    """What is behind a leading shadow stays in one piece, where a result may stay where it is."""
    app = rc.pipeline(rc.shadow(len), shout, len, len)
    assert isinstance(app.root, Sequence)
    _, rest = entered(app.root).children
    assert isinstance(rest, Entering)
    assert [type(node).__name__ for node in rest.children] == ["Sequence"]
    assert [step.label for step in rest.body.children] == ["shout", "len", "len"]


def test_the_graph_that_http_runs_can_be_sent() -> None:
    """A branch's stream may be iterated in another replica; what converts is made there anew."""
    graph = entered(rc.fallback(shout, repeat).root)
    assert http(rc.fallback(shout, repeat)).post("/", json=SHORT).text == "A"
    for conversion in conversions(graph):
        assert conversion.converts  # made, and not pickled: pydantic's validators cannot be
    again = pickle.loads(pickle.dumps(graph))
    assert [c.signature for c in conversions(again)] == [c.signature for c in conversions(graph)]


def test_a_stream_of_errors_tells_no_secrets() -> None:
    """Nor does a line of a stream."""

    def failures(n: int) -> Iterator[Any]:
        for _ in range(n):
            yield RuntimeError("a secret")

    response = http(failures).post("/", json=2)
    assert [line["status"] for line in map(json.loads, response.text.splitlines())] == [500, 500]
    assert "secret" not in response.text


def test_an_error_that_is_returned_is_the_answer() -> None:
    """What the last stage returns rather than raises has its status."""

    def forbidding(x: Any) -> Any:
        return rc.HTTPError(403, "not yours")

    details = problem(http(forbidding).post("/", json=1), 403)
    assert (details["detail"], details["stage"]) == ("not yours", "forbidding")
    assert "detail" not in problem(http(lambda x: ValueError("a secret")).post("/", json=1), 500)


def test_a_stream_takes_a_list() -> None:
    """Each branch that takes a stream gets one of its own."""
    double_all = rc.fallback(rc.stage(double, stream=True), rc.stage(double, stream=True))
    assert http(double_all).post("/", json=[1, "2"]).text == "2\n4\n"
    assert "numbers.0" in problem(http(double_all).post("/", json=["x"]), 422)["detail"]


def test_queries_and_forms_give_lists_to_branches_that_all_take_them() -> None:
    """``?xs=1`` is a list of one where every branch that knows the name takes a list."""
    assert http(rc.parallel(total, total)).get("/?xs=1").json() == [1, 1]
    assert http(rc.parallel(total, lambda x: x)).get("/?xs=1").json() == [1, {"xs": ["1"]}]

    def single(xs: int) -> int:
        return xs

    assert http(rc.parallel(single)).get("/?xs=1").json() == [1]
    assert "Input should be a valid list" in http(rc.parallel(single, total)).get("/?xs=1").text

    def tagged(xs: list[str]) -> str:
        return xs[0]

    assert http(rc.switch(tagged, {"1": lambda x: x})).get("/?xs=1").json() == {"xs": ["1"]}


def test_text_that_was_to_be_json_is_told() -> None:
    """The kind of the body is in the error, as it is for a first stage."""
    client = http(rc.parallel(increment))
    response = client.post("/", content="x", headers={"content-type": "text/plain"})
    details = problem(response, 422)
    assert "JSON is sent as application/json" in details["detail"]


def test_a_handle_passes_the_value_on_as_it_is() -> None:
    """Only what is sent over HTTP is converted: a caller in Python has the type itself."""
    client = rc.local(rc.parallel(shout, rc.passthrough))
    assert client.call(Text(text="a")) == ("A", Text(text="a"))
