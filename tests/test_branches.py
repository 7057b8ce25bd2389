"""Branching: what runs, at once or not at all, and what a failure does to the rest."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from starlette.exceptions import HTTPException

import raycompose as rc
from raycompose import _serve
from raycompose.graph import metrics

Deploy = Callable[..., rc.Client]

# Replicas cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def call(app: Any, value: Any = None, timeout_s: float = 10) -> Any:
    """Run a pipeline once on the local engine; the timeout ends a test that would hang."""
    return rc.local(app).call(value, timeout_s=timeout_s)


def fails_with(
    kind: type[Exception] | tuple[type[Exception], ...],
    app: Any,
    value: Any = None,
    match: str | None = None,
) -> Exception:
    with pytest.raises(kind, match=match) as caught:
        call(app, value)
    return caught.value


def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


async def fail(x: Any) -> Any:
    raise ValueError(f"cannot take {x!r}")


async def hang(x: Any) -> Any:
    await asyncio.Event().wait()


async def add_one(x: int) -> int:
    return x + 1


async def letter_a(x: Any) -> str:
    return "a"


async def letter_b(x: Any) -> str:
    return "b"


def never(x: Any) -> Any:
    pytest.fail("a branch ran that was not chosen")


class Hanging:
    """A stage that hangs, and knows whether it was cancelled."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = threading.Event()

    async def __call__(self, x: Any) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Busy:
    """A stage that knows how many of its calls ran at once."""

    def __init__(self, takes_s: float = 0.01) -> None:
        self.takes_s = takes_s
        self.running = 0
        self.peak = 0
        self.calls = 0

    async def __call__(self, x: Any) -> Any:
        self.calls += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        await asyncio.sleep(self.takes_s)
        self.running -= 1
        return x


# --- Parallel -------------------------------------------------------------------------------------


async def takes_100_ms(x: Any) -> Any:
    await asyncio.sleep(0.1)
    return x


def blocks_100_ms(x: Any) -> Any:
    time.sleep(0.1)
    return x


@pytest.mark.parametrize("stage", [takes_100_ms, blocks_100_ms])
def test_parallel_takes_as_long_as_its_slowest_branch(stage: Any) -> None:
    """Three stages of 100 ms take about 100 ms in parallel, and at least 300 ms in a row."""

    def took_s(app: Any) -> float:
        client = rc.local(app)
        client.call(0)
        started = time.perf_counter()
        client.call(0)
        return time.perf_counter() - started

    in_parallel = took_s(rc.parallel(stage, stage, stage))
    assert 0.1 <= in_parallel < 0.25
    assert took_s(rc.pipeline(stage, stage, stage)) >= 0.3


def test_parallel_branches_meet() -> None:
    """All branches run at the same time, blocking functions too: each waits for the others."""
    barrier = threading.Barrier(8)

    def meet(x: Any) -> bool:
        barrier.wait(timeout=10)
        return True

    assert call(rc.parallel(*[meet] * 8)) == (True,) * 8


def test_parallel_results_are_in_the_order_written() -> None:
    """Results are in the order written, not in that of finishing."""
    done = asyncio.Event()

    async def last(x: Any) -> str:
        await done.wait()
        return "last"

    async def first(x: Any) -> str:
        done.set()
        return "first"

    assert call(rc.parallel(last, first)) == ("last", "first")
    assert list(call(rc.parallel(z=last, a=first))) == ["z", "a"]


def test_parallel_raises_the_first_failure_and_cancels_the_siblings() -> None:
    """The first failure in time is raised at once, and the siblings have been cancelled by then."""
    siblings = Hanging(), Hanging()

    async def fails_later(x: Any) -> None:
        for sibling in siblings:
            await sibling.started.wait()
        raise ValueError("first in time")

    error = fails_with(ValueError, rc.parallel(siblings[0], fails_later, siblings[1]))
    assert rc.failed_stage(error) == "fails_later"
    assert all(sibling.cancelled.is_set() for sibling in siblings)


def test_parallel_failure_waits_for_no_thread() -> None:
    """A sibling that blocks a thread, which nothing can cancel, does not delay the failure."""
    release = threading.Event()

    def blocks(x: Any) -> None:
        release.wait(10)

    try:
        started = time.monotonic()
        fails_with(ValueError, rc.parallel(blocks, fail))
        assert time.monotonic() - started < 5
    finally:
        release.set()


