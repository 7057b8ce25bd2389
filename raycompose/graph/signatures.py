"""What a stage takes and gives: parameters, annotations, how its input arrives, what fits what."""

import contextlib
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from ray import ObjectRef
from starlette.requests import Request

from raycompose import _serve
from raycompose.errors import CompositionError
from raycompose.flow.arguments import Arguments, unpack
from raycompose.flow.references import Ref
from raycompose.flow.streams import Stream
from raycompose.graph.annotations import (
    ITERATORS,
    UNKNOWN,
    awaited,
    item_type,
    resolve,
    without_optional,
)

PassBy = Literal["value", "reference", "stream", "request"]
PASS_BY: tuple[PassBy, ...] = typing.get_args(PassBy)

RESERVED = frozenset({"self", "request_meta", "request_metadata", "pickled_request_metadata"})
"""Names that an argument cannot have, because parameters of Ray's own calls have them."""

SCALARS = (str, int, float, bool, bytes)
"""Types that no JSON object is: ``f(n: int)`` given ``{"n": 3}`` can only mean ``f(n=3)``."""


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
        result: The result's annotation as it is written.
        batched: It is a ``@serve.batch`` function or method.
    """

    parameters: tuple[inspect.Parameter, ...] = ()
    known: bool = False
    takes: PassBy = "value"
    wraps_ref: bool = False
    accepts: Any = UNKNOWN
    returns: Any = UNKNOWN
    streams: bool = False
    result: Any = UNKNOWN
    batched: bool = False

    def with_options(self, takes: PassBy | None, streams: bool | None) -> "Signature":
        """Return the signature as ``pass_by=`` and ``stream=`` have it, where they are given."""
        changed = self if takes is None else replace(self, takes=takes)
        if streams is None or streams == self.streams:
            return changed
        returns = item_type(self.result) if streams else UNKNOWN
        return replace(changed, streams=streams, returns=returns)

    @cached_property
    def takes_several(self) -> bool:
        """Whether an object's members, rather than the object, are what is taken."""
        by_name = [p for p in self.parameters if p.kind is not p.VAR_POSITIONAL]
        return bool(by_name) and (
            len(self.parameters) > 1 or by_name[0].kind >= by_name[0].KEYWORD_ONLY
        )

    def misfit(self, names: Collection[Any]) -> str | None:
        """Return what keeps arguments of these names from being a call's; ``None`` when they fit.

        >>> describe(lambda a, b=1: a).misfit(["a"]), describe(lambda a, b=1: a).misfit(["c"])
        (None, 'missing: a; unknown: c')
        """
        problems = []
        if missing := [name for name in self.required if name not in names]:
            problems.append(f"missing: {', '.join(missing)}")
        known = {p.name for p in self.parameters if not is_variadic(p)}
        unknown = [name for name in names if name not in known]
        if any(p.kind is p.VAR_KEYWORD for p in self.parameters):
            unknown = [name for name in unknown if name in RESERVED or not isinstance(name, str)]
        if unknown:
            problems.append(f"unknown: {', '.join(map(str, unknown))}")
            if known and not missing:
                problems.append(f"known: {', '.join(sorted(known))}")
        return "; ".join(problems) or None

    def spread(self, values: Mapping[str, Any]) -> Arguments:
        """Return the call that gives each parameter its value by name. They must fit."""
        left, args = dict(values), []
        positional = [p for p in self.parameters if p.kind is p.POSITIONAL_ONLY]
        while positional and positional[-1].name not in left:
            positional.pop()
        for p in positional:  # what stands before one that is given has to be given, too
            args.append(left.pop(p.name) if p.name in left else p.default)
        return Arguments(tuple(args), left)

    def takes_by_name(self, names: Collection[str]) -> bool:
        """Whether a mapping of these names is spread over the parameters."""
        return self._takes_mappings and self.takes == "value" and self.misfit(names) is None

    def arguments(self, value: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return the call for one value: a mapping of a call's arguments is spread over them.

        That is so where the callable takes several and the mapping's keys fit them: all that it
        requires, and none that it does not know. Any other value is the first argument, and so is
        a mapping where ``**kwargs`` would fit any.
        """
        fits = self._takes_mappings and isinstance(value, Mapping) and value
        if fits and self.takes_by_name(value):
            return unpack(self.spread(value))
        return (value,), {}

    def in_order(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return a call's arguments in the order of the parameters, however it was written.

        Ray gives all calls of a batch the names and the order of its first: one client's
        ``{"b": 1, "a": 2}`` would get its values swapped by another's ``{"a": 3, "b": 4}``.
        """
        bound = self._call.bind(*args, **kwargs)
        return bound.args, bound.kwargs

    @cached_property
    def _call(self) -> inspect.Signature:
        return inspect.Signature(self.parameters)

    @cached_property
    def _takes_mappings(self) -> bool:
        fits_any = any(p.kind is p.VAR_KEYWORD for p in self.parameters)
        return self.takes_several and not (fits_any and self.beyond_one == [])

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
    """Read a callable's signature; that of a batched method is of the single items it is given.

    Args:
        function: Any callable; a method of a class that is not instantiated yet with
            ``skip_self=True``.
        skip_self: Leave the first parameter out.

    Raises:
        CompositionError: The first parameter is a bare ``ObjectRef``, which Ray cannot deliver, or
            one is for FastAPI to fill in.
    """
    streams, batched = is_generator(function), _serve.is_batched(function)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtins and C extensions may have none
        return Signature(streams=streams)
    namespace = _namespace(function)

    def resolved(annotation: Any) -> Any:
        resolved = resolve(annotation, namespace)
        return item_type(resolved) if batched else resolved

    parameters = tuple(
        p.replace(annotation=resolved(p.annotation))
        for p in list(signature.parameters.values())[skip_self:]
    )
    for parameter in parameters:
        _refuse_injected(parameter)
    result = resolved(signature.return_annotation)
    first = parameters[0] if parameters else None
    nothing: tuple[PassBy, bool, Any] = ("value", False, UNKNOWN)
    plain = first is None or (batched and first.annotation is UNKNOWN)
    takes, wraps_ref, accepts = nothing if plain or first is None else _input(first)
    if batched:
        returns = UNKNOWN
    elif streams:
        returns = item_type(result)
    else:
        returns = result if is_async(function) else awaited(result)
    return Signature(
        parameters=parameters,
        known=True,
        takes=takes,
        wraps_ref=wraps_ref,
        accepts=UNKNOWN if batched else accepts,
        returns=returns,
        streams=streams,
        result=result,
        batched=batched,
    )


def _refuse_injected(parameter: inspect.Parameter) -> None:
    """Refuse what only FastAPI fills in: the stage would be given the marker itself."""
    for marker in (parameter.default, *getattr(parameter.annotation, "__metadata__", ())):
        if type(marker).__module__ == "fastapi.params":
            raise CompositionError(
                f"parameter {parameter.name!r} is FastAPI's {type(marker).__name__}(...), which "
                "FastAPI fills in for its own routes alone. Take what the stage needs as its input "
                "(or rc.Request), or call the pipeline from a route: see app.embed()."
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
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            with contextlib.suppress(ValueError):  # a cell that nothing was assigned to yet
                names[name] = cell.cell_contents
    return names


def _input(parameter: inspect.Parameter) -> tuple[PassBy, bool, Any]:
    """How a first parameter's annotation asks for its input: pass_by, wraps_ref, type."""
    annotation = without_optional(parameter.annotation)
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
    if is_request(annotation):
        return "request", False, UNKNOWN
    return "value", False, parameter.annotation


def is_request(annotation: Any) -> bool:
    """Tell whether an annotation asks for a request."""
    return (
        inspect.isclass(annotation)
        and not typing.get_args(annotation)
        and issubclass(annotation, Request)
    )


def takes_iterator(signature: Signature) -> bool:
    """Tell whether the first parameter is annotated as an iterator: a stream, behind a stream."""
    accepts = without_optional(signature.accepts)
    return (typing.get_origin(accepts) or accepts) in ITERATORS
