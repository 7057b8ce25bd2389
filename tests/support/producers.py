"""Producers and consumers of streams in replicas, and an actor that carries word to and fro."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import serve

import raycompose as rc
from support import cluster

TIMEOUT_S = 30.0
"""How long anything may take before its test fails rather than hangs."""
FIRST_S = 10.0
"""How long the first item may take, where nothing else would end the wait for it."""
STOP_S = 5.0
"""How long after the consumer has left a producer may go on: a second, more on a busy machine."""

STOPPED = Path(tempfile.mkdtemp())
"""Where producers write down that they stopped: Ray may cancel what a cancelled task calls."""

HERE: dict[str, Any] = {**cluster.HERE, "max_ongoing_requests": 100}
_keys = itertools.count()

Ask = dict[str, Any]


class Ledger:
    """What was said, by whom it matters not, and when."""

    def __init__(self) -> None:
        self._said: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def say(self, what: str) -> None:
        self._said[what].set()

    async def heard(self, what: str) -> None:
        """Return once it has been said."""
        await self._said[what].wait()

    async def was_said(self, what: str) -> bool:
        return self._said[what].is_set()


def ledger() -> Any:
    return ray.get_actor("ledger", namespace="streams")


def say(what: str) -> None:
    ray.get(ledger().say.remote(what), timeout=TIMEOUT_S)


def hear(what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Block until something was said, or fail."""
    ray.get(ledger().heard.remote(what), timeout=timeout_s)


@serve.deployment(**HERE)
class Producer:
    """Gives the items it is asked for, the second not before the first has been read.

    Args:
        key: What its entries in the ledger begin with.
        items: What it gives, as bytes with ``as_bytes``.
        then: What follows: the ``end``, it ``fails``, it is ``quiet``, or it goes ``on`` for ever.
        gated: Whether the second item waits for "<key> first read".
    """

    async def __call__(
        self,
        key: str,
        items: list[Any],
        then: str = "end",
        gated: bool = False,
        as_bytes: bool = False,
    ) -> AsyncIterator[Any]:
        try:
            for n, item in enumerate(items):
                if gated and n == 1:
                    await ledger().heard.remote(f"{key} first read")
                yield item.encode() if as_bytes else item
            if then == "fails":
                raise KeyError("secret")
            if then == "quiet":
                await asyncio.Event().wait()
            while then == "on":
                await asyncio.sleep(0.01)
                yield items[-1]
        finally:
            (STOPPED / key).touch()


@serve.deployment(**HERE)
class Relay:
    """Takes the stream whole; some items have it fail or leave."""

    async def __call__(self, items: rc.Stream[Any]) -> AsyncIterator[Any]:
        async for item in items:
            if item in ("relay fails", b"relay fails"):
                raise ValueError("as asked")
            if item == "relay leaves":
                return
            yield item


async def check(item: Any) -> Any:
    """Map over the items; one has it fail."""
    if item in ("check fails", b"check fails"):
        raise ValueError("as asked")
    return item


def new_key() -> str:
    """Return a key that no other request has."""
    return f"key{next(_keys)}"


def ask(*items: Any, **options: Any) -> Ask:
    """Return a request to the producer under a key of its own."""
    return {"key": new_key(), "items": list(items), **options}


def drain(items: Iterator[Any], into: list[Any]) -> None:
    """Append items one by one, so that those before an error are there."""
    for item in items:
        into.append(item)  # see above


def stopped(asked: Ask, since: float) -> None:
    """Assert that the producer stops within a second or so of ``since``."""
    file = STOPPED / asked["key"]
    while not file.exists():
        assert time.monotonic() - since < STOP_S
        time.sleep(0.01)