@pytest.mark.parametrize(
    ("targets", "named", "message"),
    [
        ((), {}, "at least one"),
        ((add_one,), {"b": add_one}, "all .* by position.* or all by name"),
        ((add_one, 3), {}, r"in rc\.parallel\(\).*3 \(int\)"),
    ],
)
def test_parallel_refuses(targets: Any, named: Any, message: str) -> None:
    """No target, a mixture of positional and named ones, or what is no stage is an error."""
    with pytest.raises(rc.CompositionError, match=message):
        rc.parallel(*targets, **named)


@pytest.mark.parametrize("combine", [rc.parallel, rc.each])
def test_branches_of_one_result_cannot_stream(combine: Any) -> None:
    """A branch whose items have no place in the result is refused; the error says what helps."""

    def items(x: int) -> Iterator[int]:
        yield x

    with pytest.raises(rc.CompositionError, match=r"'items' streams.*rc\.collect"):
        combine(items)


@pytest.mark.parametrize(
    "takes_one",
    [
        rc.parallel(add_one),
        rc.switch(len, {1: add_one}),
        rc.split((add_one, 100)),
        rc.each(add_one),
        rc.shadow(add_one),
        rc.fallback(add_one),
        rc.passthrough,
    ],
    ids=repr,
)
def test_a_combinator_takes_one_value(takes_one: rc.Pipeline[Any, Any]) -> None:
    """A pipeline that begins with a combinator takes exactly one value, and says so."""
    client = rc.local(takes_one)
    with pytest.raises(TypeError, match="exactly one value, but got 2 positional"):
        client.call(1, 2)
    with pytest.raises(TypeError, match="exactly one value, but got 0 positional and 1 keyword"):
        client.call(x=1)


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
        ("kind", {}, "no key 'kind'"),
        ("kind", 5, "no attribute 'kind'"),
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
        (lambda: rc.split((add_one, 100), key="user"), "key must be a function"),
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
        ((100, 0), "above 0, got 0"),
        ((110, -10), "above 0, got -10"),
        (("90", 10), "a number above 0, got '90'"),
        ((None, 100), "got None"),
        ((True, 99), "got True"),
        ((float("nan"), 50), "got nan"),
        ((float("inf"), 50), "inf"),
    ],
)
def test_split_refuses_weights(weights: tuple[Any, ...], message: str) -> None:
    """Weights that are not numbers above 0 that sum to 100 are refused, with the sum or weight."""
    with pytest.raises(rc.CompositionError, match=message):
        rc.split(*((add_one, weight) for weight in weights))


@pytest.mark.parametrize("weights", [(100,), (33.3, 66.7), (100 / 3,) * 3, (0.1,) * 1000])
def test_split_forgives_rounding(weights: tuple[float, ...]) -> None:
    """Weights may be fractions, and sum to 100 but for rounding."""
    assert call(rc.split(*((add_one, weight) for weight in weights)), 1) == 2


# --- Shadow ---------------------------------------------------------------------------------------


def fail_in_a_thread(x: Any) -> Any:
    raise SystemError("the shadow failed")


async def refuse(x: Any) -> Any:
    raise rc.HTTPError(404, "the shadow refused")


@pytest.mark.parametrize(
    "target",
    [
        fail,
        fail_in_a_thread,
        refuse,
        hang,
        rc.stage(hang, timeout_s=0.01),
        rc.parallel(fail, hang),
        rc.switch(len, {0: fail}),
    ],
)
def test_shadow_changes_nothing(target: Any) -> None:
    """The value passes whether the target fails, refuses, hangs or times out."""
    client = rc.local(rc.pipeline(add_one, rc.shadow(target), add_one))
    assert [client.call(x, timeout_s=10) for x in range(30)] == list(range(2, 32))


def test_shadow_runs_beside_the_request() -> None:
    """The target gets the same input, and is still at work when the caller has its result."""
    release, seen = threading.Event(), []

    def slow(x: Any) -> None:
        release.wait(10)
        seen.append(x)

    client = rc.local(rc.shadow(slow))
    assert client.call(5) == 5
    assert seen == []
    release.set()
    until(lambda: seen == [5])


