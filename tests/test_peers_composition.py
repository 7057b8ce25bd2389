"""What the test-suites of other composition libraries ask of theirs, asked of pipelines.

The behaviours are those that LangChain's runnables, Haystack's pipelines, toolz, LitServe and
BentoML promise, where a pipeline has them, too.
"""

import asyncio
import contextvars
import operator
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Literal

import pydantic
import pytest
from ray import serve
from starlette.testclient import TestClient
from support.composing import names, refusal
from support.stages import Busy, call

import raycompose as rc

QUICK: dict[str, Any] = {"initial_s": 0.001, "jitter": False}


def text(value: Any) -> str:
    return str(value)


def add_one(x: int) -> int:
    return x + 1


def is_positive(x: int) -> bool:
    return x > 0


def spell(word: str) -> Iterator[str]:
    yield from word


def bracket(left: str, right: str) -> Callable[[Any], str]:
    return lambda value: f"{left}{value}{right}"


def round_brackets(value: Any) -> str:
    return f"({value})"


def fails(error: type[Exception], unless: Callable[[Any], bool] = lambda x: False) -> Any:
    def stage(x: Any) -> Any:
        if not unless(x):
            raise error(x)
        return x

    return stage


async def at_some_time(x: Any) -> Any:
    await asyncio.sleep(random.uniform(0, 0.005))
    return x


# --- What a graph gives ---------------------------------------------------------------------------

ROUND, SQUARE, CURLY = bracket("(", ")"), bracket("[", "]"), bracket("{", "}")
BY_SIGN = rc.when(is_positive, add_one, rc.when(lambda x: x == 0, text, lambda x: x - 1))

