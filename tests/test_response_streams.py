"""What a stream becomes over HTTP: lines, text, events."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from support.local_http import http
from support.results import SECRET, Item, Point

import raycompose as rc

# Streams


def numbers() -> Iterator[Any]:
    yield from (1, {"a": 2}, None, "three")


async def words() -> AsyncIterator[str]:
    for word in ("naïve", "two\nlines", ""):
        yield word


def blobs() -> Iterator[bytes]:
    yield from (b"\x00", b"\xff")


def empty() -> Iterator[int]:
    yield from ()


def breaks() -> Iterator[Any]:
    yield {"n": 1}
    yield {"n": 2}
    raise ValueError(SECRET)


def breaks_at_once() -> Iterator[int]:
    if SECRET:
        raise rc.HTTPError(409, "busy")
    yield 1


def test_items_are_sent_as_ndjson() -> None:
    """Items that are neither text nor bytes are sent as one JSON value per line."""
    response = http(numbers).get("/")
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line) for line in response.text.splitlines()] == [1, {"a": 2}, None, "three"]


def test_text_items_are_sent_raw() -> None:
    """A stream of str is sent as plain text, nothing between the items."""
    response = http(words).get("/")
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text == "naïvetwo\nlines"


def test_bytes_items_are_sent_raw() -> None:
    """A stream of bytes is sent as it is."""
    response = http(blobs).get("/")
    assert response.headers["content-type"].startswith("application/octet-stream")
    assert response.content == b"\x00\xff"


@pytest.mark.parametrize(
    "accept",
    ["text/event-stream", "application/json, text/event-stream;q=0.5", "TEXT/EVENT-STREAM"],
)
def test_events_are_sent_to_those_who_accept_them(accept: str) -> None:
    """A client that accepts text/event-stream gets server-sent events."""
    response = http(words).get("/", headers={"accept": accept})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.text == "data: naïve\n\ndata: two\ndata: lines\n\ndata: \n\n"


def test_events_hold_json_for_what_is_no_text() -> None:
    """Items that are not str are JSON in an event's data."""
    response = http(numbers).get("/", headers={"accept": "text/event-stream"})
    events = [part.removeprefix("data: ") for part in response.text.split("\n\n")[:-1]]
    assert events == ["1", '{"a":2}', "null", "three"]


@pytest.mark.parametrize("separator", ["\r\n", "\r", "\n"])
def test_an_item_cannot_forge_an_event(separator: str) -> None:
    """Line ends of every kind in an item stay inside its event, so text cannot forge one."""

    def stage() -> Iterator[str]:
        yield f"a{separator}event: error{separator}data: forged"

    text = http(stage).get("/", headers={"accept": "text/event-stream"}).text
    lines = re.split("\r\n|\r|\n", text)
    assert [line for line in lines if line and not line.startswith("data:")] == []


def test_an_empty_stream_is_an_empty_body() -> None:
    """A stream with no items answers 200 with nothing in it."""
    response = http(empty).get("/")
    assert (response.status_code, response.content) == (200, b"")


def test_rich_items_are_json() -> None:
    """Models, dataclasses and NumPy are JSON as items too."""

    def stage() -> Iterator[Any]:
        yield Item(name="a")
        yield Point(1)
        yield np.array([1, 2])
        yield np.float32(0.5)

    lines = [json.loads(line) for line in http(stage).get("/").text.splitlines()]
    assert lines == [{"name": "a", "when": "2020-01-02"}, {"x": 1, "at": None}, [1, 2], 0.5]


def test_an_error_before_the_first_item_has_its_status() -> None:
    """A stream that fails before it began answers with the error's status."""
    for accept in ("*/*", "text/event-stream"):
        response = http(breaks_at_once).get("/", headers={"accept": accept})
        assert response.status_code == 409
        assert response.json()["detail"] == "busy"
        assert response.json()["stage"] == "breaks_at_once"


def test_an_error_amid_lines_is_a_last_line() -> None:
    """An error after some items is a last NDJSON line with its problem details."""
    *items, last = map(json.loads, http(breaks).get("/").text.splitlines())
    assert items == [{"n": 1}, {"n": 2}]
    assert last["error"]["status"] == 500
    assert last["error"]["stage"] == "breaks"
    assert SECRET not in json.dumps(last)


def test_an_error_amid_events_is_an_event_of_its_own() -> None:
    """An error after some items is an event named error."""
    text = http(breaks).get("/", headers={"accept": "text/event-stream"}).text
    *_, last = text.removesuffix("\n\n").split("\n\n")
    kind, data = last.split("\n")
    assert kind == "event: error"
    assert json.loads(data.removeprefix("data: "))["stage"] == "breaks"
    assert SECRET not in text


def test_an_error_amid_lines_shows_its_message_in_debug() -> None:
    """With ``debug=True`` the last line of a stream that broke says why."""
    assert SECRET in http(breaks, debug=True).get("/").text


def test_an_error_amid_raw_text_ends_the_transfer_badly() -> None:
    """Raw text has no room for an error, so the transfer is broken off."""

    def stage() -> Iterator[str]:
        yield "some"
        raise ValueError("broken")

    with pytest.raises(Exception, match="broken"):
        http(stage).get("/")


# The form of a stream


