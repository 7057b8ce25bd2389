"""First stages whose parameters are annotated in one way or another."""

from typing import Any

import pydantic


def pair(a: int, b: int = 10) -> int:
    return a + b


def variadic(a: int, **rest: Any) -> Any:
    return [a, rest]


class Item(pydantic.BaseModel):
    name: str
    price: float = 1.0


def item(item: Item) -> Any:
    assert isinstance(item, Item)
    return item


def floats(xs: list[float]) -> Any:
    return [type(x).__name__ for x in xs]


def number(n: int) -> int:
    return n + 1
