"""Stages for the local engine: they fail, hang, count; and what calls them."""

import asyncio
import threading
from typing import Any

import pytest

import raycompose as rc


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