def form(response: Any) -> str:
    kind: str = response.headers["content-type"].split(";")[0]
    return {"text/event-stream": "sse", "application/x-ndjson": "ndjson"}.get(kind, "raw")


@pytest.mark.parametrize(
    ("accept", "of_text", "of_objects"),
    [
        ("", "raw", "ndjson"),
        ("*/*", "raw", "ndjson"),
        ("application/json", "raw", "ndjson"),
        ("text/event-stream", "sse", "sse"),
        ("text/event-stream, */*;q=0.1", "sse", "sse"),
        ("text/event-stream;q=0", "raw", "ndjson"),
        ("text/event-stream;q=0, */*", "raw", "ndjson"),
        ("text/event-stream;q=0.5, application/x-ndjson", "ndjson", "ndjson"),
        ("application/x-ndjson;q=0.5, text/event-stream", "sse", "sse"),
        ("text/plain, text/event-stream;q=0.9", "raw", "sse"),
        ("text/*, text/event-stream;q=0.2", "raw", "sse"),
        ("text/event-stream;q=nonsense", "raw", "ndjson"),
    ],
)
def test_accept_is_honoured_with_its_weights(accept: str, of_text: str, of_objects: str) -> None:
    """A client gets the form that it asks for by name, unless it likes the natural one better."""
    assert form(http(words).get("/", headers={"accept": accept})) == of_text
    assert form(http(numbers).get("/", headers={"accept": accept})) == of_objects


@pytest.mark.parametrize("stream", ["sse", "ndjson", "raw"])
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "text/plain"])
@pytest.mark.parametrize("stage", [words, numbers])
def test_options_fix_the_form(stage: Any, accept: str, stream: str) -> None:
    """``options(stream=...)`` decides, whatever the client accepts and the items are."""
    assert form(http(stage, stream=stream).get("/", headers={"accept": accept})) == stream


def test_a_form_that_there_is_not_is_refused() -> None:
    """``options(stream=...)`` takes one of three."""
    with pytest.raises(rc.CompositionError, match="'sse', 'ndjson', 'raw'"):
        rc.pipeline(words).options(stream="xml")


def events() -> Iterator[Any]:
    yield rc.Event({"n": 1}, event="delta", id="1")
    yield rc.Event("two\nlines", id="2")
    yield "[DONE]"


def test_items_may_name_and_number_their_events() -> None:
    """``rc.Event`` sets SSE's fields; in the other forms its data is the item."""
    assert http(events, stream="sse").get("/").text == (
        'event: delta\nid: 1\ndata: {"n":1}\n\nid: 2\ndata: two\ndata: lines\n\ndata: [DONE]\n\n'
    )
    lines = http(events, stream="ndjson").get("/").text.splitlines()
    assert [json.loads(line) for line in lines] == [{"n": 1}, "two\nlines", "[DONE]"]
    assert http(events, stream="raw").get("/").text == '{"n":1}two\nlines[DONE]'
    assert list(rc.local(rc.pipeline(events)).stream())[1] == rc.Event("two\nlines", id="2")


@pytest.mark.parametrize("text", ["two\nlines", "\r", "\0", 5])
@pytest.mark.parametrize("field", ["event", "id"])
def test_an_events_fields_are_of_one_line(field: str, text: Any) -> None:
    """What would forge another field is refused where the event is made."""
    with pytest.raises(ValueError, match=field):
        rc.Event("data", **{field: text})


def split_character() -> Iterator[bytes]:
    for byte in "aé€".encode():
        yield bytes([byte])


def not_text() -> Iterator[bytes]:
    yield b"text"
    yield b"\xff"
    yield b"more"


def test_bytes_are_text_where_the_form_is_text() -> None:
    """Bytes are decoded across items, so that no character breaks; what is no text is an error."""
    lines = http(split_character, stream="ndjson").get("/").text.splitlines()
    assert "".join(map(json.loads, lines)) == "aé€"
    text = http(split_character, stream="sse").get("/").text
    assert "".join(re.findall("data: (.*)", text)) == "aé€"
    first, error = map(json.loads, http(not_text, stream="ndjson").get("/").text.splitlines())
    assert first == "text"
    assert error["error"]["stage"] == "not_text"
    *_, last = http(not_text, stream="sse").get("/").text.removesuffix("\n\n").split("\n\n")
    assert last.startswith("event: error\n")
    assert http(not_text).get("/").content == b"text\xffmore"


def test_what_is_no_text_is_json_amid_raw_text() -> None:
    """An object after a str in raw text is JSON, not Python's way to write it."""

    def stage() -> Iterator[Any]:
        yield "text "
        yield {"a": None}

    assert http(stage).get("/").text == 'text {"a":null}'


def test_one_result_is_one_item() -> None:
    """Where one branch streams and another gives one value, ``stream()`` gives that one."""
    app = rc.switch("at", {"many": lambda x: x["n"], "one": lambda x: x["n"]})
    mixed = rc.switch("at", {"many": rc.pipeline(lambda x: x["n"], count), "one": lambda x: "one"})
    client = rc.local(mixed)
    assert list(client.stream({"at": "many", "n": 2})) == [0, 1]
    assert list(client.stream({"at": "one"})) == ["one"]
    with pytest.raises(TypeError, match="does not stream"):
        list(rc.local(app).stream({"at": "one", "n": 1}))


def count(n: int) -> Iterator[int]:
    yield from range(n)
