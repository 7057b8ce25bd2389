"""Streams in deployed graphs: which way the items go, through branches, and slow consumers."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import gc
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import requests
from ray import serve
from support import pickle_by_value
from support.cluster import Deploy
from support.producers import (
    FIRST_S,
    HERE,
    STOPPED,
    TIMEOUT_S,
    Ask,
    Relay,
    check,
    drain,
    hear,
    ledger,
    new_key,
    say,
    stopped,
)

import raycompose as rc
from raycompose.flow.streams import IN_FLIGHT
from raycompose.http import streaming

pickle_by_value(__name__)
pytestmark = pytest.mark.usefixtures("word")


# Where the items travel


def _arrived(trail: tuple[int, ...]) -> "Traveller":
    return Traveller((*trail, os.getpid()))


class Traveller:
    """An item that notes each process it arrives in."""

    def __init__(self, trail: tuple[int, ...] = ()) -> None:
        self.trail = trail

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.trail,)


@serve.deployment(**HERE)
class Travellers:
    async def __call__(self, n: int) -> AsyncIterator[Traveller]:
        for _ in range(n):
            yield Traveller()


@serve.deployment(**HERE)
class Inn:
    """A station on the way; the last one gives the trails."""

    async def __call__(self, items: rc.Stream[Traveller]) -> AsyncIterator[Traveller]:
        async for item in items:
            yield item

    def last(self, items: rc.Stream[Traveller]) -> dict[str, Any]:
        return {"trails": [item.trail for item in items], "pid": os.getpid()}


async def seen(item: Traveller) -> Traveller:
    return Traveller((*item.trail, os.getpid()))


def with_pid(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "pipeline": os.getpid()}


def test_items_go_directly_from_replica_to_replica(deploy: Deploy) -> None:
    """Through three replicas an item arrives three times, and never in the pipeline's own."""
    source, inn, second, end = (
        Travellers.bind(),
        Inn.options(name="First").bind(),
        Inn.options(name="Second").bind(),
        Inn.options(name="Last").bind(),
    )
    client = deploy(rc.pipeline(source, inn, second, rc.stage(end, method="last"), with_pid))
    result = client.call(5, timeout_s=TIMEOUT_S)
    (trail,) = set(result["trails"])
    assert len(result["trails"]) == 5
    assert len(set(trail)) == len(trail) == 3
    assert trail[-1] == result["pid"]
    assert result["pipeline"] not in trail


def test_a_function_on_the_way_runs_where_the_items_are_pulled(deploy: Deploy) -> None:
    """A function between two deployments maps in the consuming replica: the items need no hop."""
    source, end = Travellers.bind(), Inn.bind()
    client = deploy(rc.pipeline(source, seen, rc.stage(end, method="last"), with_pid))
    result = client.call(5, timeout_s=TIMEOUT_S)
    assert result["trails"] == [(result["pid"], result["pid"])] * 5
    assert result["pipeline"] != result["pid"]


# In branches, and what cannot stream


def _branch(name: str) -> Callable[[Any], bool]:
    def is_taken(asked: Ask) -> bool:
        return bool(asked["branch"] == name)

    return is_taken


@serve.deployment(**HERE)
class Odd:
    """A producer whose one argument is the request, and methods that go wrong."""

    async def numbers(self, asked: Ask) -> AsyncIterator[Any]:
        try:
            yield 1
            if asked.get("gated"):
                await ledger().heard.remote(f"{asked['key']} first read")
            yield 2
            if asked.get("then") == "quiet":
                await asyncio.Event().wait()
            if asked.get("then") == "fails":
                raise KeyError("secret")
        finally:
            (STOPPED / asked["key"]).touch()

    async def fails(self, asked: Ask) -> AsyncIterator[int]:
        if asked:
            raise ValueError("at once")
        yield 0

    async def listed(self, asked: Ask) -> list[int]:
        return [1, 2]

    async def locks(self, asked: Ask) -> AsyncIterator[Any]:
        yield 1
        yield threading.Lock()


@pytest.fixture(scope="module")
def branches(deploy: Deploy) -> rc.Client:
    """One application that takes the branch it is asked for, in front of a relay."""
    odd, relay = Odd.bind(), Relay.bind()
    numbers = rc.stage(odd, method="numbers", name="numbers")
    fails = rc.stage(odd, method="fails", name="fails")
    return deploy(
        rc.pipeline(
            rc.switch(
                "branch",
                {
                    "switch": numbers,
                    "when": rc.when(_branch("when"), numbers, fails),
                    "otherwise": rc.when(_branch("when"), fails, numbers),
                    "split": rc.split((numbers, 50), (numbers, 50)),
                    "fallback": rc.fallback(fails, numbers),
                    "limited": rc.stage(odd, method="numbers", name="numbers", retry=2),
                    "listed": rc.stage(odd, method="listed", stream=True, name="listed"),
                    "locks": rc.stage(odd, method="locks", name="locks"),
                },
            ),
            relay,
        )
    )


TAKEN = pytest.mark.parametrize(
    "branch", ["switch", "when", "otherwise", "split", "fallback", "limited"]
)


@TAKEN
def test_a_branch_streams(branches: rc.Client, branch: str) -> None:
    """A stream inside a branch goes on behind it, the first item before the second exists."""
    asked = {"branch": branch, "key": new_key(), "gated": True}

    async def run() -> list[int]:
        items = branches.astream(asked)
        first = await asyncio.wait_for(anext(items), FIRST_S)
        await ledger().say.remote(f"{asked['key']} first read")
        return [first, *[item async for item in items]]

    assert asyncio.run(run()) == [1, 2]


