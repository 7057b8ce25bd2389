"""What the type checker infers; this file is checked by mypy, and runs only to be importable."""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from ray import serve
from typing_extensions import assert_type

import raycompose as rc


def length(text: str) -> int:
    return len(text)


def half(n: int) -> float:
    return n / 2


def show(x: float) -> str:
    return str(x)


async def alength(text: str) -> int:
    return len(text)


async def ahalf(n: int) -> float:
    return n / 2


def count(n: int) -> Iterator[int]:
    yield from range(n)


async def acount(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


class Model:
    def __call__(self, x: int) -> str:
        return str(x)


def test_pipelines_infer_what_they_take_and_give() -> None:
    """``Pipeline[In, Out]`` is inferred through ``rc.pipeline`` and ``.then`` on functions."""
    app = rc.pipeline(length, half)
    assert rc.local(app).call("four") == 2.0
    assert isinstance(app, serve.Application)


if TYPE_CHECKING:
    # One function.
    assert_type(rc.pipeline(length), rc.Pipeline[str, int])
    assert_type(rc.pipeline(alength), rc.Pipeline[str, int])
    assert_type(rc.stage(length), rc.Pipeline[str, int])
    assert_type(rc.stage(alength, timeout_s=1.0), rc.Pipeline[str, int])

    # Several, sync and async in any order.
    assert_type(rc.pipeline(length, half), rc.Pipeline[str, float])
    assert_type(rc.pipeline(length, half, show), rc.Pipeline[str, str])
    assert_type(rc.pipeline(alength, ahalf), rc.Pipeline[str, float])
    assert_type(rc.pipeline(alength, half), rc.Pipeline[str, float])
    assert_type(rc.pipeline(length, ahalf), rc.Pipeline[str, float])

    # Pipelines and functions.
    assert_type(rc.pipeline(rc.pipeline(length), half), rc.Pipeline[str, float])
    assert_type(rc.pipeline(length, rc.pipeline(half, show)), rc.Pipeline[str, str])

    # Callable objects.
    assert_type(rc.pipeline(length, Model()), rc.Pipeline[str, str])

    # then and |.
    assert_type(rc.pipeline(length).then(half), rc.Pipeline[str, float])
    assert_type(rc.pipeline(length).then(ahalf), rc.Pipeline[str, float])
    assert_type(rc.pipeline(length).then(half, timeout_s=1.0), rc.Pipeline[str, float])
    assert_type(rc.pipeline(length).then(rc.pipeline(half)), rc.Pipeline[str, float])
    assert_type(rc.pipeline(length).then(half).then(show), rc.Pipeline[str, str])
    assert_type(rc.pipeline(length) | half, rc.Pipeline[str, float])
    assert_type(rc.pipeline(length) | ahalf | show, rc.Pipeline[str, str])

    # What does not change the types.
    assert_type(rc.pipeline(length).fuse(), rc.Pipeline[str, int])
    assert_type(rc.pipeline(length).options(name="Front"), rc.Pipeline[str, int])

    # What cannot be known is Any.
    bound: Any = serve.deployment(Model).bind()
    assert_type(rc.pipeline(bound), rc.Pipeline[Any, Any])
    assert_type(rc.parallel(length, half), rc.Pipeline[Any, Any])
