"""How heavy a value is on its way to another process, told by a look at it."""

import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel

from raycompose.flow.request import Request

Weight = Literal["light", "heavy", "unknown"]
"""Of plain data: below or above what travels best in one message. Else it is unknown."""

HEAVY_BYTES = 500_000
"""From here on Ray's object store is the faster way (``make bench ROW=size``)."""
_PARTS = 4096
"""How many parts are looked at: what has more takes long to pickle, too."""
_MANY = 16

_SCALARS = frozenset({
    int, float, bool, complex, type(None), datetime.datetime, datetime.date, datetime.time,
    datetime.timedelta, decimal.Decimal, uuid.UUID, type,
})  # fmt: skip


def weight(value: Any) -> Weight:
    """Return how heavy a value is.

    Plain data are numbers, text, bytes, NumPy arrays, and lists, tuples, sets, dicts, dataclasses
    and pydantic models of them. Of anything else the weight is unknown: it may hold an
    ``ObjectRef``, which Ray keeps track of on its way through the object store only.

    >>> weight({"text": "hello", "scores": [0.1, 0.9]}), weight(b"x" * 1_000_000), weight(object())
    ('light', 'heavy', 'unknown')
    """
    todo, size, parts = [value], 0, 0
    while todo:
        part = todo.pop()
        kind = type(part)
        if kind in _SCALARS:
            continue
        if isinstance(part, str | bytes | bytearray):
            size += len(part)
        elif kind.__module__ == "numpy":
            if getattr(part, "dtype", None) is None or part.dtype.hasobject:
                return "unknown"
            size += part.nbytes
        elif (inside := _inside(part)) is not None:
            size += 8 * len(inside)
            if size < HEAVY_BYTES and not _is_flat(inside):
                parts += len(inside)
                todo += inside
        elif not isinstance(part, enum.Enum):
            return "unknown"
        if size >= HEAVY_BYTES or parts > _PARTS:
            return "heavy"
    return "light"


def _is_flat(inside: Any) -> bool:
    """Whether all of many items are numbers; of few it is no faster to know."""
    return len(inside) > _MANY and _SCALARS.issuperset(map(type, inside))


def _inside(part: Any) -> Collection[Any] | None:
    """What a container holds; ``None`` of what is none."""
    if isinstance(part, dict | list | tuple | set | frozenset):
        items = [*part, *part.values()] if isinstance(part, dict) else part
        return [*items, *attributes.values()] if (attributes := _attributes(part)) else items
    if isinstance(part, Request):
        return part.sent
    if isinstance(part, BaseModel):
        return [vars(part), part.model_extra, part.__pydantic_private__]
    if dataclasses.is_dataclass(part):
        attributes = _attributes(part)
        return None if attributes is None else list(attributes.values())
    return None


def _attributes(part: Any) -> dict[str, Any] | None:
    return getattr(part, "__dict__", None)