@TAKEN
def test_leaving_a_branch_stops_its_producer(branches: rc.Client, branch: str) -> None:
    """Leaving a stream that came out of a branch stops the producer in a second."""
    asked = {"branch": branch, "key": new_key(), "then": "quiet"}

    async def run() -> None:
        items = branches.astream(asked)
        assert await asyncio.wait_for(anext(items), FIRST_S) == 1
        await items.aclose()

    asyncio.run(run())
    stopped(asked, time.monotonic())


@TAKEN
def test_a_failure_in_a_branch_follows_the_items(branches: rc.Client, branch: str) -> None:
    """A fallback or a retry is for what comes before the first item; later errors are raised."""
    asked = {"branch": branch, "key": new_key(), "then": "fails"}
    got: list[Any] = []
    with pytest.raises(KeyError, match="secret") as caught:
        drain(branches.stream(asked), got)
    assert got == [1, 2]
    assert (rc.failed_stage(caught.value) or "").startswith("numbers")


def test_a_list_in_place_of_a_stream_says_what_to_do(branches: rc.Client) -> None:
    """A stage declared ``stream=True`` that returns a list is named, and the error says why."""
    with pytest.raises(TypeError, match="generator") as caught:
        list(branches.stream({"branch": "listed"}))
    assert rc.failed_stage(caught.value) == "listed"


def test_an_item_that_cannot_be_pickled_says_so(branches: rc.Client) -> None:
    """An item that cannot be sent fails in its place: the error names the type and the stage."""
    got: list[Any] = []
    with pytest.raises(Exception, match=r"cannot pickle '_thread\.lock'|serializ") as caught:
        drain(branches.stream({"branch": "locks"}), got)
    assert got == [1]
    assert rc.failed_stage(caught.value) == "locks"


def test_an_item_that_json_cannot_hold_says_so() -> None:
    """Over HTTP an item that has no JSON is an error in its place, never a clean end."""

    async def odd() -> AsyncIterator[Any]:
        yield 1
        yield threading.Lock()

    messages = asyncio.run(_asgi(rc.local(rc.pipeline(odd))))
    *sent, last = b"".join(m.get("body", b"") for m in messages).decode().splitlines()
    assert sent == ["1"]
    assert json.loads(last)["error"]["status"] == 500


def test_stream_on_what_does_not_stream_says_what_to_do(deploy: Deploy) -> None:
    """``stream=True`` and ``client.stream`` on a pipeline with one result say so."""
    client = deploy(rc.pipeline(check))
    with pytest.raises(TypeError, match=r"generator|does not stream"):
        list(client.handle.options(stream=True).remote(1))
    with pytest.raises(TypeError, match=r"client\.call"):
        list(client.stream(1))
    assert client.call(1, timeout_s=TIMEOUT_S) == 1


# Quiet streams


async def _asgi(client: Any, sent: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Return the messages of the answer to a GET request that accepts events if ``sent`` is given.

    The test client of Starlette only returns once the whole answer is there.
    """
    messages: list[dict[str, Any]] = []
    asked = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return asked.pop() if asked else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        messages.append(message)
        if sent is not None:
            sent(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [(b"accept", b"text/event-stream")] if sent else [],
    }
    await asyncio.wait_for(client.asgi(scope, receive, send), TIMEOUT_S)
    return messages


def test_a_quiet_event_stream_gets_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The producer is silent until a keep-alive comment was sent; then its item follows."""
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.02)
    kept_alive = threading.Event()

    def quiet() -> Iterator[int]:
        yield 1
        if kept_alive.wait(TIMEOUT_S):
            yield 2

    def sent(message: dict[str, Any]) -> None:
        if message.get("body") == b": keep-alive\n\n":
            kept_alive.set()

    messages = asyncio.run(_asgi(rc.local(rc.pipeline(quiet)), sent))
    bodies = [m["body"] for m in messages if m.get("body")]
    assert bodies[0] == b"data: 1\n\n"
    assert bodies[-1] == b"data: 2\n\n"
    assert set(bodies[1:-1]) == {b": keep-alive\n\n"}


# Slow consumers

MANY = 40


class Token:
    """An item that is easily found in a process's memory."""

    def __init__(self, key: str) -> None:
        self.key = key


@serve.deployment(**HERE)
class Mint:
    async def __call__(self, key: str) -> AsyncIterator[Token]:
        for _ in range(MANY):
            yield Token(key)
        ledger().say.remote(f"{key} all made")


async def held(token: Token) -> int:
    """Wait for the test, then tell how many items this process holds."""
    await ledger().heard.remote(f"{token.key} go on")
    return sum(type(found).__name__ == "Token" for found in gc.get_objects())


@pytest.mark.parametrize("way", ["handle", "http"])
def test_a_slow_stage_holds_a_few_items(deploy: Deploy, way: str) -> None:
    """While a producer runs ahead of a slow stage, the pipeline's replica takes in a few items."""
    mint = Mint.bind()
    client = deploy(rc.pipeline(mint, held))
    key = new_key()
    counts: list[int] = []

    def read() -> None:
        if way == "handle":
            counts.extend(client.stream(key))
        else:
            assert client.url is not None
            with requests.post(client.url, json=key, stream=True, timeout=TIMEOUT_S) as response:
                counts.extend(int(line) for line in response.iter_lines())

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    hear(f"{key} all made")
    say(f"{key} go on")
    reading.join(TIMEOUT_S)
    assert len(counts) == MANY
    assert 1 <= max(counts) <= 2 * IN_FLIGHT