def test_shadow_that_blocks_threads_leaves_the_request_its_own() -> None:
    """However many threads hanging shadows hold, a def stage still runs at once."""
    release = threading.Event()

    def blocks(x: Any) -> None:
        release.wait(30)

    client = rc.local(rc.pipeline(rc.shadow(blocks, max_in_flight=100), lambda x: x + 1))
    try:
        assert [client.call(x, timeout_s=5) for x in range(60)] == list(range(1, 61))
    finally:
        release.set()


def test_shadow_is_bounded_and_counts_what_it_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than max_in_flight mirrored calls run at once; others are dropped and counted."""
    dropped = []
    count = metrics.shadow_dropped

    def counted(pipeline: str, stage: str) -> None:
        dropped.append((pipeline, stage))
        count(pipeline, stage)

    monkeypatch.setattr(metrics, "shadow_dropped", counted)
    release = threading.Event()
    running: list[int] = []
    finished: list[int] = []

    async def target(x: int) -> None:
        running.append(x)
        await asyncio.to_thread(release.wait, 10)
        finished.append(x)

    client = rc.local(rc.shadow(target, max_in_flight=3).options(name="Front"))
    assert [client.call(x) for x in range(10)] == list(range(10))
    until(lambda: len(running) == 3)
    assert dropped == [("Front", "shadow")] * 7
    release.set()
    until(lambda: len(finished) == 3)
    client.call(10)
    until(lambda: sorted(finished) == [0, 1, 2, 10])
    assert len(dropped) == 7


def test_shadow_mirrors_its_share() -> None:
    """Over 10,000 inputs the mirrored share is within 2 points of percent."""
    seen = []

    async def mirror(x: int) -> None:
        seen.append(x)

    app = rc.each(rc.shadow(mirror, percent=25, max_in_flight=10_000))
    assert call(app, list(range(10_000)), timeout_s=60) == list(range(10_000))
    until(lambda: len(seen) / 100 == pytest.approx(25, abs=2))


def test_shadow_drains_a_stream() -> None:
    """A target that streams is run to its end."""
    seen = []

    async def items(x: int) -> AsyncIterator[int]:
        for i in range(x):
            seen.append(i)
            yield i

    assert call(rc.shadow(items), 3) == 3
    until(lambda: seen == [0, 1, 2])


def test_shadow_outlives_a_request_that_fails() -> None:
    """A failure further on does not cancel the mirrored call: it is no part of the request."""
    release, seen = threading.Event(), []

    async def target(x: int) -> None:
        await asyncio.to_thread(release.wait, 10)
        seen.append(x)

    fails_with(ValueError, rc.pipeline(rc.shadow(target), fail), 7)
    release.set()
    until(lambda: seen == [7])


# --- Each -----------------------------------------------------------------------------------------


def test_each_is_bounded() -> None:
    """Exactly max_concurrency items are under way at once, as long as there are so many."""
    busy = Busy()
    assert call(rc.each(busy, max_concurrency=3), list(range(20))) == list(range(20))
    assert (busy.peak, busy.calls) == (3, 20)


def test_each_keeps_the_order() -> None:
    """Results are in the items' order, though the first finishes last."""

    async def slower_first(x: int) -> int:
        await asyncio.sleep((10 - x) / 200)
        return x * 10

    assert call(rc.each(slower_first, max_concurrency=10), list(range(10))) == list(
        range(0, 100, 10)
    )


def test_each_raises_the_first_failure_and_cancels_the_rest() -> None:
    """Without return_exceptions the first failure is raised, and what runs or waits stops."""
    hanging, started = Hanging(), []

    async def item(x: int) -> None:
        started.append(x)
        if x == 0:
            await hanging(x)
        await asyncio.sleep(0)
        raise ValueError(x)

    error = fails_with(ValueError, rc.each(item, max_concurrency=2), list(range(10)))
    assert rc.failed_stage(error) == "item"
    assert hanging.cancelled.is_set()
    assert len(started) <= 3  # the failure made room for one more, and no others


def test_each_puts_errors_in_their_places_with_retries() -> None:
    """An error that outlasts its retries is at its own index; one that recovers is a result."""
    attempts: Counter[int] = Counter()

    async def flaky(x: int) -> int:
        attempts[x] += 1
        if x % 3 == 0 or (x % 3 == 1 and attempts[x] < 3):
            raise OSError(x)
        return x

    retry = rc.Retry(attempts=3, on=(OSError,), initial_s=0.001)
    results = call(rc.each(rc.stage(flaky, retry=retry), return_exceptions=True), list(range(9)))
    assert [r.args[0] if isinstance(r, OSError) else r for r in results] == list(range(9))
    assert [isinstance(r, OSError) for r in results] == [x % 3 == 0 for x in range(9)]
    assert rc.failed_stage(results[3]) == "flaky"
    assert attempts == {x: 1 if x % 3 == 2 else 3 for x in range(9)}


