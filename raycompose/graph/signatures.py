"""What a stage takes and gives: parameters, annotations, how its input arrives, what fits what."""

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

from ray import ObjectRef
from starlette.requests import Request

from raycompose import _serve
from raycompose.errors import CompositionError
from raycompose.flow.references import Ref
from raycompose.flow.streams import Stream

PassBy = Literal["value", "reference", "stream", "request"]
PASS_BY: tuple[PassBy, ...] = typing.get_args(PassBy)

SCALARS = (str, int, float, bool, bytes)
"""Types that no JSON object is: ``f(n: int)`` given ``{"n": 3}`` can only mean ``f(n=3)``."""

UNKNOWN = inspect.Parameter.empty
_ITERATORS = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.Iterator,
    collections.abc.Iterable,
)
_GENERATORS = (*_ITERATORS, collections.abc.Generator, collections.abc.AsyncGenerator)
# What Python itself accepts for a number (PEP 484, "the numeric tower").
_NUMERIC = {(int, float), (int, complex), (float, complex), (bool, float), (bool, complex)}


@dataclass(frozen=True)
class Signature:
    """What a stage's callable takes and gives.

    Args:
        parameters: The callable's parameters, without ``self``, annotations resolved where they
            can be. Empty and with ``known=False`` when Python cannot tell.
        known: Whether ``parameters`` is the whole truth.
        takes: How the first parameter wants its input: as the value, a reference, a stream or a
            request.
        wraps_ref: The stage takes ``list[ObjectRef]`` rather than an ``rc.Ref``.
        accepts: The first parameter's type, or that of its items; ``UNKNOWN`` if unclear.
        returns: The result's type, or that of its items; ``UNKNOWN`` if unclear.
        streams: The stage is a generator.
    """

    parameters: tuple[inspect.Parameter, ...] = ()
    known: bool = False
    takes: PassBy = "value"
    wraps_ref: bool = False
    accepts: Any = UNKNOWN
    returns: Any = UNKNOWN
    streams: bool = False

    @property
    def takes_several(self) -> bool:
        """Whether the callable has more than one parameter to spread an object over."""
        return len(self.parameters) > 1 or any(map(is_variadic, self.parameters))

    @property
    def required(self) -> list[str]:
        """The names of the parameters that a call must give."""
        return [p.name for p in self.parameters if _is_required(p)]

    @property
    def beyond_one(self) -> list[str] | None:
        """What a call with one value leaves out; ``None`` when there is no room for the value."""
        if not self.known:
            return []
        positional = [p for p in self.parameters if p.kind <= inspect.Parameter.VAR_POSITIONAL]
        if not positional:
            return None
        return [p.name for p in self.parameters if p is not positional[0] and _is_required(p)]


def is_variadic(parameter: inspect.Parameter) -> bool:
    """Tell whether a parameter is ``*args`` or ``**kwargs``."""
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and not is_variadic(parameter)


def describe(function: Callable[..., Any], *, skip_self: bool = False) -> Signature:
    """Read a callable's signature.

    Args:
        function: Any callable; a method of a class that is not instantiated yet with
            ``skip_self=True``.
        skip_self: Leave the first parameter out.

    Raises:
        CompositionError: The first parameter is a bare ``ObjectRef``, which Ray cannot deliver.
    """
    streams = is_generator(function)
    if _serve.is_batched(function):  # annotated for a batch, but called with single items
        return Signature(streams=streams)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtins and C extensions may have none
        return Signature(streams=streams)
    namespace = _namespace(function)
    parameters = tuple(
        p.replace(annotation=_resolve(p.annotation, namespace))
        for p in list(signature.parameters.values())[skip_self:]
    )
    returns = _resolve(signature.return_annotation, namespace)
    first = parameters[0] if parameters else None
    nothing: tuple[PassBy, bool, Any] = ("value", False, UNKNOWN)
    takes, wraps_ref, accepts = _input(first) if first else nothing
    return Signature(
        parameters=parameters,
        known=True,
        takes=takes,
        wraps_ref=wraps_ref,
        accepts=accepts,
        returns=_item_type(returns) if streams else returns,
        streams=streams,
    )


