"""Weights: what travels as one message, what through the object store, what only Ray knows of."""

import datetime
import enum
import threading
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException
from pydantic import BaseModel
from ray import cloudpickle
from starlette.exceptions import HTTPException as StarletteHTTPException

from raycompose.errors import StageError
from raycompose.flow.references import Ref
from raycompose.flow.request import Request
from raycompose.flow.unpickling import unpickled_error
from raycompose.flow.weights import weight

Pair = namedtuple("Pair", "a b")


class Colour(enum.Enum):
    RED = 1


@dataclass
class Box:
    inside: Any


@dataclass(slots=True)
class Slots:
    inside: Any


class Model(BaseModel):
    inside: Any = None


class Open(BaseModel, extra="allow"):
    pass


class Opaque:
    def __init__(self, inside: Any = None) -> None:
        self.inside = inside


class Labelled(list[Any]):
    label: Any = None


LIGHT = [
    None, True, 1, 1.5, 1j, "text", b"bytes", bytearray(b"x"), (), [], {}, set(), frozenset({1}),
    {"a": [1, {"b": (2, "x")}]}, [0.5] * 20_000, ["x" * 10] * 1000, Pair(1, "b"), Colour.RED,
    OrderedDict(a=1), Box([1]), Model(inside={"a": 1}), Open.model_validate({"a": 1}),
    np.zeros(1000), np.float32(1),
    datetime.datetime(2026, 1, 1), Request({"type": "http", "headers": []}, b"{}"), int,
    Box(Model(inside=Box(np.int64(3)))),
]  # fmt: skip
HEAVY = [
    "x" * 600_000, b"x" * 600_000, np.zeros(100_000), [0.5] * 100_000, [{"a": 1}] * 100_000,
    {"a": ["x" * 1000] * 600}, {str(n): n for n in range(100_000)}, Box(b"x" * 600_000),
    Model(inside=np.zeros(100_000)), [b"x" * 300_000, b"y" * 300_000], [[1] * 10] * 5000,
    Request({"type": "http", "headers": []}, b"x" * 600_000),
]  # fmt: skip
UNKNOWN = [
    object(), threading, Opaque(), Slots(1), np.array([None, "x"]), Ref.to(1), [Ref.to(1)],
    {"a": ({"b": Opaque()},)}, {Opaque(): 1}, Box(Opaque()), Model(inside=Opaque()),
    Open.model_validate({"a": Opaque()}), [1] * 100 + [Opaque()], lambda x: x,
]  # fmt: skip


@pytest.mark.parametrize("value", LIGHT, ids=lambda v: type(v).__name__)
def test_small_plain_data_is_light(value: Any) -> None:
    """Numbers, text, bytes, arrays, and containers and models of them, below half a megabyte."""
    assert weight(value) == "light"


@pytest.mark.parametrize("value", HEAVY, ids=lambda v: type(v).__name__)
def test_large_plain_data_is_heavy(value: Any) -> None:
    """The same of many bytes, or of many parts."""
    assert weight(value) == "heavy"


@pytest.mark.parametrize("value", UNKNOWN, ids=lambda v: type(v).__name__)
def test_anything_else_is_unknown(value: Any) -> None:
    """What may hold an ObjectRef, at any depth, is left to Ray."""
    assert weight(value) == "unknown"


def test_an_attribute_of_a_list_is_looked_at() -> None:
    """What a subclass of a container holds besides its items is not plain data."""
    labelled = Labelled([1])
    labelled.label = Ref.to(1)
    assert weight(labelled) == "unknown"


def test_a_cycle_ends() -> None:
    """A structure that holds itself is looked at for so long, and then it is heavy."""
    cycle: list[Any] = []
    cycle.append(cycle)
    assert weight(cycle) == "heavy"


class Keywords(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Breaks(Exception):
    def __reduce__(self) -> Any:
        return _breaks, ()


def _breaks() -> None:
    raise RuntimeError("no way back")


def test_an_exception_is_unpickled_without_its_constructor() -> None:
    """Exceptions whose ``__init__`` does not take their ``args`` arrive with their attributes."""
    keywords = unpickled_error(cloudpickle.dumps(Keywords(code=7)))
    assert isinstance(keywords, Keywords)
    assert (keywords.code, str(keywords)) == (7, "code 7")
    for kind in (HTTPException, StarletteHTTPException):
        http = unpickled_error(cloudpickle.dumps(kind(status_code=409, detail="taken")))
        assert isinstance(http, kind)
        assert (http.status_code, http.detail) == (409, "taken")
    assert repr(unpickled_error(cloudpickle.dumps(KeyError("a")))) == "KeyError('a')"


def test_what_cannot_be_unpickled_has_a_stand_in() -> None:
    """An exception whose way back fails is a StageError that says so."""
    error = unpickled_error(cloudpickle.dumps(Breaks()))
    assert isinstance(error, StageError)
    assert "no way back" in str(error)
