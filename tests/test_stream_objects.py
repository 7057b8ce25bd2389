"""The ``Stream`` that a stage gets: peeked at, mapped, closed, iterated once."""

import asyncio
import functools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.streaming import Producer

import raycompose as rc
from raycompose.flow.streams import Stream

MILLION = 1_000_000


async def _numbers(n: int = 3) -> AsyncIterator[int]:
    for i in range(n):
        yield i


def _stream(n: int = 3) -> "Stream[int]":
    async def source() -> Any:
        for i in range(n):
            yield i

    return Stream(source)


def test_peek_waits_for_the_first_item() -> None:
    """``peek()`` gives the same items, with the first one known."""

    async def run() -> tuple[Any, list[int]]:
        peeked = await _stream().peek()
        return peeked.peeked, [item async for item in peeked]

    assert asyncio.run(run()) == (0, [0, 1, 2])


def test_peek_of_an_empty_stream_is_empty() -> None:
    """``peek()`` of a stream without items gives a stream without items."""

    async def run() -> tuple[Any, list[int]]:
        peeked = await _stream(0).peek()
        return peeked.peeked, [item async for item in peeked]

    assert asyncio.run(run()) == (None, [])


def test_peek_raises_what_came_instead_of_the_first_item() -> None:
    """``peek()`` of a stream that fails at once raises its exception."""

    async def run() -> None:
        async def source() -> Any:
            if MILLION:
                raise ValueError("at once")
            yield 1

        with pytest.raises(ValueError, match="at once"):
            await Stream(source).peek()

    asyncio.run(run())


def _later(producer: Producer) -> Any:
    return producer.later(MILLION)


def test_a_begun_stream_that_is_left_stops_its_producer() -> None:
    """Closing what ``peek()`` gave closes the producer, whether it was iterated or not."""

    async def run(items: int) -> bool:
        producer = Producer()

        peeked = await Stream(functools.partial(_later, producer)).peek()
        for _ in range(items):
            await anext(aiter(peeked))
        await peeked.aclose()
        await asyncio.sleep(0)
        return producer.stopped.is_set()

    assert asyncio.run(run(2))
    assert asyncio.run(run(0))


def test_closing_is_safe_at_any_time() -> None:
    """``aclose()`` before, amid and after iteration, and twice, does no harm."""

    async def run() -> None:
        unstarted, amid, done = _stream(), _stream(), _stream()
        assert await anext(aiter(amid)) == 0
        assert [item async for item in done] == [0, 1, 2]
        for stream in (unstarted, amid, done):
            await stream.aclose()
            await stream.aclose()
        assert [item async for item in amid] == []

    asyncio.run(run())


def test_iterating_with_for_on_the_event_loop_is_refused() -> None:
    """A plain ``for`` on the event loop would block it: the error says ``async for``."""

    async def stage(items: rc.Stream[int]) -> int:
        return sum(items)

    with pytest.raises(rc.RayComposeError, match="async for"):
        rc.local(rc.pipeline(_numbers, stage)).call(3)


def test_a_stream_is_iterated_once() -> None:
    """A second iteration goes on where the first ended: it gives no item twice."""

    async def run() -> tuple[list[int], list[int]]:
        stream = _stream()
        return [item async for item in stream], [item async for item in stream]

    assert asyncio.run(run()) == ([0, 1, 2], [])


def test_mapping_a_stream_is_lazy() -> None:
    """``map`` calls nothing before the first item is asked for."""
    called = []

    async def run() -> list[int]:
        async def note(x: int) -> int:
            called.append(x)
            return -x

        mapped = _stream().map(note)
        await asyncio.sleep(0.01)
        assert called == []
        return [item async for item in mapped]

    assert asyncio.run(run()) == [0, -1, -2]
