"""JSON as RFC 8259 has it: what Python's own parser lets pass is refused."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from pydantic_core import from_json

from raycompose.errors import HTTPError


class MalformedJSONError(HTTPError, json.JSONDecodeError):
    """The sender's body is not JSON. HTTP 400; ``except json.JSONDecodeError`` catches it."""

    def __init__(self, reason: str) -> None:
        super().__init__(400, f"malformed JSON: {reason}")
        place = re.search(r"line (\d+) column (\d+)", reason)
        self.msg, self.doc = reason, ""  # the text itself is the sender's, and may be long
        self.lineno, self.colno = map(int, place.groups()) if place else (1, 1)
        self.pos = self.colno - 1


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text, as RFC 8259 has it: no NaN, no infinity, no surrogates.

    Raises:
        MalformedJSONError: It is not JSON, or nested deeper than about 200 levels.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        if (encoding := json.detect_encoding(body)) == "utf-8":
            raise MalformedJSONError(str(error)) from None
        value = _reencoded(body, encoding)
    if _holds_infinity(value):  # 1e999 is JSON, but no float
        raise MalformedJSONError("it has a number that is too large for a float")
    return value


def _reencoded(body: bytes, encoding: str) -> Any:
    """The value of JSON in UTF-16 or UTF-32, or in UTF-8 that begins with its signature."""
    try:
        return from_json(body.decode(encoding).encode(), allow_inf_nan=False)
    except ValueError as error:  # UnicodeError is one
        raise MalformedJSONError(str(error)) from None


def _holds_infinity(value: Any) -> bool:
    left: list[Iterable[Any]] = [[value]]
    while left:
        for part in left.pop():
            kind = type(part)
            if kind is list:
                left.append(part)
            elif kind is dict:
                left.append(part.values())
            elif kind is float and math.isinf(part):
                return True
    return False
