"""Errors become problem details (RFC 9457)."""

import logging
import math
import re
import traceback
from collections.abc import Callable
from typing import Any

from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from raycompose.errors import failed_item, failed_stage, mark
from raycompose.graph.context import Context
from raycompose.http.encoding import UnsendableError, json_text
from raycompose.http.statuses import status_of, title_of

logger = logging.getLogger("ray.serve")

Report = Callable[[Exception], dict[str, Any]]


def error_response(error: Exception, report: Report) -> Response:
    """Return an error as problem details, without a body where the status allows none."""
    details = report(error)
    if not has_body(details["status"]):
        return Response(None, details["status"], _headers(error))
    try:
        body = json_text(details)
    except UnsendableError:  # a detail that JSON cannot hold
        body = json_text({**details, "data": str(details["data"])})
    return Response(body, details["status"], _headers(error), media_type="application/problem+json")


def problem(error: Exception, ctx: Context, giver: str | None, *, debug: bool) -> dict[str, Any]:
    """Return an error's problem details; an internal error's message only goes to the log.

    Args:
        error: What went wrong.
        ctx: The request's.
        giver: The stage that gave the result, whose fault it is when that cannot be sent.
        debug: Show an internal error's message and traceback.
    """
    if isinstance(error, UnsendableError) and giver is not None:
        mark(error, giver, ctx.request_id)
    status, detail = status_of(error)
    if status >= 500:
        log(error, ctx)
    details: dict[str, Any] = {"status": status, "title": title_of(status)}
    if detail is None and debug:
        detail = "".join(traceback.format_exception(error))
    if isinstance(detail, str):
        details["detail"] = detail
    elif detail is not None:  # RFC 9457 has text alone there, and members of one's own
        details["detail"], details["data"] = _text(detail), detail
    if stage := failed_stage(error):
        details["stage"] = stage
    if (index := failed_item(error)) is not None:
        details["index"] = index
    if ctx.request_id:
        details["request_id"] = ctx.request_id
    return details


def log(error: Exception, ctx: Context) -> None:
    """Write an error's traceback to the replica's log; a line where a place was full."""
    stage = failed_stage(error)
    where = f"in {ctx.pipeline!r}" if stage is None else f"in stage {stage!r}"
    if isinstance(error, BackPressureError):  # of which there are many at once
        logger.warning("request %s was refused %s: %s", ctx.request_id, where, error)
        return
    logger.error("request %s failed %s", ctx.request_id, where, exc_info=error)


def has_body(status: int) -> bool:
    """Tell whether an answer of this status may have a body; another would break the connection."""
    return status >= 200 and status not in (204, 304)


def may_be_sent(name: str) -> bool:
    """Tell whether a header is the answer's own rather than the connection's or its framing."""
    return name.lower() not in _OF_THE_CONNECTION


_OF_THE_CONNECTION = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def _text(detail: Any) -> str:
    try:
        return json_text(detail).decode()
    except UnsendableError:
        return str(detail)


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, BackPressureError):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s or 1)))}
    headers = (error.headers if isinstance(error, HTTPException) else None) or {}
    return {
        name: re.sub(r"[^\t\x20-\x7e\x80-\xff]", "?", str(value))
        for name, value in headers.items()
        # The body is ours, so what describes it is, too.
        if _TOKEN.fullmatch(str(name))
        and may_be_sent(str(name))
        and not str(name).lower().startswith("content-")
    }


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
