"""What a stage gives is held against what the next one takes."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Optional, Protocol, TypeVar
from unittest.mock import MagicMock

import numpy as np
import pytest
from support.annotated import Item, lower

import raycompose as rc
from raycompose.graph.annotations import UNKNOWN, fits, type_name

T = TypeVar("T")


class Movie(typing.TypedDict):
    title: str


class HasLen(Protocol):
    def __len__(self) -> int: ...


class Base:
    pass


class Derived(Base):
    pass


@pytest.mark.parametrize(
    ("output", "accepted"),
    [
        (int, int),
        (bool, int),
        (int, float),
        (bytearray, bytes),
        (memoryview, bytes),
        (int, complex),
        (float, complex),
        (bool, float),
        (Derived, Base),
        (Base, Derived),
        (list[int], list[str]),
        (list, Sequence),
        (dict[str, int], Mapping[str, int]),
        (str, Any),
        (Any, str),
        (str, object),
        (UNKNOWN, str),
        (str, UNKNOWN),
        (str, T),
        (T, str),
        (str, HasLen),
        (int, HasLen),
        (int | str, str),
        (str, int | str),
        (str, Optional[str]),  # noqa: UP045  # people write it
        (None, Optional[str]),  # noqa: UP045  # people write it
        (type(None), None),
        (Annotated[int, "note"], int),
        (int, Annotated[int, "note"]),
        (int | T, list),
        (typing.Literal["a"], str),
        (typing.Literal["a"], list),
        (Decimal, Decimal),
        (typing.NewType("Id", int), str),
        (dict, Movie),
        (Movie, dict),
        (type, typing.Type[int]),  # noqa: UP006  # people write it
    ],
)
def test_what_may_fit_is_allowed(output: Any, accepted: Any) -> None:
    """The same class, relatives, the numeric tower and all that is unclear may pass."""
    assert fits(output, accepted)


@pytest.mark.parametrize(
    ("output", "accepted"),
    [
        (str, list),
        (str, list[int]),
        (list[int], str),
        (float, int),
        (int, str),
        (dict, list),
        (None, str),
        (int | str, list),
        (int, list | dict),
        (Base, int),
        (Annotated[str, "note"], Annotated[int, "note"]),
        (bytes, str),
        (Item, int),
        (dict, Item),
        (Callable[[], int], str),
    ],
)
def test_what_cannot_fit_is_not(output: Any, accepted: Any) -> None:
    """Plain classes with nothing in common do not fit."""
    assert not fits(output, accepted)


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (str, "str"),
        (list[int], "list[int]"),
        (None, "None"),
        (Item, "Item"),
        (int | None, "int | None"),
    ],
)
def test_types_are_named_as_written(annotation: Any, name: str) -> None:
    """Messages name a type as its author wrote it."""
    assert type_name(annotation) == name


# False alarms


def iterator_of(n: int) -> Iterator[int]:
    return iter(range(n))


def awaitable_of(n: int) -> typing.Awaitable[int]:
    async def later() -> int:
        return n

    return later()


def coroutine_of(n: int) -> typing.Coroutine[Any, Any, int]:
    async def later() -> int:
        return n

    return later()


def nothing(x: Any) -> None:
    return None


def maybe(x: Optional[int]) -> bool:  # noqa: UP045  # people write it
    return x is None


def one_more(x: int) -> int:
    return x + 1


def test_stream_true_says_what_the_items_are() -> None:
    """``stream=True`` before a stage annotated with the item's type is no misfit."""
    app = rc.pipeline(rc.stage(iterator_of, stream=True), one_more)
    assert list(rc.local(app).stream(3)) == [1, 2, 3]
    with pytest.raises(rc.CompositionError, match="yields int"):
        rc.pipeline(rc.stage(iterator_of, stream=True), lower)


def total(xs: list[int]) -> int:
    return sum(xs)


def test_items_for_a_list_are_to_be_collected() -> None:
    """A stage that takes the list of what is streamed is told how to have it."""
    stream = rc.stage(iterator_of, stream=True)
    with pytest.raises(rc.CompositionError, match=r"put rc\.collect between them"):
        rc.pipeline(stream, total)
    assert rc.local(rc.pipeline(stream, rc.collect, total)).call(3) == 3


@pytest.mark.parametrize("function", [awaitable_of, coroutine_of])
def test_what_a_def_returns_to_be_awaited_is_awaited(function: Any) -> None:
    """A ``def`` annotated ``-> Awaitable[int]`` gives an int."""
    assert rc.local(rc.pipeline(function, one_more)).call(1) == 2
    with pytest.raises(rc.CompositionError):
        rc.pipeline(function, lower)


def test_none_is_an_optional_input() -> None:
    """``-> None`` fits before ``Optional[int]``."""
    assert rc.local(rc.pipeline(nothing, maybe)).call(1) is True
    assert not fits(type(None), int)


@pytest.mark.parametrize("scalar", [np.float32, np.float64, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("number", [int, float, bool])
def test_numpy_scalars_stand_for_pythons_numbers(scalar: Any, number: Any) -> None:
    """A NumPy scalar fits where a number is annotated, and the other way round; text does not."""
    assert fits(scalar, number)
    assert fits(number, scalar)
    assert not fits(scalar, list)


def test_a_cell_that_is_not_set_yet_is_no_error() -> None:
    """A function may refer to a name that is assigned after it is composed."""

    def stage(x: Later) -> int:  # type: ignore[name-defined]  # noqa: F821
        return later(x)

    app = rc.pipeline(stage)

    def later(x: int) -> int:
        return x + 1

    assert rc.local(app).call(1) == 2


def test_a_mock_is_a_stage() -> None:
    """An object that has every attribute is a function like any other."""
    mock = MagicMock(return_value=5)
    assert rc.local(rc.pipeline(mock, rc.stage(MagicMock(return_value=6)))).call(1) == 6
    mock.assert_called_once_with(1)
