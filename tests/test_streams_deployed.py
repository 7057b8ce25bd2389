"""Streams between replicas: first items at once, errors in their place, stopped in a second."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import gc
import itertools
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import ray
import requests
from conftest import Deploy
from ray import serve

import raycompose as rc
from raycompose.flow.streams import IN_FLIGHT
from raycompose.http import responses

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import this file

TIMEOUT_S = 30.0
"""How long anything may take before its test fails rather than hangs."""
FIRST_S = 10.0
"""How long the first item may take, where nothing else would end the wait for it."""
STOP_S = 5.0
"""How long after the consumer has left a producer may go on: a second, more on a busy machine."""

STOPPED = Path(tempfile.mkdtemp())
"""Where producers write down that they stopped: Ray may cancel what a cancelled task calls."""

HERE: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": 100}
_keys = itertools.count()

Ask = dict[str, Any]
SSE = {"Accept": "text/event-stream"}


# Producers and consumers, and an actor that carries word between them and the tests


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


@pytest.fixture(scope="module", autouse=True)
def _ledger(cluster: None) -> Iterator[None]:
    actor = ray.remote(Ledger).options(
        name="ledger", namespace="streams", num_cpus=0, max_concurrency=1000
    )
    kept = actor.remote()
    ray.get(kept.say.remote("ready"))
    yield
    ray.kill(kept)


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


def ask(*items: Any, **options: Any) -> Ask:
    """Return a request to the producer under a key of its own."""
    return {"key": f"key{next(_keys)}", "items": list(items), **options}


@pytest.fixture(scope="module", params=["distributed", "fused"])
def client(request: pytest.FixtureRequest, deploy: Deploy) -> rc.Client:
    """Producer, relay and check: in replicas of their own, or all in one."""
    producer, relay = Producer.bind(), Relay.bind()
    app = rc.pipeline(producer, relay, check)
    return deploy(app.fuse() if request.param == "fused" else app)


def post(client: rc.Client, asked: Ask, **headers: str) -> requests.Response:
    assert client.url is not None
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(client.url, json=asked, headers=named, stream=True, timeout=TIMEOUT_S)


def received(response: requests.Response, into: list[bytes]) -> None:
    """Append the pieces of a body one by one, so that those before an error are there."""
    for piece in response.iter_content(None):
        into.append(piece)  # see above


def drain(items: Iterator[Any], into: list[Any]) -> None:
    """Append items one by one, so that those before an error are there."""
    for item in items:
        into.append(item)  # see above


# The first item at once


@pytest.mark.parametrize(
    ("accept", "asked", "content_type", "first", "rest"),
    [
        ("text/event-stream", ask(1, 2), "text/event-stream", b"data: 1\n\n", b"data: 2\n\n"),
        ("*/*", ask({"a": 1}, 2), "application/x-ndjson", b'{"a":1}\n', b"2\n"),
        ("*/*", ask("one", "two"), "text/plain", b"one", b"two"),
        ("*/*", ask("1", "2", as_bytes=True), "application/octet-stream", b"1", b"2"),
    ],
    ids=["events", "lines", "text", "bytes"],
)
def test_the_first_item_is_sent_before_the_second_exists(
    client: rc.Client, accept: str, asked: Ask, content_type: str, first: bytes, rest: bytes
) -> None:
    """Over HTTP the first item arrives while the producer waits for word of its arrival."""
    asked = {**asked, "gated": True, "key": f"{asked['key']}-{client.handle.app_name}"}
    with post(client, asked, accept=accept) as response:
        pieces = response.iter_content(None)
        assert next(pieces) == first
        say(f"{asked['key']} first read")
        assert b"".join(pieces) == rest
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(content_type)


def test_an_items_lines_are_an_events_lines(client: rc.Client) -> None:
    """Text with line breaks is one server-sent event of several data lines."""
    with post(client, ask("a\nb", "c"), accept="text/event-stream") as response:
        assert response.text == "data: a\ndata: b\n\ndata: c\n\n"


def test_a_client_gets_the_first_item_before_the_second_exists(client: rc.Client) -> None:
    """``client.stream`` gives the first item while the producer waits for word of its arrival."""
    asked = ask(1, 2, 3, gated=True)
    items = client.stream(**asked)
    assert next(items) == 1
    say(f"{asked['key']} first read")
    assert list(items) == [2, 3]


def test_a_handle_gets_the_first_item_before_the_second_exists(client: rc.Client) -> None:
    """So does a plain ``DeploymentHandle`` with ``stream=True``."""
    asked = ask(1, 2, 3, gated=True)
    items = iter(client.handle.options(stream=True).remote(**asked))
    assert next(items) == 1
    say(f"{asked['key']} first read")
    assert list(items) == [2, 3]


def test_an_async_client_gets_the_first_item_before_the_second_exists(client: rc.Client) -> None:
    """So does ``client.astream``."""
    asked = ask(1, 2, 3, gated=True)

    async def run() -> list[int]:
        items = client.astream(**asked)
        first = await anext(items)
        await ledger().say.remote(f"{asked['key']} first read")
        return [first, *[item async for item in items]]

    assert asyncio.run(run()) == [1, 2, 3]


def test_a_stream_without_items_ends_well(client: rc.Client) -> None:
    """No items are an empty stream, by handle and over HTTP."""
    assert list(client.stream(**ask())) == []
    response = post(client, ask())
    assert (response.status_code, response.text) == (200, "")


def test_many_streams_at_once_do_not_mix(client: rc.Client) -> None:
    """Streams that run at the same time give each its own items."""

    async def one(n: int) -> list[Any]:
        return [item async for item in client.astream(**ask(*range(n, n + 5)))]

    async def run() -> list[list[Any]]:
        return await asyncio.gather(*(one(n) for n in range(8)))

    assert asyncio.run(run()) == [list(range(n, n + 5)) for n in range(8)]


# Failures amid the items

FAILURES = pytest.mark.parametrize(
    ("ending", "stage", "kind"),
    [
        ({"then": "fails"}, "Producer", KeyError),
        ({"bad": "relay fails"}, "Relay", ValueError),
        ({"bad": "check fails"}, "check", ValueError),
    ],
    ids=["producer", "relay", "check"],
)


def failing(ending: dict[str, str], *items: Any) -> Ask:
    """Ask for items and then a failure."""
    bad = [ending["bad"]] if "bad" in ending else []
    return ask(*items, *bad, then=ending.get("then", "on"))


@FAILURES
def test_a_client_gets_the_items_so_far_and_then_the_error(
    client: rc.Client, ending: dict[str, str], stage: str, kind: type[Exception]
) -> None:
    """The user's own exception is raised in its place, and names its stage."""
    got: list[Any] = []
    with pytest.raises(kind, match=r"as asked|secret") as caught:
        drain(client.stream(**failing(ending, 1, 2, 3)), got)
    assert got == [1, 2, 3]
    assert rc.failed_stage(caught.value) == stage


