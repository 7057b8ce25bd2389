"""Results become HTTP responses."""

import copy
import functools
import re
from typing import Any

from ray.serve import Application
from starlette.responses import Response, StreamingResponse

from raycompose import _serve
from raycompose.errors import mark
from raycompose.graph.context import Context
from raycompose.http.encoding import NOT_UTF8, UnsendableError, json_text
from raycompose.http.problems import has_body, may_be_sent


def whole(result: Any) -> Response:
    """Return the response for a result that is no stream.

    Raises:
        UnsendableError: The result has no form in HTTP.
    """
    if isinstance(result, Response):
        return _own(result)
    if result is None or isinstance(result, str | bytes):
        try:
            body, content_type = _serve.encode_body(result)
        except UnicodeEncodeError as error:
            raise UnsendableError(NOT_UTF8) from error
        return Response(body, headers={"content-type": content_type})
    refuse_application(result)
    return Response(json_text(result), headers={"content-type": "application/json"})


def refuse_application(result: Any, giver: str | None = None) -> None:
    """Refuse a pipeline as a result: it is a description, which nobody has run.

    Args:
        result: What a graph gave.
        giver: The stage that gave it.

    Raises:
        UnsendableError: It is a pipeline, or another application.
    """
    if isinstance(result, Application):
        error = UnsendableError(
            f"returned {result!r}, a description of what could run, which is not run for being "
            "returned: choose between stages with rc.when or rc.switch, or call a pipeline that "
            "was bound with .embed()"
        )
        raise error if giver is None else mark(error, giver)


def _own(response: Response) -> Response:
    """The user's response, which may be sent again, without what would break the connection."""
    own = copy.copy(response)
    own.__dict__.pop("_headers", None)
    own.raw_headers = [(n, v) for n, v in response.raw_headers if may_be_sent(n.decode("latin-1"))]
    if not has_body(own.status_code) and not isinstance(own, StreamingResponse):
        own.body = b""
        del own.headers["content-length"]
    return own


def add_timing(response: Response, ctx: Context) -> Response:
    """Return the response with each stage's time as its ``Server-Timing``."""
    if ctx.timings_s:
        response.raw_headers.append((b"server-timing", server_timing(ctx).encode()))
    return response


def server_timing(ctx: Context) -> str:
    """Return each stage's time as a ``Server-Timing`` header's value."""
    return ", ".join(
        [f"{_token(name)};dur={seconds * 1000:.1f}" for name, seconds in ctx.timings_s.items()]
    )


@functools.cache
def _token(name: str) -> str:
    """A stage's name, of which a header can hold every character."""
    return re.sub(r"[^!#$%&*+.^_`|~0-9A-Za-z-]", "_", name)
