"""Functions of which the annotations are what a test is about."""

from __future__ import annotations

from collections.abc import Iterator

import pydantic


class Item(pydantic.BaseModel):
    n: int


def numbers(n: int) -> Iterator[int]:
    yield from range(n)


def listed(n: int) -> list[int]:
    return [n]


def text(x: int) -> str:
    return str(x)


def lower(x: str) -> str:
    return x.lower()