@FAILURES
def test_events_end_with_an_error_event(
    client: rc.Client, ending: dict[str, str], stage: str, kind: type[Exception]
) -> None:
    """A failing SSE stream ends with an ``error`` event: problem details without the message."""
    with post(client, failing(ending, 1, 2), accept="text/event-stream") as response:
        *sent, last = response.text.removesuffix("\n\n").split("\n\n")
    assert sent == ["data: 1", "data: 2"]
    event, data = last.split("\n")
    assert event == "event: error"
    problem = json.loads(data.removeprefix("data: "))
    assert (problem["status"], problem["stage"]) == (500, stage)
    assert "secret" not in response.text
    assert "as asked" not in response.text


@FAILURES
def test_lines_end_with_an_error_line(
    client: rc.Client, ending: dict[str, str], stage: str, kind: type[Exception]
) -> None:
    """A failing NDJSON stream ends with a line ``{"error": ...}``."""
    with post(client, failing(ending, 1, 2)) as response:
        *sent, last = map(json.loads, response.text.splitlines())
    assert sent == [1, 2]
    assert (last["error"]["status"], last["error"]["stage"]) == (500, stage)


@FAILURES
@pytest.mark.parametrize("as_bytes", [False, True], ids=["text", "bytes"])
def test_raw_text_is_aborted(
    client: rc.Client, ending: dict[str, str], stage: str, kind: type[Exception], as_bytes: bool
) -> None:
    """A failing stream of raw text or bytes never ends as if it were complete."""
    got: list[bytes] = []
    with post(client, {**failing(ending, "a", "b"), "as_bytes": as_bytes}) as response:
        assert response.status_code == 200
        broken = (requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)
        with pytest.raises(broken):
            received(response, got)
    assert b"".join(got) == b"ab"


# Stopping


def stopped(asked: Ask, since: float) -> None:
    """Assert that the producer stops within a second or so of ``since``."""
    file = STOPPED / asked["key"]
    while not file.exists():
        assert time.monotonic() - since < STOP_S
        time.sleep(0.01)


KINDS = pytest.mark.parametrize("then", ["on", "quiet"])


