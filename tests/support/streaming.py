"""Producers for the local engine."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any


class Producer:
    """Makes numbers, and notes how many were made and whether it was stopped."""

    def __init__(self, *, pause_s: float = 0) -> None:
        self.made = 0
        self.stopped = threading.Event()
        self.pause_s = pause_s

    async def later(self, n: int) -> AsyncIterator[int]:
        try:
            for i in range(n):
                self.made += 1
                yield i
                await asyncio.sleep(self.pause_s)
        finally:
            self.stopped.set()

    def now(self, n: int) -> Iterator[int]:
        try:
            for i in range(n):
                self.made += 1
                yield i
                if self.pause_s:
                    time.sleep(self.pause_s)
        finally:
            self.stopped.set()


def drain(items: Iterator[Any], into: list[Any]) -> None:
    """Append items one by one, so that those before an error are there."""
    for item in items:
        into.append(item)  # see above
