"""Streams between replicas: first items at once, errors in their place, stopped in a second."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import json
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from ray import serve
from support import pickle_by_value
from support.cluster import Deploy
from support.producers import (
    HERE,
    TIMEOUT_S,
    Ask,
    Producer,
    Relay,
    ask,
    check,
    drain,
    ledger,
    say,
    stopped,
)
from support.waiting import until

import raycompose as rc

pickle_by_value(__name__)
SSE = {"Accept": "text/event-stream"}
pytestmark = pytest.mark.usefixtures("word")


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


def test_result_of_a_streaming_pipeline_says_what_to_do(client: rc.Client) -> None:
    """``.result()`` and ``client.call`` on what streams name ``stream=True``."""
    with pytest.raises(TypeError, match="stream=True"):
        client.handle.remote(**ask(1)).result(timeout_s=TIMEOUT_S)
    with pytest.raises(TypeError, match="stream"):
        client.call(**ask(1), timeout_s=TIMEOUT_S)


# Consumers in threads


@serve.deployment(**HERE)
class Endless:
    def __init__(self, notes: str) -> None:
        self._notes = Path(notes)

    async def __call__(self, n: int) -> Any:
        note = self._notes / f"producer-{uuid.uuid4().hex}"
        note.touch()
        try:
            while True:
                yield n
                await asyncio.sleep(0.01)
        finally:
            note.unlink()


@serve.deployment(**HERE)
class Blocking:
    def __init__(self, notes: str) -> None:
        self._notes = Path(notes)

    def __call__(self, items: rc.Stream[int]) -> int:
        note = self._notes / f"consumer-{uuid.uuid4().hex}"
        note.touch()
        try:
            time.sleep(0.02)  # works first, so that many are cancelled before they ask
            return sum(items)
        finally:
            note.unlink()


def test_a_consumer_in_a_thread_ends_with_its_deadline(deploy: Deploy, tmp_path: Path) -> None:
    """Nothing tells the thread that its request is over; it asks for no item after the deadline."""
    producer, consumer = Endless.bind(str(tmp_path)), Blocking.bind(str(tmp_path))
    client = deploy(rc.pipeline(producer, rc.stage(consumer, timeout_s=0.3)))

    def late(number: int) -> None:
        with pytest.raises(TimeoutError):
            client.call(1, timeout_s=0.02 + 0.01 * (number % 20))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(late, range(40)))
    until(lambda: not list(tmp_path.iterdir()))
