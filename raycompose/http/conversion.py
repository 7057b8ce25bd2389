"""A value that was sent over HTTP becomes a stage's arguments."""

import collections.abc
import dataclasses
import typing
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pydantic
from typing_extensions import NotRequired, Required, TypedDict

from raycompose.errors import HTTPError
from raycompose.flow.arguments import Arguments
from raycompose.flow.streams import Stream
from raycompose.graph.annotations import (
    ITERATORS,
    UNKNOWN,
    item_type,
    union_members,
    without_optional,
)
from raycompose.graph.signatures import SCALARS, Signature

NOTHING = object()
"""What was sent, where nothing was."""

Validate = Callable[[Any], Any]


@dataclass(frozen=True)
class Conversion:
    """Makes the arguments for a call of what has this signature.

    Args:
        signature: The stage's.
        or_whole: An object that does not fit several parameters may be the value of the first.
    """

    signature: Signature
    or_whole: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone, as of a node."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __call__(self, value: Any) -> Any:
        """Return the arguments as one value.

        Args:
            value: What JSON, a form or a query held, or ``NOTHING``.

        Raises:
            HTTPError: The value does not fit: 422.
        """
        signature = self.signature
        if not signature.known:
            return Arguments() if value is NOTHING else value
        if isinstance(value, dict) and signature.takes_several:
            misfit = signature.misfit(value)
            if misfit is None:
                return signature.spread({k: self._validated(k, v) for k, v in value.items()})
            if not self.or_whole or signature.beyond_one != []:
                raise HTTPError(422, misfit)
        if value is NOTHING:
            if required := signature.required:
                raise HTTPError(422, f"nothing was sent, but {', '.join(required)} is required")
            return Arguments()
        if not signature.parameters:
            return Arguments()
        beyond = signature.beyond_one
        if beyond is None or beyond:
            members = f" with {', '.join(signature.required)}" if signature.required else ""
            raise HTTPError(422, f"send an object{members}")
        return self._one(signature.parameters[0].name, value)

    def _one(self, name: str, value: Any) -> Any:
        """The one argument: the value, or where that is not what is taken, its one member."""
        if (validate := self._validators.get(name)) is None:
            return value
        if self._names_no_member and isinstance(value, dict) and set(value) == {name}:
            return self._validated(name, value[name])
        try:
            return validate(value)
        except pydantic.ValidationError as error:
            if value == {} and not self.signature.required:
                return Arguments()
            if not (isinstance(value, dict) and set(value) == {name}):
                raise HTTPError(422, self._misfit(value) or _problems(name, error)) from error
        return self._validated(name, value[name])

    def _misfit(self, value: Any) -> str | None:
        """What is wrong with an object's members, where it stands for one plain value."""
        if without_optional(self.signature.accepts) not in SCALARS:
            return None
        return self.signature.misfit(value) if isinstance(value, dict) else None

    def _validated(self, name: str, value: Any) -> Any:
        parameter = name if name in self._annotations else self._collects
        if (validate := self._validators.get(parameter)) is None:
            return value
        try:
            return validate(value)
        except pydantic.ValidationError as error:
            raise HTTPError(422, _problems(name, error)) from error

    @cached_property
    def _names_no_member(self) -> bool:
        """Whether the one parameter's model would leave out a member of the parameter's name."""
        name, annotation = next(iter(self._annotations.items()))
        members, kind = _members(annotation), without_optional(annotation)
        keeps_others = getattr(kind, "model_config", {}).get("extra") == "allow"
        return bool(members) and name not in members and not keeps_others

    @cached_property
    def lists(self) -> Mapping[str, bool]:
        """Of each name that is known, whether a query or a form gives a list under it."""
        annotations = dict(self._annotations)
        if len(annotations) == 1:
            annotations |= _members(*annotations.values())
        return {name: _is_list(annotation) for name, annotation in annotations.items()}

    @property
    def converts(self) -> bool:
        """Whether an annotation asks for anything."""
        return bool(self._validators)

    @cached_property
    def _validators(self) -> dict[str, Validate]:
        """What converts each annotated parameter; made once, not per request."""
        made = {name: _validator(annotation) for name, annotation in self._annotations.items()}
        if made and self.signature.takes == "stream":
            first = self.signature.parameters[0].name
            made[first] = made[first] or _validator(Stream)
        return {name: validate for name, validate in made.items() if validate is not None}

    @cached_property
    def _annotations(self) -> dict[str, Any]:
        """Of each parameter, of what it stands for where that is a reference."""
        parameters = self.signature.parameters
        annotations = {p.name: p.annotation for p in parameters}
        if parameters and self.signature.takes == "reference":
            annotations[parameters[0].name] = self.signature.accepts
        return annotations

    @cached_property
    def _collects(self) -> str:
        """The parameter that takes the names that no other takes, as ``**rest`` does."""
        collecting = (p.name for p in self.signature.parameters if p.kind is p.VAR_KEYWORD)
        return next(collecting, "")


