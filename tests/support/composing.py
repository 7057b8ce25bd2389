"""What pipelines are composed of in tests, and what is read of them."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from ray import ObjectRef, serve
from ray.serve import Application

import raycompose as rc
from raycompose import _serve
from raycompose.graph.nodes import Node, stages
from support.cluster import FREE


def stage_names(node: Node) -> list[str]:
    """The names of a graph's stages, in reading order."""
    return [stage.name for stage in stages(node)]


class _Model:
    def __init__(self, bias: int = 1) -> None:
        self.bias = bias

    def __call__(self, x: int) -> int:
        return x + self.bias

    def double(self, x: int) -> int:
        return 2 * x


class _Silent:
    """A deployment with no ``__call__``."""

    def speak(self, x: int) -> int:
        return x


Model: Any = serve.deployment(name="Model", **FREE)(_Model)
Silent: Any = serve.deployment(name="Silent", **FREE)(_Silent)


def _square(x: int) -> int:
    return x * x


square = serve.deployment(_square)


def add(x: int, n: int = 1) -> int:
    return x + n


async def aadd(x: int) -> int:
    return x + 1


def counted(n: int) -> Iterator[int]:
    yield from range(n)


async def acounted(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


class Adder:
    """A callable object."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, x: int) -> int:
        return x + self.n

    def method(self, x: int) -> int:
        return x + 10 * self.n


class Undecorated:
    def __call__(self, x: int) -> int:
        return x


def to_text(x: int) -> str:
    return str(x)


def to_list(x: int) -> list[int]:
    return [x]


def to_mapping(x: int) -> dict[str, int]:
    return {"a": x}


def total(xs: list[int]) -> int:
    return sum(xs)


def takes_bare_ref(x: ObjectRef) -> Any:
    return x


def deployments(app: Application) -> list[str]:
    """Return the names of the deployments that Ray Serve would start."""
    return [deployment.name for deployment in _serve.build(app, "x").deployments]


def names(app: rc.Pipeline[Any, Any]) -> list[str]:
    return stage_names(app.root)


def refusal(compose: Callable[[], Any]) -> str:
    """Return the message of the CompositionError that ``compose`` must raise."""
    with pytest.raises(rc.CompositionError) as caught:
        compose()
    return str(caught.value)


def local(definition: Any, method: str = "__call__", **options: Any) -> Any:
    """Return a local client of one deployment's method."""
    deployment = serve.deployment(definition, max_ongoing_requests=50).options(**options)
    return rc.local(rc.stage(deployment.bind(), method=method))
