"""Deployments that add, and what Ray would start for them."""

from collections.abc import Iterator
from typing import Any

from ray import serve

from raycompose import _serve
from support import pickle_by_value

pickle_by_value(__name__)


class Plus:
    def __init__(self, n: int = 1) -> None:
        self.n = n

    def __call__(self, x: int) -> int:
        return x + self.n


def plus(name: str, **options: Any) -> Any:
    return serve.deployment(Plus, name=name, **options).bind()


def numbers(n: int) -> Iterator[int]:
    yield from range(n)


def deployed(app: Any) -> list[str]:
    """The names of the deployments that Ray would start for an application."""
    return sorted(d.name for d in _serve.build(app, "app").deployments)
