"""Results and errors become HTTP responses."""

import asyncio
import json
import logging
import math
import re
import traceback
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from raycompose import _serve
from raycompose.errors import UNAVAILABLE, NoMatchError, StageTimeoutError, failed_stage
from raycompose.flow.concurrency import cancel, next_of
from raycompose.flow.json import parse_json
from raycompose.flow.streams import Stream
from raycompose.graph.context import Context

logger = logging.getLogger("ray.serve")


async def respond(result: Any, request: Request, ctx: Context, *, debug: bool = False) -> Response:
    """Return the response for a pipeline's result: streams as they come, the rest at once."""
    if isinstance(result, Stream):
        return await _streamed(result, request, ctx, debug)
    response = result if isinstance(result, Response) else _whole(result)
    response.headers.append("server-timing", server_timing(ctx))
    return response


def _whole(result: Any) -> Response:
    body, content_type = _serve.encode_body(result)
    return Response(body, headers={"content-type": content_type})


async def _streamed(stream: Stream[Any], request: Request, ctx: Context, debug: bool) -> Response:
    items = await stream.peek()  # an error before the first item still has a status
    first = items.peeked
    sse = "text/event-stream" in request.headers.get("accept", "").lower()
    if sse:
        return StreamingResponse(_events(items, ctx, debug), media_type="text/event-stream",
                                 headers={"cache-control": "no-cache"})  # fmt: skip
    if isinstance(first, str):
        return StreamingResponse(_raw(items, ctx), media_type="text/plain")
    if isinstance(first, bytes):
        return StreamingResponse(_raw(items, ctx), media_type="application/octet-stream")
    return StreamingResponse(_lines(items, ctx, debug), media_type="application/x-ndjson")


async def _raw(items: Stream[Any], ctx: Context) -> AsyncIterator[bytes]:
    try:
        async for item in items:
            yield item if isinstance(item, bytes) else str(item).encode()
    except Exception as error:
        ctx.count_failure(error)
        _log(error, ctx)
        raise  # aborts the transfer: a clean end would look complete


async def _lines(items: Stream[Any], ctx: Context, debug: bool) -> AsyncIterator[bytes]:
    try:
        async for item in items:
            yield _json_text(item) + b"\n"
    except Exception as error:
        ctx.count_failure(error)
        yield _json_text({"error": problem(error, ctx, debug=debug)}) + b"\n"


async def _events(items: Stream[Any], ctx: Context, debug: bool) -> AsyncIterator[bytes]:
    try:
        async for item in _or_quiet(items):
            if item is _QUIET:
                yield b": keep-alive\n\n"
                continue
            text = item if isinstance(item, str) else _json_text(item).decode()
            lines = re.split("\r\n|\r|\n", text)  # what ends a line in server-sent events
            yield "".join(f"data: {line}\n" for line in lines).encode() + b"\n"
    except Exception as error:
        ctx.count_failure(error)
        yield b"event: error\ndata: " + _json_text(problem(error, ctx, debug=debug)) + b"\n\n"


async def _or_quiet(items: Stream[Any]) -> AsyncIterator[Any]:
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


_QUIET = object()
KEEP_ALIVE_S = 15.0
"""Seconds of silence after which a server-sent events stream gets a comment."""


def _json_text(item: Any) -> bytes:
    if isinstance(item, str):
        return JSONResponse(item).body  # type: ignore[return-value]  # bytes, not a memoryview
    if isinstance(item, bytes):
        item = item.decode(errors="replace")
    return b"null" if item is None else _serve.encode_body(item)[0]


def server_timing(ctx: Context) -> str:
    """Return each stage's time as a ``Server-Timing`` header's value."""
    return ", ".join(
        f"{re.sub(r'[^!#$%&*+.^_`|~0-9A-Za-z-]', '_', name)};dur={seconds * 1000:.1f}"
        for name, seconds in ctx.timings_s.items()
    )


def error_response(error: Exception, ctx: Context, *, debug: bool = False) -> Response:
    """Return an error as problem details (RFC 9457)."""
    details = problem(error, ctx, debug=debug)
    try:
        body, _ = _serve.encode_body(details)
        parse_json(body)  # NaN is not JSON, whatever Python says
    except (TypeError, ValueError, RecursionError):  # a detail that JSON cannot hold
        body = json.dumps({**details, "detail": str(details["detail"])}).encode()
    headers = _headers(error)
    if ctx.timings_s:
        headers["server-timing"] = server_timing(ctx)
    return Response(body, details["status"], headers, media_type="application/problem+json")


def problem(error: Exception, ctx: Context, *, debug: bool = False) -> dict[str, Any]:
    """Return an error's problem details; an internal error's message only goes to the log."""
    status, detail = _status(error)
    if status >= 500:
        _log(error, ctx)
    details: dict[str, Any] = {"status": status, "title": _title(status)}
    if detail is None and debug:
        detail = "".join(traceback.format_exception(error))
    if detail is not None:
        details["detail"] = detail
    if stage := failed_stage(error):
        details["stage"] = stage
    if ctx.request_id:
        details["request_id"] = ctx.request_id
    return details


def _log(error: Exception, ctx: Context) -> None:
    where = failed_stage(error) or ctx.pipeline
    logger.error("request %s failed in stage %r", ctx.request_id, where, exc_info=error)


def _status(error: Exception) -> tuple[int, Any]:
    """The HTTP status of an error, and what the client may know of it."""
    match error:
        case HTTPException():
            return error.status_code, error.detail
        case NoMatchError():
            return 422, str(error)
        case ClientDisconnect():  # for nobody to read, and no fault of ours for the log
            return 499, None
        case StageTimeoutError():
            return 504, str(error)
        case BackPressureError():
            return error.status_code, "too many requests are waiting; try again later"
        case _ if isinstance(error, UNAVAILABLE):
            return 503, "a stage is unavailable; try again later"
        case _:
            return 500, None


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, BackPressureError):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s or 1)))}
    headers = (error.headers if isinstance(error, HTTPException) else None) or {}
    return {
        name: re.sub(r"[^\t\x20-\x7e\x80-\xff]", "?", str(value))
        for name, value in headers.items()
        # The body is ours, so what describes it is, too.
        if _TOKEN.fullmatch(str(name)) and not str(name).lower().startswith("content-")
    }


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
