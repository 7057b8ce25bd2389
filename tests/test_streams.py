"""Streams between stages on the local engine: lazy, in order, stopped early."""

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest
from ray import serve
from support.streaming import Producer, drain

import raycompose as rc
from raycompose.flow.streams import IN_FLIGHT

MILLION = 1_000_000


KINDS = pytest.mark.parametrize("kind", ["later", "now"])


async def double(x: int) -> int:
    return 2 * x


def double_now(x: int) -> int:
    return 2 * x


async def whole(items: rc.Stream[int]) -> AsyncIterator[int]:
    async for item in items:
        yield item + 1


def whole_now(items: rc.Stream[int]) -> Iterator[int]:
    for item in items:
        yield item + 1


async def iterated(items: AsyncIterator[int]) -> AsyncIterator[int]:
    async for item in items:
        yield item + 1


def iterated_now(items: Iterator[int]) -> Iterator[int]:
    for item in items:
        yield item + 1


def iterated_iterable(items: Iterable[int]) -> Iterator[int]:
    for item in items:
        yield item + 1


CONSUMERS = pytest.mark.parametrize(
    "consumer",
    [double, double_now, whole, whole_now, iterated, iterated_now, iterated_iterable],
    ids=lambda function: function.__name__,
)


def take(app: Any, n: int, count: int = MILLION) -> list[Any]:
    """Take ``n`` items of a streaming pipeline and leave."""
    items = rc.local(app).stream(count)
    try:
        return list(itertools.islice(items, n))
    finally:
        items.close()  # type: ignore[attr-defined]  # a generator


# Order and shape


@KINDS
@CONSUMERS
def test_items_keep_their_order(kind: str, consumer: Any) -> None:
    """Items arrive in the order in which they were made, whatever takes them."""
    app = rc.pipeline(getattr(Producer(), kind), consumer)
    expected = [2 * i if consumer in (double, double_now) else i + 1 for i in range(50)]
    assert list(rc.local(app).stream(50)) == expected


def test_mapped_items_keep_their_order_when_later_ones_are_quicker() -> None:
    """A mapping stage that finishes out of order still gives its results in order."""

    async def uneven(x: int) -> int:
        await asyncio.sleep(0.02 if x % 4 == 0 else 0)
        return x

    assert list(rc.local(rc.pipeline(Producer().later, uneven)).stream(20)) == list(range(20))


