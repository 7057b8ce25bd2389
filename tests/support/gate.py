"""A gate, at which stages wait in any process: what goes on only once something else has begun."""

import asyncio
from typing import Any

import ray

NAMESPACE = "gate"


class Gate:
    """Whoever waits at it goes on when somebody else has opened it."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._waiting = 0

    async def close(self) -> None:
        self._open = asyncio.Event()

    async def open(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        self._waiting += 1
        try:
            await self._open.wait()
        finally:
            self._waiting -= 1

    async def waiting(self) -> int:
        return self._waiting


def build_gate(**options: Any) -> Any:
    """Start the actor; it goes with the last reference to it."""
    remote: Any = ray.remote(num_cpus=0, max_concurrency=100, **options)(Gate)
    return remote.options(name="gate", namespace=NAMESPACE).remote()


def gate() -> Any:
    """The gate, from any process."""
    return ray.get_actor("gate", namespace=NAMESPACE)
