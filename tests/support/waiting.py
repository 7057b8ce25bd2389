"""Waiting for what other threads and processes do: a condition, asked again and again."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

POLL_S = 0.02
PATIENCE_S = 30.0
"""Long enough for a machine that is busy with something else."""


def poll(condition: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """Ask until a condition holds or the time is over, and return what it gave last."""
    deadline = time.monotonic() + within_s
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return found


def until(condition: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """Wait until a condition holds and return what it gave; fail when it does not in time."""
    found = poll(condition, within_s)
    assert found, f"the condition did not come true within {within_s:g} s"
    return found


async def apoll(condition: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """Do as ``poll`` without blocking the event loop."""
    deadline = time.monotonic() + within_s
    while not (found := condition()) and time.monotonic() < deadline:  # noqa: ASYNC110  # files
        await asyncio.sleep(POLL_S)
    return found