GIVES: dict[str, tuple[Any, Any, Any]] = {
    # sequences
    "in the order written": (rc.pipeline(SQUARE, ROUND, CURLY), "x", "{([x])}"),
    "then after a pipeline": (rc.pipeline(SQUARE).then(ROUND).then(CURLY), "x", "{([x])}"),
    "a sequence last": (rc.pipeline(SQUARE, rc.pipeline(ROUND, CURLY)), "x", "{([x])}"),
    "a sequence first": (rc.pipeline(rc.pipeline(SQUARE, ROUND), CURLY), "x", "{([x])}"),
    "sequences of one": (
        rc.pipeline(rc.pipeline(SQUARE), rc.pipeline(rc.pipeline(ROUND)), CURLY), "x", "{([x])}",
    ),
    "a function before |": (SQUARE | rc.pipeline(ROUND), "x", "([x])"),
    "a dict before |": ({"a": SQUARE} | rc.pipeline(operator.itemgetter("a")), "x", "[x]"),
    "callables of operator": (
        rc.pipeline(operator.itemgetter("a"), operator.methodcaller("upper")), {"a": "x"}, "X",
    ),
    # mappings and branches
    "the input beside what is made of it": (
        rc.pipeline({"text": rc.passthrough, "size": len}, rc.pick("size", "text")), "abc",
        {"size": 3, "text": "abc"},
    ),
    "nested dicts": ({"a": {"b": len, "c": {"d": text}}}, "x", {"a": {"b": 1, "c": {"d": "x"}}}),
    "assign hides a key of the input from no target": (
        rc.assign(a=lambda v: "new", b=lambda v: v["a"]), {"a": "old"}, {"a": "new", "b": "old"},
    ),
    "assign after assign sees it": (
        rc.pipeline(rc.assign(a=lambda v: 1), rc.assign(b=lambda v: v["a"] + 1)), {},
        {"a": 1, "b": 2},
    ),
    "an empty mapping is a result": (
        rc.pipeline(lambda v: {}, rc.assign(size=len)), 1, {"size": 0},
    ),
    "None and {} in their places": (
        rc.parallel(a=lambda v: {}, b=lambda v: None), 1, {"a": {}, "b": None},
    ),
    "the one branch": (BY_SIGN, 1, 2),
    "the other": (BY_SIGN, -3, -4),
    "the last": (BY_SIGN, 0, "0"),
    "routing by a key": (
        rc.switch("key", {"a": rc.pick("value") | rc.pipeline(text), "b": rc.pick("value")}),
        {"key": "a", "value": 2}, "2",
    ),
    "a decision, merged again": (
        rc.pipeline(
            add_one,
            rc.parallel(rc.passthrough, BY_SIGN, rc.when(lambda v: v % 2, text, lambda v: v * 2)),
            sum,
        ), 1, 9,
    ),
    "a dict is one value for one parameter": (
        lambda payload: payload, {"payload": 1}, {"payload": 1},
    ),
    # fallbacks
    "a fallback in a fallback": (
        rc.fallback(rc.fallback(fails(KeyError), fails(ValueError)), text), 1, "1",
    ),
    "a fallback for a whole sequence": (
        rc.pipeline(add_one, rc.fallback(rc.pipeline(text, fails(ValueError)), SQUARE)), 1, "[2]",
    ),
    # loops
    "a loop of a branch": (
        rc.loop(rc.pipeline(add_one, rc.when(lambda v: v > 5, lambda v: v + 3)),
                until=lambda v: v > 10), 3, 13,
    ),
    "a loop in a loop": (
        rc.loop(rc.loop(add_one, until=lambda v: v % 5 == 0), until=lambda v: v >= 20), 1, 20,
    ),
    "a loop between stages": (
        rc.pipeline(add_one, rc.loop(lambda v: v - 1, until=lambda v: v == 0), text), 4, "0",
    ),
    # each
    "each of each of each": (rc.each(rc.each(rc.each(add_one))), [[[1], []], []], [[[2], []], []]),
    "each after a split": (
        rc.pipeline(lambda v: v.split(","), rc.each(rc.pipeline(str.strip, len))), "a, bc", [1, 2],
    ),
    "order, however long each takes": (
        rc.each(at_some_time, max_concurrency=20), list(range(60)), list(range(60)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GIVES)
def test_a_graph_gives(case: str) -> None:
    """A graph gives what the same composition gives in the libraries that have it."""
    graph, value, result = GIVES[case]
    found = call(rc.pipeline(graph), value)
    assert found == result
    assert not isinstance(result, dict) or list(found) == list(result)


STREAMS: dict[str, tuple[Any, Any, list[Any]]] = {
    "through what passes on": (
        rc.pipeline(spell, rc.passthrough, rc.passthrough), "ab", ["a", "b"],
    ),
    "a branch that streams": (rc.when(str.isupper, spell, str.title), "AB", ["A", "B"]),
    "one that does not": (rc.when(str.isupper, spell, str.title), "ab", ["Ab"]),
    "a fallback for a failure at once": (
        rc.fallback(rc.pipeline(spell, fails(ValueError)), spell), "ab", ["a", "b"],
    ),
    "a branch of a branch": (
        rc.when(len, rc.switch(len, {1: spell}, default=rc.pipeline(spell, str.upper))), "ab",
        ["A", "B"],
    ),
    "a stream for each item is one stream": (
        rc.pipeline(spell, rc.batched(2), rc.each(str.upper), "".join), "abc", ["AB", "C"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STREAMS)
def test_a_graph_streams(case: str) -> None:
    """A graph streams what the same composition streams elsewhere, item by item."""
    graph, value, items = STREAMS[case]
    assert list(rc.local(rc.pipeline(graph)).stream(value)) == items


def test_calling_a_generator_does_not_add_its_items_up() -> None:
    """One result is asked of a stream: that is an error which says what to do, not a sum."""
    with pytest.raises(TypeError, match=r"client\.stream"):
        call(spell, "ab")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_stream_ends_with_the_error_of_any_stage(place: int) -> None:
    """A stage that raises ends the stream with its error, never as if it were over."""
    chain: list[Any] = [spell, text, text]
    chain[place:place] = [rc.stage(fails(KeyError), name="broken")]
    client = rc.local(rc.pipeline(*chain))
    with pytest.raises(KeyError) as caught:
        list(client.stream("ab"))
    assert rc.failed_stage(caught.value) == "broken"


# --- Many inputs ----------------------------------------------------------------------------------


def first_or_fail(x: str) -> str:
    if x != "foo":
        raise ValueError(x)
    return "first"


def second_or_fail(x: str) -> str:
    if x != "bar":
        raise RuntimeError(x)
    return "second"


def types(results: list[Any]) -> list[Any]:
    return [type(r) if isinstance(r, Exception) else r for r in results]


def test_each_input_falls_back_by_itself() -> None:
    """Of many inputs each goes as far down the alternatives as it must."""
    app = rc.fallback(first_or_fail, second_or_fail, lambda x: "third")
    assert rc.local(app).map(["foo", "bar", "baz"]) == ["first", "second", "third"]


def test_an_error_that_is_not_meant_ends_the_alternatives() -> None:
    """An alternative's own error counts by ``on``, too: the next is not tried for another kind."""
    app = rc.fallback(first_or_fail, second_or_fail, lambda x: "third", on=ValueError)
    found = rc.local(app).map(["foo", "bar", "baz"], return_exceptions=True)
    assert types(found) == ["first", "second", RuntimeError]


def test_retries_leave_every_result_in_its_place() -> None:
    """Some succeed at once, some later, one never: each is where its input was."""
    tries: dict[int, int] = {}

    def flaky(x: int) -> int:
        tries[x] = tries.get(x, 0) + 1
        if x == 3 or tries[x] <= x:
            raise ValueError(x)
        return x * 10

    stage = rc.stage(flaky, retry=rc.Retry(attempts=3, on=(ValueError,), **QUICK))
    found = call(rc.each(stage, return_exceptions=True), [0, 1, 2, 3])
    assert types(found) == [0, 10, 20, ValueError]
    assert tries == {0: 1, 1: 2, 2: 3, 3: 3}


def test_what_fails_on_the_way_stays_out_of_later_stages() -> None:
    """In a chain an input that failed is given to no later stage; the others go on."""
    seen: list[str] = []

    def last(x: str) -> str:
        seen.append(x)
        return x

    app = rc.pipeline(text, fails(ValueError, unless=lambda x: x != "b"), last)
    found = rc.local(app).map(["a", "b", "c"], return_exceptions=True)
    assert types(found) == ["a", ValueError, "c"]
    assert sorted(seen) == ["a", "c"]


@pytest.mark.parametrize("way", ["each", "map"])
def test_so_many_at_once_and_no_more(way: str) -> None:
    """``max_concurrency`` is reached and not exceeded."""
    busy = Busy()
    if way == "each":
        call(rc.each(busy, max_concurrency=3), list(range(10)))
    else:
        rc.local(rc.pipeline(busy)).map(range(10), max_concurrency=3)
    assert busy.peak == 3


@pytest.mark.parametrize("many", [0, -1, 1.5, True])
def test_no_concurrency_is_refused(many: Any) -> None:
    """A number of calls at once is a whole number of one or more, where it is composed, too."""
    with pytest.raises(ValueError, match="max_concurrency"):
        rc.local(rc.pipeline(text)).map([1], max_concurrency=many)
    assert "max_concurrency" in refusal(lambda: rc.each(text, max_concurrency=many))


def test_one_decision_for_each_input() -> None:
    """A predicate is asked once for an input, the next one only when it does not hold."""
    asked: list[tuple[str, int]] = []

    def asks(name: str) -> Any:
        def holds(x: int) -> bool:
            asked.append((name, x))
            return x > 0

        return holds

    app = rc.when(asks("first"), add_one, rc.when(asks("second"), add_one, lambda x: x - 1))
    assert asked == []
    assert [call(app, 1), call(app, -3)] == [2, -4]
    assert asked == [("first", 1), ("first", -3), ("second", -3)]


def test_assign_leaves_its_input_as_it_was() -> None:
    """The mapping with results added is another one."""
    given = {"a": 1}
    assert call(rc.assign(b=lambda v: 2), given) == {"a": 1, "b": 2}
    assert given == {"a": 1}


def test_runs_at_once_share_nothing() -> None:
    """Two requests of one graph, each in every stage, do not see each other's values."""
    meeting = threading.Barrier(2)

    def meet(x: int) -> int:
        meeting.wait(10)
        return x

    client = rc.local(rc.pipeline(meet, {"same": rc.passthrough, "next": add_one}))
    assert client.map([1, 2]) == [{"same": 1, "next": 2}, {"same": 2, "next": 3}]


def test_a_context_variable_goes_down_the_chain_and_no_further() -> None:
    """What a stage sets its successors see, in threads too; siblings and the caller do not."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def sets(x: Any) -> Any:
        variable.set("set")
        await asyncio.sleep(0.01)
        return x

    async def reads(x: Any) -> str:
        await asyncio.sleep(0.005)
        return variable.get()

    def reads_in_a_thread(x: Any) -> str:
        return variable.get()

    assert call(rc.pipeline(sets, rc.parallel(reads, reads_in_a_thread)), 1) == ("set", "set")
    assert call(rc.parallel(sets, reads), 1) == (1, "unset")
    assert variable.get() == "unset"


# --- The object -----------------------------------------------------------------------------------


def test_a_composition_is_pickled_and_shown_as_it_is() -> None:
    """A copy by pickle gives the same, and looks the same."""
    app = rc.pipeline(text, len, rc.when(is_positive, text), {"a": round_brackets, "b": len})
    copy = pickle.loads(pickle.dumps(app))
    assert repr(copy) == repr(app)
    assert call(copy, 123) == call(app, 123) == {"a": "(3)", "b": 1}


def test_composing_changes_neither_side() -> None:
    """What was composed is a new pipeline; both parts give what they gave."""
    first, second = rc.pipeline(SQUARE), rc.pipeline(ROUND)
    both = first | second
    assert [len(names(app)) for app in (first, second, both)] == [1, 1, 2]
    assert [call(app, "x") for app in (first, second, both)] == ["[x]", "(x)", "([x])"]


def test_the_first_stage_takes_all_arguments() -> None:
    """Of a composition only the first takes several, positional or by name, with defaults."""

    def scaled(a: int, b: int, c: int = 10) -> int:
        return (a + b) * c

    client = rc.local(rc.pipeline(scaled, add_one, text))
    assert [client.call(1, 2), client.call(1, 2, c=3), client.call(b=1, a=0)] == ["31", "10", "11"]


class Foreign:
    """An object of another library, with operators of its own."""

    def __or__(self, other: object) -> str:
        return f"or {type(other).__name__}"

    def __ror__(self, other: object) -> str:
        return f"ror {type(other).__name__}"


def test_anothers_operators_are_asked() -> None:
    """``|`` with an object of another library is that library's; with a number it is an error."""
    app: Any = rc.pipeline(text)
    assert (app | Foreign(), Foreign() | app) == ("ror Pipeline", "or Pipeline")
    with pytest.raises((TypeError, rc.CompositionError)):
        app | 42


# --- Types ----------------------------------------------------------------------------------------


class Animal:
    pass


class Dog(Animal):
    pass


class Size(Enum):
    SMALL = 1


MAY_FIT = [
    (int | str, int | str | bool),
    (Dog, int | Animal),
    (list[Dog], list[Animal]),
    (list[int], list[Any]),
    (Literal["a"], Literal["a", "b"]),
    (Size, Size),
    (list, list[int]),
    (int | bool, int | str),
]
MISFIT = [(Animal, Size), (str, int | list), (str | None, int), (set[int], list[int]), (None, int)]


def typed(gives: Any, takes: Any) -> Callable[[], Any]:
    def first(x: Any) -> Any:
        return x

    def second(x: Any) -> Any:
        return x

    first.__annotations__["return"], second.__annotations__["x"] = gives, takes
    return lambda: rc.pipeline(first, second)


@pytest.mark.parametrize("pair", MAY_FIT, ids=str)
def test_types_that_may_fit_are_composed(pair: tuple[Any, Any]) -> None:
    """What fits is accepted, and so is what may fit: values decide that, not annotations."""
    assert len(names(typed(*pair)())) == 2


@pytest.mark.parametrize("pair", MISFIT, ids=str)
def test_types_that_cannot_fit_are_refused(pair: tuple[Any, Any]) -> None:
    """What can never fit is refused where it is composed, with both stages named."""
    message = refusal(typed(*pair))
    assert "'first'" in message
    assert "'second'" in message


# --- Servers --------------------------------------------------------------------------------------


class Input(pydantic.BaseModel):
    value: float


class Output(pydantic.BaseModel):
    square: float


class Steps:
    """Methods of one model as steps, some ``def``, some ``async def``."""

    def decode(self, request: Input) -> float:
        return request.value

    async def predict(self, x: float) -> float:
        return x**2

    def encode(self, x: float) -> Output:
        return Output(square=x)


def post(app: Any, **request: Any) -> Any:
    return TestClient(rc.local(app).asgi).post("/", **request)


def test_decode_predict_encode() -> None:
    """One model's methods are stages, of one instance, validated at the edge."""
    steps = serve.deployment(Steps).bind()
    app = rc.pipeline(*(rc.stage(steps, method=m) for m in ("decode", "predict", "encode")))
    assert post(app, json={"value": 4}).json() == {"square": 16.0}
    assert post(app, json={"value": "four"}).status_code == 422


@pytest.mark.parametrize("value", [1, 2.5, [1, "a", None], {"a": {"b": []}}, True, []], ids=str)
def test_json_comes_back_as_it_went(value: Any) -> None:
    """What a stage returns of what it was sent is the same JSON."""
    assert post(rc.pipeline(lambda x: x), json=value).json() == value


def test_bytes_come_back_as_they_went() -> None:
    """A body that is no text is bytes on the way in and out."""
    body = b"\x810\x899"
    kind = {"content-type": "application/octet-stream"}
    assert post(rc.pipeline(lambda x: x), content=body, headers=kind).content == body


def test_defaults_of_parameters_that_are_not_sent() -> None:
    """A member that is not sent has its parameter's default, in a body and in a query."""

    def add(a: int, b: int = 2) -> int:
        return a + b

    client = TestClient(rc.local(rc.pipeline(add)).asgi)
    sent = [client.post("/", json={"a": 40, "b": 30}), client.post("/", json={"a": 40})]
    assert [answer.json() for answer in (*sent, client.get("/?a=40"))] == [70, 42, 42]


def test_a_slow_request_is_a_504_and_a_failing_one_a_500_at_once() -> None:
    """The time-out is for what is slow; an error does not wait for it."""

    async def slow(x: Any) -> None:
        await asyncio.Event().wait()

    assert post(rc.pipeline(slow).options(timeout_s=0.05), json=1).status_code == 504
    assert post(rc.pipeline(fails(RuntimeError)).options(timeout_s=60), json=1).status_code == 500
