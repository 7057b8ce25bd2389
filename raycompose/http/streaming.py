"""Streams become server-sent events, lines of JSON, or raw text and bytes."""

import asyncio
import codecs
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from anyio import CancelScope
from starlette.responses import StreamingResponse
from starlette.types import Send

from raycompose.flow.concurrency import cancel, next_of
from raycompose.flow.events import Event
from raycompose.flow.streams import Stream
from raycompose.http.encoding import UnsendableError, json_text, utf8
from raycompose.http.problems import Report
from raycompose.http.settings import Form


async def streamed(
    stream: Stream[Any], accept: str, form: Form | None, report: Report
) -> StreamingResponse:
    """Return the response that sends a stream's items as they come.

    Args:
        stream: What to send. What it raises before its first item is raised here.
        accept: The request's ``Accept``.
        form: The form to send it in, whatever the client accepts; ``None``: what it prefers.
        report: Gives the problem details of an error.
    """
    items = await stream.peek()  # an error before the first item still has a status
    first = items.peeked.data if isinstance(items.peeked, Event) else items.peeked
    natural: Form = "raw" if isinstance(first, str | bytes) else "ndjson"
    kind = "application/octet-stream" if isinstance(first, bytes) else "text/plain"
    media = kind if natural == "raw" else "application/x-ndjson"
    match form or _preferred(accept, natural, media):
        case "sse":
            return _Response(_events(items, report), media_type="text/event-stream",
                                     headers={"cache-control": "no-cache"})  # fmt: skip
        case "ndjson":
            return _Response(_lines(items, report), media_type="application/x-ndjson")
        case _:
            return _Response(_raw(items, report), media_type=kind)


class _Response(StreamingResponse):
    """Cancels what it sends once when the client leaves; Starlette, at each further await."""

    body_iterator: AsyncGenerator[bytes, None]

    async def stream_response(self, send: Send) -> None:
        """Send the items, in a task of their own."""
        sending = asyncio.ensure_future(self._send_all(send))
        try:
            await asyncio.wait({sending})
            sending.result()
        finally:
            with CancelScope(shield=True):
                await cancel(sending)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self.body_iterator):
            await super().stream_response(send)


_ASKED: tuple[tuple[str, Form], ...] = (
    ("text/event-stream", "sse"),
    ("application/x-ndjson", "ndjson"),
    ("application/ndjson", "ndjson"),
    ("application/jsonl", "ndjson"),
)


def _preferred(accept: str, natural: Form, media: str) -> Form:
    """The form that a client asks for by its name, unless it likes the natural one better."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = (p.strip() for p in part.split(";"))
        weights[name] = next((_weight(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
    any_of = weights.get(f"{media.split('/')[0]}/*", weights.get("*/*", 0.0))
    weight, form = max(
        ((weights.get(name, 0.0), form) for name, form in _ASKED), key=lambda asked: asked[0]
    )
    return form if weight > 0 and weight >= weights.get(media, any_of) else natural


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


async def _raw(items: Stream[Any], report: Report) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(items):
            async for item in items:
                data = item.data if isinstance(item, Event) else item
                if isinstance(data, bytes):
                    yield data
                else:
                    yield utf8(data) if isinstance(data, str) else json_text(data)
    except Exception as error:
        report(error)
        raise  # aborts the transfer: a clean end would look complete


async def _lines(items: Stream[Any], report: Report) -> AsyncGenerator[bytes, None]:
    text = _Text()
    try:
        async with aclosing(items):
            async for item in items:
                data = text.of(item.data if isinstance(item, Event) else item)
                if data is not _PART:
                    yield json_text(data) + b"\n"
        text.end()
    except Exception as error:
        yield json_text({"error": report(error)}) + b"\n"


async def _events(items: Stream[Any], report: Report) -> AsyncGenerator[bytes, None]:
    text = _Text()
    try:
        async with aclosing(items), aclosing(_or_quiet(items)) as pulled:
            async for item in pulled:
                if item is _QUIET:
                    yield b": keep-alive\n\n"
                    continue
                event = item if isinstance(item, Event) else Event(item)
                data = text.of(event.data)
                if data is not _PART:
                    data = data if isinstance(data, str) else json_text(data).decode()
                    yield _event(data, event.event, event.id)
        text.end()
    except Exception as error:
        yield _event(json_text(report(error)).decode(), "error", None)


def _event(data: str, event: str | None, id_: str | None) -> bytes:
    lines = [f"data: {line}" for line in _LINE_END.split(data)]
    if id_ is not None:
        lines.insert(0, f"id: {id_}")
    if event is not None:
        lines.insert(0, f"event: {event}")
    return utf8("\n".join([*lines, "", ""]))


_LINE_END = re.compile("\r\n|\r|\n")  # what ends a line in server-sent events


class _Text:
    """Items with text in the place of bytes: a character may be in two of them."""

    def __init__(self) -> None:
        self._decode: Callable[..., str] = codecs.getincrementaldecoder("utf-8")().decode

    def of(self, data: Any) -> Any:
        """Return the item's data; ``_PART`` for bytes that are not a character yet."""
        if not isinstance(data, bytes):
            self.end()
            return data
        return self._decoded(data) or (_PART if data else "")

    def end(self) -> None:
        """Refuse to end amid a character."""
        self._decoded(b"", final=True)

    def _decoded(self, data: bytes, *, final: bool = False) -> str:
        try:
            return self._decode(data, final)
        except UnicodeDecodeError as error:
            raise UnsendableError(
                "gave bytes that are not UTF-8, which JSON and server-sent events cannot hold: "
                'give text, for example base64, or send them raw, .options(stream="raw")'
            ) from error


async def _or_quiet(items: Stream[Any]) -> AsyncGenerator[Any, None]:
    """The items, and ``_QUIET`` whenever there was none for a while: proxies cut silent streams."""
    upcoming: asyncio.Task[Any] | None = None
    iterator = aiter(items)
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(next_of(iterator))
            await asyncio.wait({upcoming}, timeout=KEEP_ALIVE_S)
            if not upcoming.done():
                yield _QUIET
                continue
            try:
                item, upcoming = upcoming.result(), None
            except StopAsyncIteration:
                return
            yield item
    finally:
        await cancel(upcoming)


_PART = object()
_QUIET = object()
KEEP_ALIVE_S = 15.0
"""Seconds of silence after which a server-sent events stream gets a comment."""
