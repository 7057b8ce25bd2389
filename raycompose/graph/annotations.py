"""Annotations: what a string one means, and which types fit which."""

import collections.abc
import inspect
import types
import typing
from typing import Annotated, Any, Literal, TypeVar, Union

from raycompose.flow.references import Ref
from raycompose.flow.streams import Stream

UNKNOWN = inspect.Parameter.empty
ITERATORS = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.Iterator,
    collections.abc.Iterable,
)
_CONTAINERS = (
    *ITERATORS,
    collections.abc.Generator,
    collections.abc.AsyncGenerator,
    collections.abc.Sequence,
    list,
    Stream,
)
# What Python itself accepts for another type (PEP 484, "the numeric tower", and for bytes).
_NUMBERS = (bool, int, float, complex)
_PROMOTED = {(int, float), (int, complex), (float, complex), (bool, float), (bool, complex),
             (bytearray, bytes), (memoryview, bytes)}  # fmt: skip


def fits(output: Any, accepted: Any) -> bool:
    """Tell whether a value annotated ``output`` may be given where ``accepted`` is annotated.

    Only plain classes that cannot fit are refused; whatever is unclear may pass.

    >>> fits(str, list), fits(bool, int), fits(int, float), fits(UNKNOWN, list)
    (False, True, True, True)
    >>> fits(int | str, list[int]), fits(int | str, str)
    (False, True)
    """
    outputs, accepteds = _plain_classes(output), _plain_classes(accepted)
    if outputs is None or accepteds is None:
        return True
    return any(
        _related(given, wanted)
        or (given, wanted) in _PROMOTED
        or (_is_numpy(given) and wanted in _NUMBERS)
        or (given in _NUMBERS and _is_numpy(wanted))
        for given in outputs
        for wanted in accepteds
    )


def type_name(annotation: Any) -> str:
    """Return an annotation as its author wrote it, near enough: ``list[int]``, ``str``."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def resolve(annotation: Any, namespace: dict[str, Any]) -> Any:
    """Return the meaning of a string annotation (PEP 563), and strings in one: ``list["Item"]``.

    One that cannot be evaluated is treated as none.
    """
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation
    annotated: Any = types.SimpleNamespace()
    try:
        annotated.__annotations__ = {"it": _with_references(annotation)}
        hints = typing.get_type_hints(annotated, namespace, namespace, include_extras=True)
    except Exception:  # any name may be missing at run time, and unclear is allowed
        hints = {"it": annotation}
    return None if annotation is None else UNKNOWN if _holds_string(hints["it"]) else hints["it"]


def _with_references(annotation: Any) -> Any:
    """``list["Item"]`` with a reference for its string, which Python 3.10 would leave as it is."""
    if type(annotation) is not types.GenericAlias:
        return typing.ForwardRef(annotation) if isinstance(annotation, str) else annotation
    arguments = tuple(map(_with_references, typing.get_args(annotation)))
    return types.GenericAlias(typing.get_origin(annotation), arguments)


def _holds_string(annotation: Any) -> bool:
    """Whether some type in it is still a string; literals and metadata are no types."""
    if isinstance(annotation, str | typing.ForwardRef):
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    types_in_it = () if origin is Literal else arguments[: 1 if origin is Annotated else None]
    return any(map(_holds_string, types_in_it))


def item_type(container: Any) -> Any:
    """Return the type of the items of a generator, or of a batch, from its annotation."""
    arguments = typing.get_args(container)
    return arguments[0] if typing.get_origin(container) in _CONTAINERS and arguments else UNKNOWN


def awaited(returns: Any) -> Any:
    """Return the type of what a ``def`` gives that returns an awaitable: that is awaited, too."""
    origin = typing.get_origin(returns) or returns
    if not inspect.isclass(origin) or not hasattr(origin, "__await__") or origin is Ref:
        return returns
    arguments = typing.get_args(returns)
    return arguments[-1] if arguments else UNKNOWN


def without_optional(annotation: Any) -> Any:
    """Return ``T`` for ``Annotated[T, ...]`` and ``T | None``."""
    if typing.get_origin(annotation) is Annotated:
        return without_optional(typing.get_args(annotation)[0])
    members = union_members(annotation)
    rest = [m for m in members if m is not types.NoneType]
    return without_optional(rest[0]) if len(rest) == 1 and len(members) == 2 else annotation


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, nothing for any other annotation."""
    is_union = typing.get_origin(annotation) in (Union, types.UnionType)
    return typing.get_args(annotation) if is_union else ()


def _plain_classes(annotation: Any) -> tuple[type, ...] | None:
    """The classes that an annotation allows, or ``None`` when that is not clear."""
    if annotation is None:
        return (types.NoneType,)
    if typing.get_origin(annotation) is Annotated:
        return _plain_classes(typing.get_args(annotation)[0])
    members = union_members(annotation)
    if members:
        classes = [_plain_classes(m) for m in members]
        return None if None in classes else tuple(c for cs in classes for c in cs or ())
    origin = typing.get_origin(annotation) or annotation
    unclear = (
        not inspect.isclass(origin)
        or isinstance(annotation, TypeVar)
        or origin in (object, UNKNOWN, Any)
        or getattr(origin, "_is_protocol", False)
    )
    return None if unclear else (origin,)


def _related(given: type, wanted: type) -> bool:
    try:
        return issubclass(given, wanted) or issubclass(wanted, given)
    except TypeError:  # a metaclass that does not answer: unclear
        return True


def _is_numpy(kind: type) -> bool:
    """Whether it is one of NumPy's scalars, which stand in for Python's numbers."""
    return any((c.__module__, c.__name__) == ("numpy", "generic") for c in kind.__mro__)
