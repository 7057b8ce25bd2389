"""Results and errors become HTTP responses."""

import logging
import re
import traceback
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from raycompose import _serve
from raycompose.errors import HTTPError, NoMatchError, StageTimeoutError, failed_stage
from raycompose.runner import Context
from raycompose.streams import Stream

logger = logging.getLogger("ray.serve")


async def respond(result: Any, request: Request, ctx: Context) -> Response:
    """Return the response for a pipeline's result: streams as they come, the rest at once."""
    if isinstance(result, Stream):
        return await _streamed(result, request, ctx)
    response = result if isinstance(result, Response) else _whole(result)
    response.headers["server-timing"] = server_timing(ctx)
    return response


def _whole(result: Any) -> Response:
    body, content_type = _serve.encode_body(result)
    return Response(body, headers={"content-type": content_type})


async def _streamed(stream: Stream[Any], request: Request, ctx: Context) -> Response:
    items = await stream.begun()  # an error before the first item still has a status
    first = items.peeked
    sse = "text/event-stream" in request.headers.get("accept", "")
    if sse:
        return StreamingResponse(_events(items, ctx), media_type="text/event-stream",
                                 headers={"cache-control": "no-cache"})  # fmt: skip
    if isinstance(first, str):
        return StreamingResponse(_raw(items, ctx), media_type="text/plain")
    if isinstance(first, bytes):
        return StreamingResponse(_raw(items, ctx), media_type="application/octet-stream")
    return StreamingResponse(_lines(items, ctx), media_type="application/x-ndjson")


async def _raw(items: Stream[Any], ctx: Context) -> AsyncIterator[bytes]:
    try:
        async for item in items:
            yield item if isinstance(item, bytes) else str(item).encode()
    except Exception as error:
        _log(error, ctx)
        raise  # aborts the transfer: a clean end would look complete


async def _lines(items: Stream[Any], ctx: Context) -> AsyncIterator[bytes]:
    try:
        async for item in items:
            yield _json_text(item) + b"\n"
    except Exception as error:
        yield _json_text({"error": problem(error, ctx)}) + b"\n"


async def _events(items: Stream[Any], ctx: Context) -> AsyncIterator[bytes]:
    try:
        async for item in items:
            text = item if isinstance(item, str) else _json_text(item).decode()
            yield "".join(f"data: {line}\n" for line in text.split("\n")).encode() + b"\n"
    except Exception as error:
        yield b"event: error\ndata: " + _json_text(problem(error, ctx)) + b"\n\n"


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
    return JSONResponse(
        details,
        status_code=details["status"],
        headers=_headers(error),
        media_type="application/problem+json",
    )


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
        case HTTPError():
            return error.status, error.detail
        case HTTPException():
            return error.status_code, error.detail
        case NoMatchError():
            return 422, str(error)
        case StageTimeoutError():
            return 504, str(error)
        case BackPressureError():
            return error.status_code, "too many requests are waiting; try again later"
        case DeploymentUnavailableError() | ReplicaUnavailableError():
            return 503, "a stage is unavailable; try again later"
        case _:
            return 500, None


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, BackPressureError):
        return {"retry-after": str(max(1, round(error.retry_after_s or 1)))}
    headers = (
        getattr(error, "headers", None) if isinstance(error, HTTPError | HTTPException) else {}
    )
    return {k: re.sub(r"[\r\n\0]", " ", str(v)) for k, v in (headers or {}).items()}


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
