"""Branches of which one runs: switch, when, split, fallback."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from support.stages import (
    Hanging,
    add_one,
    call,
    fail,
    fails_with,
    letter_a,
    letter_b,
    never,
)
from support.waiting import until

import raycompose as rc

# --- Switch and when ------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["kind", lambda v: v["kind"]])
def test_switch_runs_only_the_chosen_branch(on: Any) -> None:
    """Only the branch with the key runs, whether a function or a mapping's key says which."""
    app = rc.switch(on, {"a": letter_a, "b": never}, default=never)
    assert call(app, {"kind": "a"}) == "a"


def test_switch_by_attribute() -> None:
    """A string names an attribute where the value is not a mapping."""
    app = rc.switch("denominator", {2: letter_a, 3: letter_b})
    assert call(app, Fraction(1, 3)) == "b"


def test_switch_takes_a_mapping_for_a_mapping() -> None:
    """A string names a mapping's key even where mappings have an attribute of that name."""
    assert call(rc.switch("items", {"few": letter_a}), {"items": "few"}) == "a"


@pytest.mark.parametrize(
    ("on", "value", "looked_for"),
    [
        ("kind", {"kind": "c"}, "'c'"),
        ("kind", {}, r"a value \(dict\) without the key 'kind'; it has"),
        ("kind", 5, r"a value \(int\) without the attribute 'kind'; it has"),
        (lambda v: v, ["unhashable"], r"\['unhashable'\]"),
        (lambda v: None, 0, "None"),
    ],
)
def test_switch_without_a_match(on: Any, value: Any, looked_for: str) -> None:
    """No match and no default is a NoMatchError that names the node, the key and the keys."""
    app = rc.stage(rc.switch(on, {"a": never, "b": never}))
    error = fails_with(rc.NoMatchError, app, value, match=looked_for)
    assert isinstance(error, rc.NoMatchError)
    assert (error.node, error.keys) == ("switch", ("'a'", "'b'"))
    assert "it has 'a', 'b'" in str(error)
    assert rc.failed_stage(error) == "switch"


@pytest.mark.parametrize(
    ("on", "value"), [("kind", {"kind": "c"}), ("kind", {}), ("kind", 5), (lambda v: v, ["list"])]
)
def test_switch_default(on: Any, value: Any) -> None:
    """Whatever has no match goes to the default."""
    assert call(rc.switch(on, {"a": never}, default=letter_b), value) == "b"


def raises_key_error(value: Any) -> Any:
    raise KeyError(value)


@pytest.mark.parametrize(
    ("app", "node"),
    [
        (rc.switch(raises_key_error, {"a": never}, default=never), "switch"),
        (rc.when(raises_key_error, never, never), "when"),
        (rc.split((never, 50), (never, 50), key=raises_key_error), "split"),
        (rc.when(lambda v: True, rc.when(raises_key_error, never)), "when_2"),
    ],
)
def test_a_choice_that_raises_names_its_node(app: Any, node: str) -> None:
    """What a predicate or a key function raises reaches the caller, and names the node."""
    error = fails_with(KeyError, app, 1)
    assert rc.failed_stage(error) == node
    assert getattr(error, "__notes__", ()) == [f"raised in stage {node!r}"]


def test_when_nests_for_elif() -> None:
    """A when in the otherwise of another is elif; without an otherwise the value passes."""
    app = rc.when(lambda x: x < 0, letter_a, rc.when(lambda x: x < 10, letter_b))
    client = rc.local(app)
    assert [client.call(x) for x in (-1, 5, 50)] == ["a", "b", 50]


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda: rc.switch("kind", {}), "at least one key"),
        (lambda: rc.switch("kind", [add_one]), "cases is a dict"),  # type: ignore[arg-type]
        (lambda: rc.switch(3, {"a": add_one}), "got 3"),
        (lambda: rc.switch("kind", {"a": None}), r"in rc\.switch\(\).*None"),
        (lambda: rc.when(True, add_one), "predicate must be a function of the value.*got True"),
        (lambda: rc.when(len, "then"), r"in rc\.when\(\).*'then'"),
        (lambda: rc.fallback(), "at least one"),
        (lambda: rc.fallback(add_one, on=3), "got 3"),  # type: ignore[arg-type]
        (lambda: rc.fallback(add_one, on=()), "an exception type"),
        (lambda: rc.fallback(add_one, on=KeyboardInterrupt), "KeyboardInterrupt"),  # type: ignore[arg-type]
        (lambda: rc.each(5), r"in rc\.each\(\).*5 \(int\)"),
        (lambda: rc.each(add_one, max_concurrency=0), "1 or more, got 0"),
        (lambda: rc.each(add_one, max_concurrency=True), "got True"),
        (lambda: rc.shadow(add_one, percent=0), "above 0 and up to 100, got 0"),
        (lambda: rc.shadow(add_one, percent=101), "got 101"),
        (lambda: rc.shadow(add_one, percent="5"), "got '5'"),  # type: ignore[arg-type]
        (lambda: rc.shadow(add_one, max_in_flight=0), "1 or more, got 0"),
        (lambda: rc.split(), "pairs"),
        (lambda: rc.split(add_one, add_one), "pairs"),  # type: ignore[arg-type]
        (lambda: rc.split((add_one, 100), key=7), "key must be a function"),
    ],
)  # fmt: skip
def test_bad_branches_are_refused_where_written(compose: Callable[[], Any], message: str) -> None:
    """What cannot work is a CompositionError that names the combinator and the offending value."""
    with pytest.raises(rc.CompositionError, match=message):
        compose()


