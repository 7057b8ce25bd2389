"""Random graphs give what the same graph gives in plain Python."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fuzz import FUZZ, examples

import raycompose as rc

pytestmark = pytest.mark.timeout(1800 if FUZZ else 180)
Evaluate = Callable[[int], int]


@dataclass(frozen=True)
class Pair:
    """A graph, and the same in plain Python: from number to number, or a ValueError."""

    graph: Any
    evaluate: Evaluate
    text: str

    def __repr__(self) -> str:
        return self.text


class Plus:
    """A callable object, and a deployment's class."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, x: int) -> int:
        return x + self.n


class Refused(ValueError):
    """What a stage raises that does not take its input."""


def multiply(x: int, by: int) -> int:
    return x * by


def refuse_above(x: int, limit: int) -> int:
    if x > limit:
        raise Refused(x)
    return x


def stages(n: int) -> list[Pair]:
    """One stage of each kind, with ``n`` for its parameter."""

    async def minus(x: int) -> int:
        return x - n

    return [
        Pair(Plus(n), lambda x: x + n, f"plus({n})"),
        Pair(lambda x: x ^ n, lambda x: x ^ n, f"xor({n})"),
        Pair(minus, lambda x: x - n, f"minus({n})"),
        Pair(partial(multiply, by=n), lambda x: x * n, f"times({n})"),
        Pair(partial(refuse_above, limit=n), partial(refuse_above, limit=n), f"refuse_above({n})"),
        Pair(rc.passthrough, lambda x: x, "passthrough"),
    ]


def in_order(parts: list[Pair]) -> Pair:
    def evaluate(x: int) -> int:
        for part in parts:
            x = part.evaluate(x)
        return x

    return Pair(rc.pipeline(*(p.graph for p in parts)), evaluate, f"pipeline{parts}")


def limited(part: Pair) -> Pair:
    return Pair(rc.stage(part.graph, timeout_s=60, retry=2), part.evaluate, f"limited({part})")


def summed(parts: list[Pair], named: bool) -> Pair:
    """Parallel branches, and a sum in which each branch's place counts."""

    def total(results: Any) -> int:
        values = results.values() if isinstance(results, dict) else results
        return sum(place * value for place, value in enumerate(values, 1))

    graphs = [p.graph for p in parts]
    branches = {f"branch{i}": graph for i, graph in enumerate(graphs)}
    parallel = branches if named else rc.parallel(*graphs)
    return Pair(
        rc.pipeline(parallel, total),
        lambda x: total([p.evaluate(x) for p in parts]),
        f"summed{parts}",
    )


def switched(parts: list[Pair], default: Pair) -> Pair:
    cases = {key: p.graph for key, p in enumerate(parts)}
    return Pair(
        rc.switch(lambda x: x % 5, cases, default=default.graph),
        lambda x: (parts[x % 5] if x % 5 < len(parts) else default).evaluate(x),
        f"switch({parts}, default={default})",
    )


def either(then: Pair, otherwise: Pair) -> Pair:
    return Pair(
        rc.when(lambda x: x > 0, then.graph, otherwise.graph),
        lambda x: (then if x > 0 else otherwise).evaluate(x),
        f"when({then}, {otherwise})",
    )


def split_same(part: Pair, weight: int) -> Pair:
    graph = rc.split((part.graph, weight), (part.graph, 100 - weight))
    return Pair(graph, part.evaluate, f"split({part})")


def each_of(part: Pair, length: int) -> Pair:
    """A list of neighbours, the part applied to each, and a sum in which the place counts."""

    def neighbours(x: int) -> list[int]:
        return [x - i for i in range(length)]

    def total(results: list[int]) -> int:
        return sum(place * value for place, value in enumerate(results, 1))

    return Pair(
        rc.pipeline(neighbours, rc.each(part.graph, max_concurrency=2), total),
        lambda x: total([part.evaluate(item) for item in neighbours(x)]),
        f"each({part}, {length})",
    )


def first_of(parts: list[Pair]) -> Pair:
    def evaluate(x: int) -> int:
        errors = []
        for part in parts:
            try:
                return part.evaluate(x)
            except Refused as error:
                errors.append(error)
        raise errors[0]

    return Pair(rc.fallback(*(p.graph for p in parts)), evaluate, f"fallback{parts}")


def shadowed(part: Pair) -> Pair:
    return Pair(rc.shadow(part.graph), lambda x: x, f"shadow({part})")


def optional(part: Pair) -> Pair:
    def evaluate(x: int) -> int:
        try:
            return part.evaluate(x)
        except Refused:
            return 7

    return Pair(rc.optional(part.graph, default=7, timeout_s=60), evaluate, f"optional({part})")