def lists_in(conversions: Iterable[Conversion]) -> frozenset[str]:
    """Return the names that are lists to each conversion that knows them."""
    lists: dict[str, bool] = {}
    for conversion in conversions:
        for name, is_list in conversion.lists.items():
            lists[name] = lists.get(name, True) and is_list
    return frozenset(name for name, is_list in lists.items() if is_list)


_UNKNOWN_TYPE = (pydantic.PydanticUserError, pydantic.PydanticUndefinedAnnotation, TypeError)


def _validator(annotation: Any) -> Validate | None:
    if annotation in (UNKNOWN, Any, object):
        return None
    plain = without_optional(annotation)
    origin = typing.get_origin(plain) or plain
    if origin in ITERATORS or origin is Stream:
        items: Any = list[item_type(plain)] if typing.get_args(plain) else list  # type: ignore[misc]  # made at run time
        validate = _validator(items) or _validator(list)
        if validate is None or origin is collections.abc.Iterable:
            return validate
        made: Any = iter if origin is collections.abc.Iterator else Stream.of
        return lambda value: made(validate(value))
    try:
        adapter = pydantic.TypeAdapter(annotation)
    except _UNKNOWN_TYPE as error:  # as numpy.ndarray
        if getattr(error, "code", None) != "typed-dict-version":
            return None
        known = _with_known_typeddicts(annotation)
        return None if known == annotation else _validator(known)
    complete = getattr(adapter, "pydantic_complete", True)  # new in pydantic 2.10
    return adapter.validate_python if complete else None


def _with_known_typeddicts(annotation: Any) -> Any:
    """The same with TypedDicts as pydantic wants them before Python 3.12: typing_extensions'."""
    if typing.is_typeddict(annotation):
        hints = typing.get_type_hints(annotation, include_extras=True)
        optional = annotation.__optional_keys__
        fields = {
            name: (NotRequired if name in optional else Required)[_with_known_typeddicts(hint)]
            for name, hint in hints.items()
        }
        return TypedDict(annotation.__name__, fields)  # type: ignore[operator]  # made at run time
    arguments = tuple(map(_with_known_typeddicts, typing.get_args(annotation)))
    if typing.get_origin(annotation) in (NotRequired, Required):  # a TypedDict's own, said anew
        return arguments[0]
    if arguments == typing.get_args(annotation):
        return annotation
    if union_members(annotation):
        return typing.Union[arguments]  # noqa: UP007  # made at run time
    return typing.get_origin(annotation)[arguments]


_LISTS = (
    *(list, tuple, set, frozenset, deque, collections.abc.Sequence, collections.abc.Set),
    *(collections.abc.Collection, *ITERATORS, Stream),
)


def _is_list(annotation: Any) -> bool:
    """Whether one text is to be a list of one: a list is taken, and nothing that a text can be."""
    plain = without_optional(annotation)
    members = [typing.get_origin(m) or m for m in union_members(plain) or (plain,)]
    return any(m in _LISTS for m in members) and not any(m in SCALARS for m in members)


def _members(annotation: Any) -> dict[str, Any]:
    """The annotations of a model's fields, by the names that a sender may use."""
    kind = without_optional(annotation)
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        fields = kind.model_fields.items()
        return {n: f.annotation for name, f in fields for n in (name, f.alias) if n}
    if not dataclasses.is_dataclass(kind) and not typing.is_typeddict(kind):
        return {}
    try:
        return typing.get_type_hints(kind)
    except (NameError, TypeError):  # a name that is missing at run time
        return {}


def _problems(name: str, error: pydantic.ValidationError) -> str:
    if (count := error.error_count()) > _LISTED:
        return f"{name}: {count} values in it are invalid"
    return "; ".join(f"{'.'.join(map(str, (name, *e['loc'])))}: {e['msg']}" for e in error.errors())


_LISTED = 1000
"""How many problems are listed: each takes a thousand times the memory of the byte it is about."""