@pytest.mark.parametrize("items", [[], ()])
def test_each_of_nothing(items: Any) -> None:
    """No items give an empty list, and run nothing."""
    assert call(rc.each(never), items) == []


@pytest.mark.parametrize("items", ["text", {"a": 1}, {1}, None, 5, b"bytes"])
def test_each_of_what_is_no_list(items: Any) -> None:
    """Anything but a list or a tuple is a TypeError that names the node and what it got."""
    error = fails_with(TypeError, rc.each(never), items, match=f"list.*got {type(items).__name__}")
    assert rc.failed_stage(error) == "each"


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
    assert "OSError('two')" in notes
    assert "KeyError('three')" in notes


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


# --- One deployment in several places -------------------------------------------------------------

here: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "graceful_shutdown_timeout_s": 0}


# How long a caller waits before it asks a busy replica again; by default up to half a second.
SOON = RequestRouterConfig(initial_backoff_s=0.005, max_backoff_s=0.01)


class One:
    """One call at a time; knows if there were ever two."""

    def __init__(self) -> None:
        self.running = 0

    async def __call__(self, x: Any) -> int:
        assert self.running == 0
        self.running += 1
        await asyncio.sleep(0.001)
        self.running -= 1
        return (sum(x) if isinstance(x, list | tuple) else int(x)) + 1

    async def awaited(self, ref: rc.Ref[int]) -> int:
        return await ref + 1000

    async def up_to(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i


def one(name: str) -> Any:
    deployment = serve.deployment(One, name=name, max_ongoing_requests=1, **here)
    return deployment.options(request_router_config=SOON).bind()


def test_an_application_used_in_several_places_is_one_deployment() -> None:
    """The same bound deployment in several branches is started once; two bindings are two."""
    shared = one("Shared")
    app = rc.pipeline(shared, rc.parallel(shared, rc.when(bool, shared, one("Shared"))), shared)
    names = sorted(d.name for d in _serve.build(app, "app").deployments)
    assert names == ["Pipeline", "Shared", "Shared_1"]


def diamonds() -> rc.Pipeline[Any, Any]:
    """Diamonds over deployments that take one call at a time, one of them at several corners."""
    top, bottom = one("Top"), one("Bottom")
    return rc.when(
        lambda x: x % 2,
        rc.pipeline(top, rc.parallel(top, lambda x: x * 10), bottom),
        rc.pipeline(top, rc.parallel(bottom, rc.passthrough), top),
    )


def through_a_diamond(x: int) -> int:
    """What ``diamonds()`` gives, in plain Python."""
    top = x + 1
    return (top + 1) + top * 10 + 1 if x % 2 else (top + 1) + top + 1


def under_load(client: rc.Client, calls: int, timeout_s: float) -> list[Any]:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(client.acall(x, timeout_s=timeout_s) for x in range(calls)))

    return asyncio.run(all_at_once())


def test_diamonds_do_not_deadlock_here() -> None:
    """Fifty calls at once through diamonds of stages that take one call at a time all come back."""
    results = under_load(rc.local(diamonds()), 50, timeout_s=20)
    assert results == [through_a_diamond(x) for x in range(50)]


def test_diamonds_do_not_deadlock_in_replicas(deploy: Deploy) -> None:
    """The same where the stages are in replicas of their own."""
    results = under_load(deploy(diamonds()), 50, timeout_s=100)
    assert results == [through_a_diamond(x) for x in range(50)]


def by_reference() -> rc.Pipeline[Any, Any]:
    shared = one("Both")
    return rc.pipeline(shared, rc.stage(shared, method="awaited"))


def test_a_deployment_that_awaits_itself_does_not_deadlock() -> None:
    """A stage that takes a reference never keeps its own deployment from producing the result."""
    assert under_load(rc.local(by_reference()), 5, timeout_s=5) == [x + 1001 for x in range(5)]