def test_the_same_name_twice() -> None:
    """Stages of one name get a number behind, which errors use."""
    app = rc.parallel(rc.stage(add_one, name="x"), rc.stage(fail, name="x"))
    assert rc.failed_stage(fails_with(ValueError, app, 1)) == "x_2"


# --- Split ----------------------------------------------------------------------------------------


def test_split_follows_the_weights() -> None:
    """Over 10,000 draws each share is within 2 points of its weight."""
    app = rc.each(rc.split((letter_a, 75), (letter_b, 20.5), (add_one, 4.5)), max_concurrency=500)
    drawn = Counter(call(app, [0] * 10_000, timeout_s=60))
    assert drawn["a"] / 100 == pytest.approx(75, abs=2)
    assert drawn["b"] / 100 == pytest.approx(20.5, abs=2)
    assert drawn[1] / 100 == pytest.approx(4.5, abs=2)


def test_sticky_split_follows_the_weights() -> None:
    """Over 10,000 keys, too, each share is within 2 points of its weight."""
    app = rc.each(rc.split((letter_a, 80), (letter_b, 20), key=lambda n: f"user-{n}"))
    drawn = Counter(call(app, list(range(10_000)), timeout_s=60))
    assert drawn["a"] / 100 == pytest.approx(80, abs=2)


STICKY = """
import json
import raycompose as rc

def ways(key):
    app = rc.split((lambda v: 0, 50), (lambda v: 1, 30), (lambda v: 2, 20), key=key)
    return rc.local(rc.each(app)).call(list(range(100)))

found = [ways(key) for key in (
    str, lambda n: n, lambda n: (str(n), n / 3), lambda n: str(n).encode(), lambda n: n > 50)]
print(json.dumps(found))
"""