def is_generator(function: Callable[..., Any]) -> bool:
    """Tell whether calling ``function`` gives a generator, sync or async."""
    if _serve.is_batched(function):
        function = inspect.unwrap(function)
    return any(
        inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in _faces(function)
    )


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether ``function`` runs on the event loop rather than in a thread."""
    if _serve.is_batched(function):
        return True
    return any(
        inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in _faces(function)
    )


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
        _related(given, wanted) or (given, wanted) in _NUMERIC
        for given in outputs
        for wanted in accepteds
    )


def type_name(annotation: Any) -> str:
    """Return an annotation as its author wrote it, near enough: ``list[int]``, ``str``."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _faces(function: Callable[..., Any]) -> tuple[Any, ...]:
    """The places where Python marks a callable as async or as a generator."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return (function,)
    return (function, type(function).__call__)  # a callable object


def _namespace(function: Callable[..., Any]) -> dict[str, Any]:
    """The names that a callable's string annotations may use."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = type(function).__call__
    function = getattr(function, "__func__", function)
    names = dict(getattr(function, "__globals__", {}))
    if inspect.isfunction(function):
        names.update(inspect.getclosurevars(function).nonlocals)
    return names


def _resolve(annotation: Any, namespace: dict[str, Any]) -> Any:
    """Evaluate a string annotation (PEP 563); one that cannot be is treated as none."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, namespace)
    except Exception:  # any name may be missing at run time, and unclear is allowed
        return UNKNOWN


def _input(parameter: inspect.Parameter) -> tuple[PassBy, bool, Any]:
    """How a first parameter's annotation asks for its input: pass_by, wraps_ref, type."""
    annotation = _without_optional(parameter.annotation)
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    item = arguments[0] if arguments else UNKNOWN
    if annotation is UNKNOWN:
        return ("request" if parameter.name == "request" else "value"), False, UNKNOWN
    if origin is ObjectRef:
        raise CompositionError(
            f"parameter {parameter.name!r} is annotated ObjectRef, but Ray resolves a top-level "
            "ObjectRef on arrival, so the stage would get the value. "
            "Annotate it rc.Ref[T] to receive a reference, or T to receive the value."
        )
    if origin is Ref:
        return "reference", False, item
    if origin is list and (typing.get_origin(item) or item) is ObjectRef:
        nested = typing.get_args(item)
        return "reference", True, nested[0] if nested else UNKNOWN
    if origin is Stream:
        return "stream", False, item
    if inspect.isclass(origin) and issubclass(origin, Request):
        return "request", False, UNKNOWN
    return "value", False, annotation


def takes_iterator(signature: Signature) -> bool:
    """Tell whether the first parameter is annotated as an iterator: a stream, behind a stream."""
    return (typing.get_origin(signature.accepts) or signature.accepts) in _ITERATORS


def _item_type(returns: Any) -> Any:
    """The type of a generator's items, from its return annotation."""
    arguments = typing.get_args(returns)
    return arguments[0] if typing.get_origin(returns) in _GENERATORS and arguments else UNKNOWN


def _without_optional(annotation: Any) -> Any:
    """``T`` for ``Annotated[T, ...]`` and ``T | None``."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _without_optional(typing.get_args(annotation)[0])
    members = _union_members(annotation)
    rest = [m for m in members if m is not types.NoneType]
    return _without_optional(rest[0]) if len(rest) == 1 and len(members) == 2 else annotation


def _union_members(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (Union, types.UnionType)
    return typing.get_args(annotation) if is_union else ()


def _plain_classes(annotation: Any) -> tuple[type, ...] | None:
    """The classes that an annotation allows, or ``None`` when that is not clear."""
    if annotation is None:
        return (types.NoneType,)
    if typing.get_origin(annotation) is typing.Annotated:
        return _plain_classes(typing.get_args(annotation)[0])
    members = _union_members(annotation)
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