@KINDS
@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
def test_a_client_that_closes_its_socket_stops_the_producer(
    client: rc.Client, then: str, accept: str
) -> None:
    """An HTTP client that goes away stops the producer in a second, even a quiet one."""
    asked = ask(1, then=then)
    assert client.url is not None
    url = urlsplit(client.url)
    assert url.hostname is not None
    body = json.dumps(asked)
    with socket.create_connection((url.hostname, url.port or 80), TIMEOUT_S) as connection:
        connection.sendall(
            f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nAccept: {accept}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        answer = b""
        while b"1\n" not in answer.partition(b"\r\n\r\n")[2]:
            answer += connection.recv(4096)
    stopped(asked, time.monotonic())


@KINDS
def test_break_stops_the_producer(client: rc.Client, then: str) -> None:
    """``break`` out of ``client.stream`` stops the producer in a second."""
    asked = ask(1, then=then)
    for item in client.stream(**asked):
        assert item == 1
        break
    stopped(asked, time.monotonic())


@KINDS
def test_closing_an_async_stream_stops_the_producer(client: rc.Client, then: str) -> None:
    """``aclose()`` of ``client.astream`` stops the producer in a second."""
    asked = ask(1, then=then)

    async def run() -> None:
        items = client.astream(**asked)
        assert await anext(items) == 1
        await items.aclose()

    asyncio.run(run())
    stopped(asked, time.monotonic())


def test_cancelling_a_response_stops_the_producer(client: rc.Client) -> None:
    """``response.cancel()`` of a plain handle's response stops the producer in a second."""
    asked = ask(1, then="quiet")
    response = client.handle.options(stream=True).remote(**asked)
    assert next(iter(response)) == 1
    response.cancel()
    stopped(asked, time.monotonic())


@serve.deployment(**HERE)
class Keeper:
    """Takes the stream whole, fails, and keeps its error: with it, all that its frames hold."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    async def __call__(self, items: rc.Stream[Any]) -> Any:
        try:
            async for item in items:
                raise ValueError(item)
        except ValueError as error:
            self.errors.append(error)
            raise


def test_an_error_that_is_kept_does_not_keep_the_producer(deploy: Deploy) -> None:
    """A stage that keeps the error that it raises stops what feeds it, in a second, even so."""
    producer, keeper = Producer.bind(), Keeper.bind()
    client = deploy(rc.pipeline(producer, keeper))
    asked = ask("as asked", then="quiet")
    with pytest.raises(ValueError, match="as asked"):
        client.call(**asked, timeout_s=TIMEOUT_S)
    stopped(asked, time.monotonic())


@pytest.mark.parametrize("bad", ["relay fails", "check fails"])
def test_a_failure_downstream_stops_the_producer(client: rc.Client, bad: str) -> None:
    """A stage that fails stops what feeds it, in a second."""
    asked = ask(1, bad, then="quiet")
    with pytest.raises(ValueError, match="as asked"):
        list(client.stream(**asked))
    stopped(asked, time.monotonic())


def test_a_stage_that_leaves_stops_the_producer(client: rc.Client) -> None:
    """A stage that has seen enough ends the stream, and stops what feeds it, in a second."""
    asked = ask(1, 2, "relay leaves", then="quiet")
    assert list(client.stream(**asked)) == [1, 2]
    stopped(asked, time.monotonic())


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
    asked = {"branch": branch, "key": f"key{next(_keys)}", "gated": True}

    async def run() -> list[int]:
        items = branches.astream(asked)
        first = await asyncio.wait_for(anext(items), FIRST_S)
        await ledger().say.remote(f"{asked['key']} first read")
        return [first, *[item async for item in items]]

    assert asyncio.run(run()) == [1, 2]


@TAKEN
def test_leaving_a_branch_stops_its_producer(branches: rc.Client, branch: str) -> None:
    """Leaving a stream that came out of a branch stops the producer in a second."""
    asked = {"branch": branch, "key": f"key{next(_keys)}", "then": "quiet"}

    async def run() -> None:
        items = branches.astream(asked)
        assert await asyncio.wait_for(anext(items), FIRST_S) == 1
        await items.aclose()

    asyncio.run(run())
    stopped(asked, time.monotonic())


@TAKEN
def test_a_failure_in_a_branch_follows_the_items(branches: rc.Client, branch: str) -> None:
    """A fallback or a retry is for what comes before the first item; later errors are raised."""
    asked = {"branch": branch, "key": f"key{next(_keys)}", "then": "fails"}
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


def test_result_of_a_streaming_pipeline_says_what_to_do(client: rc.Client) -> None:
    """``.result()`` and ``client.call`` on what streams name ``stream=True``."""
    with pytest.raises(TypeError, match="stream=True"):
        client.handle.remote(**ask(1)).result(timeout_s=TIMEOUT_S)
    with pytest.raises(TypeError, match="stream"):
        client.call(**ask(1), timeout_s=TIMEOUT_S)


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
    monkeypatch.setattr(responses, "KEEP_ALIVE_S", 0.02)
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
    key = f"key{next(_keys)}"
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