def test_sticky_split_goes_the_same_way_in_every_process(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same key goes the same way here and in another process, however Python hashes there."""
    exec(STICKY, {})
    here = json.loads(capsys.readouterr().out)
    other = subprocess.run(
        [sys.executable, "-c", STICKY],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert here == json.loads(other.stdout.splitlines()[-1])
    assert [set(ways) for ways in here[:4]] == [{0, 1, 2}] * 4
    assert len(set(here[4])) <= 2


def test_sticky_split_refuses_a_key_without_a_text_of_its_own() -> None:
    """Equal keys whose text differs would go different ways, so such a key is an error."""

    class User:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, User)

        def __hash__(self) -> int:
            return 1

    app = rc.split((letter_a, 50), (letter_b, 50), key=lambda v: User())
    error = fails_with(TypeError, app, match="User")
    assert rc.failed_stage(error) == "split"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((90, 9), "sum to 99"),
        ((90, 11), "sum to 101"),
        ((0.5, 0.5), "sum to 1,"),
        ((110, -10), "from 0, got -10"),
        (("90", 10), "a number from 0, got '90'"),
        ((None, 100), "got None"),
        ((True, 99), "got True"),
        ((float("nan"), 50), "got nan"),
        ((float("inf"), 50), "inf"),
    ],
)
def test_split_refuses_weights(weights: tuple[Any, ...], message: str) -> None:
    """Weights that are not numbers from 0 that sum to 100 are refused, with the sum or weight."""
    with pytest.raises(rc.CompositionError, match=message):
        rc.split(*((add_one, weight) for weight in weights))


@pytest.mark.parametrize("weights", [(100,), (33.3, 66.7), (100 / 3,) * 3, (0.1,) * 1000])
def test_split_forgives_rounding(weights: tuple[float, ...]) -> None:
    """Weights may be fractions, and sum to 100 but for rounding."""
    assert call(rc.split(*((add_one, weight) for weight in weights)), 1) == 2


# --- Fallback -------------------------------------------------------------------------------------


def recording(tried: list[str], name: str, error: Exception | None = None) -> Any:
    async def run(x: Any) -> str:
        tried.append(name)
        if error is not None:
            raise error
        return name

    return rc.stage(run, name=name)


def test_fallback_tries_in_order_until_one_succeeds() -> None:
    """Targets are tried in order, each after the one before has failed, none after a success."""
    tried: list[str] = []
    app = rc.fallback(
        recording(tried, "a", ValueError()), recording(tried, "b", OSError()),
        recording(tried, "c"), recording(tried, "d"),
    )  # fmt: skip
    assert call(app) == "c"
    assert tried == ["a", "b", "c"]


def test_fallback_exhausted() -> None:
    """When all fail the first error is raised, from the first target, the others in its notes."""
    tried: list[str] = []
    app = rc.fallback(
        recording(tried, "a", ValueError("one")), recording(tried, "b", OSError("two")),
        recording(tried, "c", KeyError("three")),
    )  # fmt: skip
    error = fails_with(ValueError, app, match="one")
    assert tried == ["a", "b", "c"]
    assert rc.failed_stage(error) == "a"
    notes = "\n".join(getattr(error, "__notes__", ()))
    assert "fallback 'fallback' also failed in 'b' with OSError('two')" in notes
    assert "in 'c' with KeyError('three')" in notes


@pytest.mark.parametrize("on", [OSError, (KeyError, OSError)])
def test_fallback_only_on_what_it_is_told(on: Any) -> None:
    """An exception that on does not list is raised at once; one that it lists goes on."""
    tried: list[str] = []
    fails_with(ValueError, rc.fallback(recording(tried, "a", ValueError()), never, on=on))
    app = rc.fallback(recording(tried, "b", FileNotFoundError()), recording(tried, "c"), on=on)
    assert call(app) == "c"


@pytest.mark.parametrize(
    "error",
    [rc.HTTPError(404), rc.HTTPError(429), HTTPException(400), rc.NoMatchError("s", "k", ())],
)
def test_fallback_never_on_a_clients_error(error: Exception) -> None:
    """An error that is the client's fault is raised at once: another target would say the same."""
    tried: list[str] = []
    assert fails_with(type(error), rc.fallback(recording(tried, "a", error), never)) is error


@pytest.mark.parametrize(
    "error", [rc.HTTPError(503), HTTPException(500), rc.StageTimeoutError("s", 1), TimeoutError()]
)
def test_fallback_on_a_servers_error(error: Exception) -> None:
    """An error that is the server's fault goes on to the next target."""
    tried: list[str] = []
    assert call(rc.fallback(recording(tried, "a", error), recording(tried, "b"))) == "b"


def test_fallback_stops_with_its_caller() -> None:
    """A caller that gives up cancels the target under way, and no other is tried."""
    hanging = Hanging()
    with pytest.raises(TimeoutError):
        call(rc.fallback(hanging, never), timeout_s=0.1)
    until(hanging.cancelled.is_set)


def test_a_share_of_nothing_is_never_chosen() -> None:
    """A canary is rolled back by its weight: 0 of 100, in the first place or the last."""
    for shares in (((letter_a, 100), (letter_b, 0)), ((letter_b, 0), (letter_a, 100))):
        app = rc.each(rc.split(*shares, key=lambda n: n))
        assert set(call(app, list(range(2000)), timeout_s=60)) == {"a"}
    assert call(rc.split((letter_a, 100 - 1e-9), (letter_b, 0)), 1) == "a"


def test_split_by_the_name_of_a_key() -> None:
    """A string is a key of the value, as it is of ``rc.switch``; without it that is a 422."""
    app = rc.split((letter_a, 50), (letter_b, 50), key="user")
    by_function = rc.split((letter_a, 50), (letter_b, 50), key=lambda v: v["user"])
    values = [{"user": f"user-{n}"} for n in range(100)]
    assert [call(app, v) for v in values] == [call(by_function, v) for v in values]
    error: Any = fails_with(rc.HTTPError, app, {"name": 1}, match="'user', which is missing")
    assert error.status == 422


# --- Optional -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout_s", "why"), [(None, r"failed with ValueError\('down'\)"), (0.05, "took longer than")]
)
def test_an_optional_stage_that_is_left_out_is_logged(
    caplog: pytest.LogCaptureFixture, timeout_s: float | None, why: str
) -> None:
    """The line names the node, the stage and what kept it."""

    async def orders(x: Any) -> Any:
        if timeout_s is None:
            raise ValueError("down")
        await asyncio.sleep(60)

    with caplog.at_level("WARNING", logger="ray.serve"):
        assert call(rc.optional(orders, default="none", timeout_s=timeout_s)) == "none"
    assert re.search(f"'optional' returns its default: 'orders' {why}", caplog.text)
