"""Values become JSON."""

import json
import logging
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from raycompose import _serve
from raycompose.errors import RayComposeError, failed_stage
from raycompose.flow import request
from raycompose.http.statuses import status_of, title_of

logger = logging.getLogger("ray.serve")

_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_FAILURES = (AttributeError, RecursionError, TypeError, ValueError)


NOT_UTF8 = (
    "gave text with half of a surrogate pair, which UTF-8 cannot hold: leave it out with "
    'text.encode(errors="replace").decode(), say'
)


class UnsendableError(RayComposeError):
    """What a stage gave has no form in HTTP."""


def json_text(value: Any) -> bytes:
    """Return a value as Ray Serve sends it, with ``null`` for the floats that JSON does not have.

    Raises:
        UnsendableError: JSON cannot hold it.
    """
    try:
        return _ENCODER.encode(value).encode()
    except _FAILURES:  # not plain, or not finite
        pass
    try:
        return _ENCODER.encode(_finite(_serve.jsonable(value, ENCODERS))).encode()
    except _FAILURES as error:
        raise UnsendableError(
            f"gave {_culprit(value)}, which JSON cannot hold: return a dict, a list, text, a "
            "number, a pydantic model, a dataclass, a NumPy array, bytes or a starlette Response"
        ) from error


def _failure(error: Exception) -> dict[str, Any]:
    """An error among values: what a client may know of it, as where it is the whole answer."""
    status, detail = status_of(error)
    stage = failed_stage(error)
    if status >= 500:
        logger.error("a value in an answer is an error of stage %r", stage, exc_info=error)
    try:
        detail = _serve.jsonable(detail, ENCODERS)
    except _FAILURES:
        detail = str(detail)
    known = {"status": status, "title": title_of(status), "detail": detail, "stage": stage}
    return {name: what for name, what in known.items() if what is not None}


ENCODERS: dict[Any, Callable[[Any], Any]] = {**request.ENCODERS, Exception: _failure}


def utf8(text: str) -> bytes:
    """Return a text as it is sent.

    Raises:
        UnsendableError: It holds half of a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UnsendableError(NOT_UTF8) from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def _culprit(value: Any, depth: int = 0) -> str:
    """The type of what is inside a value that cannot be encoded, and where it is."""
    keys, parts = (value, value.values()) if isinstance(value, Mapping) else ((), value)
    for key in keys:
        if not isinstance(key, str | int | float | bool | None):
            return f"a {type(value).__name__} with a {type(key).__name__} for a key"
    for part in parts if isinstance(parts, Collection) and depth < 50 else ():
        try:
            _serve.jsonable(part, ENCODERS)
        except _FAILURES:
            return f"{_culprit(part, depth + 1)} in a {type(value).__name__}"
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