def test_stages_overlap() -> None:
    """A mapping stage works on a few items at once, and never on more than a few."""
    now, most = 0, 0

    async def slow(x: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return x

    assert list(rc.local(rc.pipeline(Producer().later, slow)).stream(20)) == list(range(20))
    assert 1 < most <= IN_FLIGHT


def test_chains_of_any_length_stream() -> None:
    """Many stages in a row, mapping and taking the stream whole, still give every item."""
    app = rc.pipeline(Producer().later, *([double, whole, double_now, whole_now] * 3))

    def through(x: int) -> int:
        for _ in range(3):
            x = (2 * x + 1) * 2 + 1
        return x

    assert list(rc.local(app).stream(10)) == [through(x) for x in range(10)]


def test_a_stream_of_deployments() -> None:
    """Deployments stream into each other as functions do."""
    producer = serve.deployment(_Numbers).bind()
    taker = serve.deployment(_Taker).bind()
    app = rc.pipeline(producer, rc.stage(taker, method="one"), rc.stage(taker, method="all"))
    assert list(rc.local(app).stream(5)) == [10, 20, 30, 40, 50]


class _Numbers:
    async def __call__(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i


class _Taker:
    async def one(self, x: int) -> int:
        return x + 1

    def all(self, items: rc.Stream[int]) -> Iterator[int]:
        for item in items:
            yield item * 10


def test_stream_overrides_the_detection() -> None:
    """``stream=True`` makes a stage that returns an iterator one that streams."""

    def returns_iterator(n: int) -> Any:
        return iter(range(n))

    async def returns_async_iterator(n: int) -> Any:
        return Producer().later(n)

    for stage in (returns_iterator, returns_async_iterator):
        assert list(rc.local(rc.stage(stage, stream=True)).stream(3)) == [0, 1, 2]


def test_stream_true_on_what_is_none_says_so() -> None:
    """A stage that was said to stream and returns a value is an error that says what to do.

    At once, where its annotation says so.
    """
    with pytest.raises(TypeError, match="yield the items"):
        list(rc.local(rc.stage(lambda x: 2 * x, stream=True)).stream(3))
    with pytest.raises(rc.CompositionError, match="stream=True, but it returns int: yield"):
        rc.stage(double, stream=True)


def test_calling_what_streams_says_so() -> None:
    """``client.call`` on a streaming pipeline, and ``stream`` on one that is none, are errors."""
    with pytest.raises(TypeError, match="stream"):
        rc.local(rc.pipeline(Producer().later)).call(3)
    with pytest.raises(TypeError, match="call"):
        list(rc.local(rc.pipeline(double)).stream(3))


def test_a_generator_over_a_stream_maps_each_item() -> None:
    """A generator behind a stream that does not take it whole is refused or flattened.

    It must never hand generator or stream objects to the caller.
    """

    def twice(x: int) -> Iterator[int]:
        yield x
        yield x

    try:
        app = rc.pipeline(Producer().later, twice)
    except rc.CompositionError:
        return
    items = list(rc.local(app).stream(3))
    assert items == [0, 0, 1, 1, 2, 2]


def test_an_iterator_parameter_behind_a_value_gets_the_value() -> None:
    """``Iterable[int]`` behind a stage that gives a list is the list."""

    def numbers(n: int) -> list[int]:
        return list(range(n))

    def total(items: Iterable[int]) -> int:
        return sum(items)

    assert rc.local(rc.pipeline(numbers, total)).call(4) == 6
    assert rc.local(rc.pipeline(Producer().now, total)).call(4) == 6


async def _total(items: rc.Stream[int]) -> int:
    return sum([item async for item in items])


def _total_now(items: rc.Stream[int]) -> int:
    return sum(items)


@pytest.mark.parametrize("total", [_total, _total_now])
def test_a_stage_that_takes_a_stream_may_end_it(total: Any) -> None:
    """A stage that takes the stream and returns a value makes the pipeline one that is called."""
    assert rc.local(rc.pipeline(Producer().later, double, total, double)).call(5) == 40


# collect


@KINDS
def test_collect_makes_a_list(kind: str) -> None:
    """``rc.collect`` turns a stream into a list, empty for no items."""
    client = rc.local(rc.pipeline(getattr(Producer(), kind), double, rc.collect))
    assert client.call(4) == [0, 2, 4, 6]
    assert client.call(0) == []


def test_collect_ends_a_branch() -> None:
    """``rc.collect`` lets a streaming branch stand in a parallel."""
    app = rc.parallel(items=rc.pipeline(Producer().later, rc.collect), one=double)
    assert rc.local(app).call(3) == {"items": [0, 1, 2], "one": 6}


# Laziness


def test_nothing_starts_before_the_first_item_is_asked_for() -> None:
    """A stream that nobody iterates makes nothing."""
    producer = Producer()

    async def leaves(items: rc.Stream[int]) -> str:
        await asyncio.sleep(0.05)
        return "left"

    assert rc.local(rc.pipeline(producer.later, leaves)).call(MILLION) == "left"
    assert producer.made == 0


@KINDS
@CONSUMERS
def test_a_slow_consumer_slows_its_producer(kind: str, consumer: Any) -> None:
    """A producer of a million items behind a consumer that took ten has made fewer than 100."""
    producer = Producer()
    assert len(take(rc.pipeline(getattr(producer, kind), consumer), 10)) == 10
    assert 10 <= producer.made < 100


@KINDS
def test_back_pressure_reaches_through_a_long_chain(kind: str) -> None:
    """Each stage in between holds a few items at most."""
    producer = Producer()
    chain = [double, whole, double_now, whole_now, iterated]
    assert len(take(rc.pipeline(getattr(producer, kind), *chain), 10)) == 10
    assert producer.made < 100


def test_a_waiting_consumer_stops_production() -> None:
    """While the consumer does nothing, the producer does nothing either."""
    producer = Producer()
    items = rc.local(rc.pipeline(producer.later, double)).stream(MILLION)
    assert next(items) == 0
    made = _settled(lambda: producer.made)
    assert made < 20
    assert [next(items) for _ in range(3)] == [2, 4, 6]
    items.close()  # type: ignore[attr-defined]  # a generator


def _settled(value: Callable[[], int]) -> int:
    """Return a value once it has stayed the same for a tenth of a second."""
    last, since, end = value(), time.monotonic(), time.monotonic() + 10
    while time.monotonic() < end:
        time.sleep(0.01)
        if value() != last:
            last, since = value(), time.monotonic()
        elif time.monotonic() - since > 0.1:
            return last
    raise AssertionError("the value kept changing")


# Stopping early


@KINDS
@CONSUMERS
def test_leaving_early_stops_the_producer(kind: str, consumer: Any) -> None:
    """Leaving the loop stops the producer within a second."""
    producer = Producer(pause_s=0.01)
    take(rc.pipeline(getattr(producer, kind), consumer), 3)
    assert producer.stopped.wait(1)


async def _takes_two(items: rc.Stream[int]) -> list[int]:
    got: list[int] = []
    async for item in items:
        got.append(item)
        if len(got) == 2:
            break
    return got


def _takes_two_now(items: rc.Stream[int]) -> list[int]:
    got: list[int] = []
    for item in items:
        got.append(item)
        if len(got) == 2:
            break
    return got


def _takes_two_of_iterator(items: Iterator[int]) -> list[int]:
    return list(itertools.islice(items, 2))


@KINDS
@pytest.mark.parametrize("consumer", [_takes_two, _takes_two_now, _takes_two_of_iterator])
def test_a_stage_that_leaves_early_stops_the_producer(kind: str, consumer: Any) -> None:
    """A stage that takes a stream and leaves it after two items stops its producer in a second."""
    producer = Producer(pause_s=0.01)
    app = rc.pipeline(getattr(producer, kind), consumer)
    assert rc.local(app).call(MILLION) == [0, 1]
    assert producer.stopped.wait(1)


def test_leaving_an_async_stream_early_stops_the_producer() -> None:
    """``break`` in ``async for`` over ``client.astream`` stops the producer within a second."""
    producer = Producer(pause_s=0.01)

    async def leave() -> None:
        items = rc.local(rc.pipeline(producer.later, double)).astream(MILLION)
        async for item in items:
            if item == 4:
                break
        await items.aclose()  # type: ignore[attr-defined]  # a generator

    asyncio.run(leave())
    assert producer.stopped.wait(1)


def test_a_failing_consumer_stops_the_producer() -> None:
    """A stage that fails amid a stream stops what feeds it."""
    producer = Producer(pause_s=0.01)

    async def fails(x: int) -> int:
        if x == 3:
            raise ValueError("three")
        return x

    with pytest.raises(ValueError, match="three"):
        list(rc.local(rc.pipeline(producer.later, fails)).stream(MILLION))
    assert producer.stopped.wait(1)


# Errors


@KINDS
@CONSUMERS
def test_an_error_comes_after_the_items_so_far(kind: str, consumer: Any) -> None:
    """A producer that fails amid its items: those so far arrive, then its own exception."""

    class Breaking(Producer):
        async def later(self, n: int) -> AsyncIterator[int]:
            for i in range(5):
                yield i
            raise KeyError("five")

        def now(self, n: int) -> Iterator[int]:
            yield from range(5)
            raise KeyError("five")

    app = rc.pipeline(rc.stage(getattr(Breaking(), kind), name="breaking"), consumer)
    got: list[int] = []
    with pytest.raises(KeyError, match="five") as caught:
        drain(rc.local(app).stream(9), got)
    assert len(got) == 5
    assert rc.failed_stage(caught.value) == "breaking"


def test_an_error_of_a_mapping_stage_comes_in_its_place() -> None:
    """When item three fails, items zero to two have arrived, and the mapping stage is named."""

    async def fails(x: int) -> int:
        if x == 3:
            raise ValueError("three")
        await asyncio.sleep(0.01)
        return x

    got: list[int] = []
    with pytest.raises(ValueError, match="three") as caught:
        drain(rc.local(rc.pipeline(Producer().later, fails)).stream(9), got)
    assert got == [0, 1, 2]
    assert rc.failed_stage(caught.value) == "fails"


def test_an_error_before_the_first_item_is_raised() -> None:
    """A producer that fails at once raises its exception at the first item."""

    def fails(n: int) -> Iterator[int]:
        if n > 0:
            raise ValueError("at once")
        yield 1

    with pytest.raises(ValueError, match="at once"):
        next(rc.local(rc.pipeline(fails, double)).stream(1))


@pytest.mark.parametrize("consumer", [whole, whole_now])
def test_a_consumer_may_catch_its_producers_error(consumer: Any) -> None:
    """A stage that takes a stream sees its producer's exception, as the producer's own type."""

    async def breaks(n: int) -> AsyncIterator[int]:
        yield 1
        raise KeyError("broken")

    def recovers(items: rc.Stream[int]) -> list[Any]:
        got: list[Any] = []
        try:
            for item in items:
                got.append(item)  # what came before the error counts
        except KeyError as error:
            got.append(rc.failed_stage(error))
        return got

    assert rc.local(rc.pipeline(breaks, consumer, recovers)).call(1) == [2, "breaks"]


# Calling


def test_concurrent_streams_do_not_mix() -> None:
    """Several streams of one pipeline at once give each its own items."""
    client = rc.local(rc.pipeline(Producer().later, double))

    async def all_of(n: int) -> list[Any]:
        return [item async for item in client.astream(n)]

    async def run() -> list[list[Any]]:
        return await asyncio.gather(*(all_of(n) for n in range(5)))

    assert asyncio.run(run()) == [[2 * i for i in range(n)] for n in range(5)]


def test_a_stream_inside_a_running_loop() -> None:
    """``client.stream`` blocks and works inside a running event loop, as in Jupyter."""

    async def cell() -> list[Any]:
        return list(rc.local(rc.pipeline(Producer().later, whole_now)).stream(3))

    assert asyncio.run(cell()) == [1, 2, 3]


def test_many_sync_streams_at_once_do_not_wait_for_each_other() -> None:
    """More sync stages than worker threads, each waiting for another, still finish."""
    program = """
import asyncio, time
import raycompose as rc

def numbers(n):
    for i in range(n):
        time.sleep(0.005)
        yield i

def total(items: rc.Stream[int]) -> int:
    return sum(items)

client = rc.local(rc.pipeline(numbers, total))

async def main():
    return await asyncio.gather(*(client.acall(5) for _ in range(60)))

print(sum(asyncio.run(main())))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["600"], done.stderr


async def _fails_after_two(items: rc.Stream[int]) -> int:
    async for item in items:
        if item == 2:
            raise ValueError("two")
    return -1


async def _one(items: rc.Stream[int]) -> int:
    return len([item async for item in items])


@pytest.mark.parametrize(
    "taker",
    [
        rc.stage(_fails_after_two, retry=rc.Retry(3, on=(ValueError,))),
        rc.fallback(_fails_after_two, _one),
    ],
    ids=["retry", "fallback"],
)
def test_a_stream_that_was_begun_is_not_given_to_another_attempt(
    taker: rc.Pipeline[Any, Any],
) -> None:
    """Items can be taken once: another attempt would take the rest for the whole."""
    producer = Producer()
    with pytest.raises(ValueError, match="two"):
        rc.local(rc.pipeline(producer.later, taker)).call(5)
    assert producer.made == 3


@pytest.mark.parametrize("limits", [{"retry": 2}, {"timeout_s": 10.0}], ids=["retry", "timeout"])
def test_a_limited_stream_begins_where_its_first_item_is_asked_for(limits: Any) -> None:
    """A stage that takes the stream whole starts first, though the stream is limited."""
    order: list[str] = []

    async def source(n: int) -> AsyncIterator[int]:
        order.append("source")
        for i in range(n):
            yield i

    async def taker(items: rc.Stream[int]) -> int:
        order.append("taker")
        return sum([item async for item in items])

    assert rc.local(rc.pipeline(rc.stage(source, **limits), taker)).call(4) == 6
    assert order == ["taker", "source"]


@pytest.mark.parametrize(
    "chosen", [rc.fallback(_total, whole), rc.split((_total, 50), (_total, 50))]
)
def test_a_choice_made_without_the_value_passes_the_stream_on_whole(
    chosen: rc.Pipeline[Any, Any],
) -> None:
    """``fallback`` and ``split`` give a stream to branches that all take one."""
    assert rc.local(rc.pipeline(Producer().later, chosen)).call(4) == 6


@pytest.mark.parametrize(
    "branching",
    [
        rc.switch(lambda x: x, {1: _total}),
        rc.when(bool, _total),
        rc.split((_total, 50), (_total, 50), key=lambda x: x),
        rc.parallel(_total, _total),
        rc.fallback(_total, double),
    ],
    ids=["switch", "when", "sticky split", "parallel", "fallback"],
)
def test_a_branch_cannot_take_whole_what_comes_item_by_item(
    branching: rc.Pipeline[Any, Any],
) -> None:
    """It is refused where it is composed, and the error names both."""
    with pytest.raises(rc.CompositionError, match=r"'_total' takes a stream whole.*one by one"):
        rc.pipeline(Producer().later, branching)
