"""An HTTP request becomes the first stage's arguments."""

import collections.abc
import dataclasses
import typing
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pydantic
from ray.exceptions import TaskCancelledError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest

from raycompose.errors import HTTPError
from raycompose.flow.arguments import Arguments
from raycompose.flow.charsets import codec
from raycompose.flow.json import MalformedJSONError, parse_json
from raycompose.flow.request import Request
from raycompose.flow.streams import Stream
from raycompose.graph.annotations import (
    ITERATORS,
    UNKNOWN,
    item_type,
    union_members,
    without_optional,
)
from raycompose.graph.signatures import SCALARS, Signature
from raycompose.http.forms import form_fields

_NOTHING = object()

Validate = Callable[[Any], Any]


class _Fields(dict[str, Any]):
    """What a query or a form holds: text, or a list of what was sent more than once."""

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, Any]]) -> "_Fields":
        several: dict[str, list[Any]] = {}
        for key, item in pairs:
            several.setdefault(key, []).append(item)
        return cls({k: v if len(v) > 1 else v[0] for k, v in several.items()})


@dataclass(frozen=True)
class Decoder:
    """Decodes requests for a pipeline whose first stage has this signature.

    Args:
        signature: The first stage's; ``None`` when the pipeline begins with a combinator.
        max_body_bytes: The longest body that is read.
        takes: What the pipeline begins with takes: a list, an object or anything.
        keys: What an object must have.
    """

    signature: Signature | None
    max_body_bytes: int
    takes: Any = object
    keys: tuple[Any, ...] = ()

    async def __call__(self, request: StarletteRequest) -> Any:
        """Return the value to run the graph with.

        Raises:
            HTTPError: The request is at fault: 400, 413 or 422.
            ClientDisconnect: The sender left before the end of the body.
        """
        body = await self._read(request)
        if self.signature is not None and self.signature.takes == "request":
            return Request(request.scope, body, request.receive)
        value = await _decode(request, body)
        if type(value) is _Fields:  # ?xs=1 is a list of one where xs is a list
            value = {
                k: [v] if k in self._lists and not isinstance(v, list) else v
                for k, v in value.items()
            }
        if value is _NOTHING and self.signature is None:
            raise HTTPError(422, "the pipeline takes one value: send a body or query parameters")
        if not isinstance(value, self.takes):
            what = "a list" if self.takes is list else "an object"
            raise HTTPError(422, f"the pipeline takes {what}, but was sent {_called(value)}")
        if missing := [str(key) for key in self.keys if key not in value]:
            raise HTTPError(422, f"missing: {', '.join(missing)}")
        try:
            return self._arguments(value)
        except HTTPError as error:
            sent = _content_type(request)
            if not isinstance(value, str | bytes) or not body or _is_json(sent):
                raise
            hint = f"the body was sent as {sent or 'text'}; JSON is sent as application/json"
            raise HTTPError(error.status, f"{error.detail} ({hint})") from error.__cause__

    async def _read(self, request: StarletteRequest) -> bytes:
        chunks, size = [], 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > self.max_body_bytes:
                    raise HTTPError(413, f"the body is longer than {self.max_body_bytes} bytes")
                chunks.append(chunk)
        except TaskCancelledError:  # Ray may cancel the reading before it says why
            raise ClientDisconnect from None
        return b"".join(chunks)

    def _arguments(self, value: Any) -> Any:
        signature = self.signature
        if signature is None or not signature.known:
            return Arguments() if value is _NOTHING else value
        if isinstance(value, dict) and signature.takes_several:
            if misfit := signature.misfit(value):
                raise HTTPError(422, misfit)
            return signature.spread({k: self._validated(k, v) for k, v in value.items()})
        if value is _NOTHING:
            if required := signature.required:
                raise HTTPError(422, f"nothing was sent, but {', '.join(required)} is required")
            return Arguments()
        if not signature.parameters:
            return Arguments()
        beyond = signature.beyond_one
        if beyond is None or beyond:
            raise HTTPError(422, f"send an object with {', '.join(signature.required)}")
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
            if not (isinstance(value, dict) and set(value) == {name}):
                raise HTTPError(422, self._misfit(value) or _problems(name, error)) from error
        return self._validated(name, value[name])

    def _misfit(self, value: Any) -> str | None:
        """What is wrong with an object's members, where it stands for one plain value."""
        if self.signature is None or self.signature.accepts not in SCALARS:
            return None
        return self.signature.misfit(value) if isinstance(value, dict) else None

    def _validated(self, name: str, value: Any) -> Any:
        if (validate := self._validators.get(name)) is None:
            return value
        try:
            return validate(value)
        except pydantic.ValidationError as error:
            raise HTTPError(422, _problems(name, error)) from error

    @cached_property
    def _names_no_member(self) -> bool:
        """Whether the one parameter's model would leave out a member of the parameter's name."""
        if self.signature is None:
            return False
        parameter = self.signature.parameters[0]
        members, kind = _members(parameter.annotation), without_optional(parameter.annotation)
        keeps_others = getattr(kind, "model_config", {}).get("extra") == "allow"
        return bool(members) and parameter.name not in members and not keeps_others

    @cached_property
    def _lists(self) -> frozenset[str]:
        """The names under which a query or a form gives a list."""
        parameters = self.signature.parameters if self.signature else ()
        annotations = {p.name: p.annotation for p in parameters}
        if len(parameters) == 1:
            annotations |= _members(parameters[0].annotation)
        return frozenset(name for name, a in annotations.items() if _is_list(a))

    @cached_property
    def _validators(self) -> dict[str, Validate]:
        """What converts each annotated parameter; made once, not per request."""
        parameters = self.signature.parameters if self.signature else ()
        made = {p.name: _validator(p.annotation) for p in parameters}
        if parameters and self.signature and self.signature.takes == "stream":
            made[parameters[0].name] = made[parameters[0].name] or _validator(Stream)
        return {name: validate for name, validate in made.items() if validate is not None}


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
    except _UNKNOWN_TYPE:  # as numpy.ndarray
        return None
    complete = getattr(adapter, "pydantic_complete", True)  # new in pydantic 2.10
    return adapter.validate_python if complete else None


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


