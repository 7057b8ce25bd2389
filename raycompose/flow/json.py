"""JSON as RFC 8259 has it: what Python's own parser lets pass is refused."""

import json
import math
import re
from typing import Any

from raycompose.errors import HTTPError


class MalformedJSONError(HTTPError, ValueError):
    """The sender's body is not JSON. HTTP 400."""

    def __init__(self, reason: str) -> None:
        super().__init__(400, f"malformed JSON: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _malformed, (self.detail, self.__dict__)


def _malformed(detail: str, state: dict[str, Any]) -> MalformedJSONError:
    error = MalformedJSONError(detail.removeprefix("malformed JSON: "))
    error.__dict__.update(state)
    return error


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text, as RFC 8259 has it: no NaN, no infinity, no surrogates.

    Raises:
        MalformedJSONError: It is not JSON.
    """
    try:
        text = body.decode(json.detect_encoding(body))  # json.loads would let surrogates pass
        # Only an exponent of three digits makes a float infinite; the hook is slow.
        parse_float = _finite if _HUGE.search(text) else None
        value = json.loads(text, parse_constant=_finite, parse_float=parse_float)
        if text.count("[") + text.count("{") > _LEVELS and _depth(value) > _LEVELS:
            raise MalformedJSONError(f"nested deeper than {_LEVELS} levels")
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails on half of a surrogate pair
    except RecursionError:
        raise MalformedJSONError("nested too deeply") from None
    except MalformedJSONError:
        raise
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, UnicodeEncodeError
        raise MalformedJSONError(str(error)) from None
    return value


_LEVELS = 200
"""How deep JSON may be nested: what answers with it recurses, and Python stops at about 1,000."""


def _depth(value: Any) -> int:
    deepest, left = 0, [(value, 1)] if isinstance(value, dict | list) else []
    while left:
        part, depth = left.pop()
        deepest = max(deepest, depth)
        parts = part.values() if isinstance(part, dict) else part
        left += [(p, depth + 1) for p in parts if isinstance(p, dict | list)]
    return deepest


_HUGE = re.compile(r"[eE]\+?[0-9]{3}|[0-9]{300}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a JSON number")
    return number