def raced(part: Pair) -> Pair:
    return Pair(rc.race(part.graph, part.graph), part.evaluate, f"race({part})")


def looped(part: Pair, rounds: int) -> Pair:
    def evaluate(x: int) -> int:
        for _ in range(rounds):
            x = part.evaluate(x)
            if x % 3 == 0:
                return x
        raise Refused(x)

    graph = rc.loop(part.graph, until=lambda x: x % 3 == 0, max_iterations=rounds)
    return Pair(graph, evaluate, f"loop({part}, {rounds})")


def assigned(part: Pair) -> Pair:
    """A mapping to which the part's result is added, and both picked."""

    def named(x: int) -> dict[str, int]:
        return {"x": x, "other": 0}

    def total(picked: dict[str, int]) -> int:
        return picked["x"] + 2 * picked["y"]

    graph = rc.pipeline(
        named, rc.assign(y=rc.pipeline(rc.pick("x"), part.graph)), rc.pick("x", "y"), total
    )
    return Pair(graph, lambda x: x + 2 * part.evaluate(x), f"assign({part})")


def larger(parts: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    some = st.lists(parts, min_size=1, max_size=3)
    return st.one_of(
        st.builds(in_order, some),
        st.builds(summed, some, st.booleans()),
        st.builds(switched, some, parts),
        st.builds(either, parts, parts),
        st.builds(split_same, parts, st.integers(1, 99)),
        st.builds(each_of, parts, st.integers(0, 3)),
        st.builds(first_of, some),
        st.builds(limited, parts),
        st.builds(shadowed, parts),
        st.builds(optional, parts),
        st.builds(raced, parts),
        st.builds(looped, parts, st.integers(1, 4)),
        st.builds(assigned, parts),
    )


SMALL = st.integers(-5, 5)
STAGES = SMALL.flatmap(lambda n: st.sampled_from(stages(n)))
GRAPHS = st.recursive(STAGES, larger, max_leaves=12)


def outcome(run: Callable[[int], int], x: int) -> int | str:
    """The result, or that there is none: of branches that fail at once, either may be first."""
    try:
        return run(x)
    except REFUSALS:
        return "refused"


REFUSALS = (Refused, rc.LoopError)


@settings(
    max_examples=examples(300, long=20_000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(GRAPHS, st.lists(st.integers(-20, 20), min_size=1, max_size=3))
def test_a_graph_gives_what_plain_python_gives(pair: Pair, inputs: list[int]) -> None:
    """Any nesting of any nodes gives the result, or the error, of its meaning in plain Python."""
    client = rc.local(rc.pipeline(pair.graph))
    for x in inputs:
        assert outcome(client.call, x) == outcome(pair.evaluate, x)


@settings(max_examples=examples(50, long=2000), deadline=None)
@given(GRAPHS, GRAPHS, GRAPHS, st.integers(-20, 20))
def test_composition_is_associative(a: Pair, b: Pair, c: Pair, x: int) -> None:
    """``(a | b) | c`` and ``a | (b | c)`` are the same pipeline, of the same names and results."""
    left = rc.pipeline(rc.pipeline(a.graph, b.graph), c.graph)
    right = rc.pipeline(a.graph, rc.pipeline(b.graph, c.graph))
    assert repr(left) == repr(right)
    assert outcome(rc.local(left).call, x) == outcome(rc.local(right).call, x)


@settings(max_examples=examples(50, long=2000), deadline=None)
@given(GRAPHS, st.integers(-20, 20))
def test_passthrough_is_the_identity(pair: Pair, x: int) -> None:
    """A passthrough before or behind a graph changes nothing."""
    plain = outcome(rc.local(rc.pipeline(pair.graph)).call, x)
    assert outcome(rc.local(rc.pipeline(rc.passthrough, pair.graph)).call, x) == plain
    assert outcome(rc.local(rc.pipeline(pair.graph, rc.passthrough)).call, x) == plain


@settings(max_examples=examples(50, long=2000), deadline=None)
@given(st.lists(st.integers(-20, 20), max_size=8), GRAPHS)
def test_each_is_a_map(items: list[int], pair: Pair) -> None:
    """``each`` of a graph is the graph on each item, or the error of one of them."""
    app = rc.each(pair.graph, return_exceptions=True)
    results = rc.local(app).call(items)
    for item, result in zip(items, results, strict=True):
        found = "refused" if isinstance(result, REFUSALS) else result
        assert found == outcome(pair.evaluate, item)