def test_a_deployment_that_maps_its_own_stream_does_not_deadlock() -> None:
    """A deployment that takes one call at a time can produce a stream and map it."""
    shared = one("Both")
    app = rc.pipeline(rc.stage(shared, method="up_to"), shared, rc.collect)
    assert call(app, 20, timeout_s=5) == list(range(1, 21))


# --- In replicas ----------------------------------------------------------------------------------


class Witness:
    """Sees what becomes of its calls."""

    def __init__(self) -> None:
        self.hanging = 0
        self.cancelled = 0
        self.met = 0
        self.all_there = asyncio.Event()
        self.one_more = asyncio.Condition()

    async def hang(self, x: Any) -> None:
        async with self.one_more:
            self.hanging += 1
            self.one_more.notify_all()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def fail_beside(self, hanging: int) -> None:
        async with self.one_more:
            await self.one_more.wait_for(lambda: self.hanging >= hanging)
        raise ValueError("the others hang")

    async def counts(self, x: Any) -> tuple[int, int]:
        return self.hanging, self.cancelled

    async def meet(self, x: Any) -> int:
        self.met += 1
        if self.met == 3:
            self.all_there.set()
        await asyncio.wait_for(self.all_there.wait(), 20)
        return self.met

    async def die(self, x: Any) -> None:
        os._exit(1)

    async def fail(self, x: Any) -> None:
        raise ValueError(x)


@pytest.fixture(scope="module")
def replicas(deploy: Deploy) -> rc.Client:
    """One application for what has to be seen in replicas: ``{"do": which, ...}``."""
    witness = serve.deployment(Witness, max_ongoing_requests=50, **here).bind()
    mortal = serve.deployment(Witness, name="Mortal", **here).bind()

    def to(method: str, app: Any = witness) -> Any:
        return rc.stage(app, method=method)

    hangs = rc.switch(
        "is", {"hang": to("hang"), "fail": rc.pipeline(lambda v: v["n"], to("fail_beside"))}
    )
    return deploy(
        rc.switch("do", {
            "counts": to("counts"),
            "meet": rc.parallel(to("meet"), to("meet"), to("meet")),
            "parallel": rc.pipeline(
                lambda v: v["n"], rc.parallel(to("hang"), to("fail_beside"), to("hang"))),
            "each": rc.pipeline(lambda v: v["items"], rc.each(hangs)),
            "timeout": rc.stage(rc.parallel(to("hang"), to("hang")), timeout_s=0.3),
            "fallback": rc.fallback(rc.stage(to("hang"), timeout_s=0.3), lambda v: "second"),
            "shadow": rc.pipeline(
                rc.shadow(to("hang")), rc.shadow(to("fail", mortal)), rc.shadow(to("die", mortal)),
                lambda v: "unharmed"),
        })
    )  # fmt: skip


def test_parallel_runs_at_once_in_replicas(replicas: rc.Client) -> None:
    """Three calls of one replica are under way together: each waits for the others."""
    assert replicas.call({"do": "meet"}) == (3, 3, 3)


@pytest.mark.parametrize(
    ("request_", "raises", "hangs"),
    [
        ({"do": "parallel"}, ValueError, 2),
        ({"do": "each", "items": ["hang", "fail", "hang"]}, ValueError, 2),
        ({"do": "timeout"}, rc.StageTimeoutError, 2),
        ({"do": "fallback"}, None, 1),
    ],
    ids=["parallel", "each", "timeout", "fallback"],
)
def test_what_is_given_up_is_cancelled_in_its_replica(
    replicas: rc.Client, request_: dict[str, Any], raises: Any, hangs: int
) -> None:
    """Calls whose result nobody wants any more see a CancelledError in their replicas."""
    before, cancelled = replicas.call({"do": "counts"})
    request_ = {**request_, "n": before + hangs}
    if "items" in request_:
        request_["items"] = [{"is": what, "n": before + hangs} for what in request_["items"]]
    if raises is None:
        assert replicas.call(request_, timeout_s=30) == "second"
    else:
        with pytest.raises(raises):
            replicas.call(request_, timeout_s=30)
    until(lambda: replicas.call({"do": "counts"}) == (before + hangs, cancelled + hangs))


def test_shadow_of_a_replica_that_hangs_fails_or_dies(replicas: rc.Client) -> None:
    """Targets that hang, fail and take their replica down change nothing for the caller."""
    for _ in range(5):
        assert replicas.call({"do": "shadow"}, timeout_s=10) == "unharmed"