def _called(value: Any) -> str:
    return "an object" if isinstance(value, dict) else f"{type(value).__name__} {value!r:.40}"


def _problems(name: str, error: pydantic.ValidationError) -> str:
    if (count := error.error_count()) > _LISTED:
        return f"{name}: {count} values in it are invalid"
    return "; ".join(f"{'.'.join(map(str, (name, *e['loc'])))}: {e['msg']}" for e in error.errors())


_LISTED = 1000
"""How many problems are listed: each takes a thousand times the memory of the byte it is about."""


async def _decode(request: StarletteRequest, body: bytes) -> Any:
    """Return the body's value; the query parameters when there is no body."""
    if not body:
        return _Fields.of(request.query_params.multi_items()) or _NOTHING
    kind = _content_type(request)
    if _is_json(kind):
        return parse_json(body)
    if kind == "application/x-www-form-urlencoded":  # what curl -d sends, whatever it sends
        return _json_or(body, _form if b"=" in body else lambda b: _text(b, request))
    if kind.startswith("text/"):
        return _text(body, request)
    if not kind:
        return _json_or(body, _text_or_bytes)
    if kind == "multipart/form-data":
        return await _multipart(Request(request.scope, body))
    return body


def _content_type(request: StarletteRequest) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def _is_json(content_type: str) -> bool:
    return content_type == "application/json" or content_type.endswith("+json")


def _json_or(body: bytes, otherwise: Callable[[bytes], Any]) -> Any:
    try:
        return parse_json(body)
    except MalformedJSONError:
        if body.lstrip()[:1] in (b"{", b"["):
            raise
        return otherwise(body)


_MOST_FIELDS = 10_000
"""How many fields a form may have: a field takes many times the memory of its text."""


def _form(body: bytes) -> _Fields:
    try:
        return _Fields.of(form_fields(body, _MOST_FIELDS))
    except ValueError as error:
        raise HTTPError(400, f"malformed form: {error}") from None


async def _multipart(request: Request) -> _Fields:
    """A multipart form's fields, and its files as bytes."""
    size = len(await request.body())
    limits = {"max_files": _MOST_FIELDS, "max_fields": _MOST_FIELDS, "max_part_size": size}
    async with request.form(**limits) as form:
        return _Fields.of(
            [(k, await v.read() if isinstance(v, UploadFile) else v) for k, v in form.multi_items()]
        )


def _text(body: bytes, request: StarletteRequest) -> str:
    charset = "utf-8"
    for parameter in request.headers.get("content-type", "").split(";")[1:]:
        key, _, value = parameter.strip().partition("=")
        charset = value.strip('"') if key.lower() == "charset" else charset
    try:
        return body.decode(codec(charset))
    except (LookupError, ValueError) as error:
        raise HTTPError(400, f"the body is not {charset!r} text: {error}") from None


def _text_or_bytes(body: bytes) -> Any:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body
