"""An HTTP request becomes the first stage's arguments."""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_origin
from urllib.parse import parse_qsl

import pydantic
from ray.exceptions import TaskCancelledError
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest

from raycompose.errors import HTTPError
from raycompose.flow.arguments import Arguments
from raycompose.flow.json import MalformedJSONError, parse_json
from raycompose.flow.request import Request
from raycompose.graph.signatures import UNKNOWN, Signature, is_variadic

_NOTHING = object()


@dataclass(frozen=True)
class Decoder:
    """Decodes requests for a pipeline whose first stage has this signature.

    Args:
        signature: The first stage's; ``None`` when the pipeline begins with a combinator.
        max_body_bytes: The longest body that is read.
    """

    signature: Signature | None
    max_body_bytes: int

    async def __call__(self, request: StarletteRequest) -> Any:
        """Return the value to run the graph with.

        Raises:
            HTTPError: The request is at fault: 400, 413, 415 or 422.
            ClientDisconnect: The sender left before the end of the body.
        """
        body = await self._read(request)
        if self.signature is not None and self.signature.takes == "request":
            return Request(request.scope, body)
        value = _decode(request, body)
        if not body and isinstance(value, dict):  # ?xs=1 is a list of one where xs is a list
            value = {
                k: [v] if k in self._lists and isinstance(v, str) else v for k, v in value.items()
            }
        if value is _NOTHING and self.signature is None:
            raise HTTPError(422, "the pipeline takes one value: send a body or query parameters")
        return self._arguments(value)

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
        if isinstance(value, dict) and self._spreads(value):
            return self._spread(value)
        if value is _NOTHING:
            if required := signature.required:
                raise HTTPError(422, f"nothing was sent, but {', '.join(required)} is required")
            return Arguments()
        if not signature.parameters:
            return Arguments()
        beyond = signature.beyond_one
        if beyond is None or beyond:
            raise HTTPError(422, f"send an object with {', '.join(signature.required)}")
        return self._validated(signature.parameters[0].name, value)

    def _spreads(self, value: dict[str, Any]) -> bool:
        """Whether an object is the arguments rather than the one argument."""
        assert self.signature is not None
        if self.signature.takes_several:
            return True
        only = self.signature.parameters[:1]
        if not only or set(value) != {only[0].name}:
            return False
        # f(n: int) and {"n": 3}: where the whole object is not what f takes, its one member is.
        adapter = self._adapters.get(only[0].name)
        return adapter is not None and not _is_valid(adapter, value)

    def _spread(self, value: dict[str, Any]) -> Arguments:
        assert self.signature is not None
        parameters = self.signature.parameters
        names = {p.name for p in parameters if not is_variadic(p)}
        missing = [name for name in self.signature.required if name not in value]
        unknown = [key for key in value if key not in names]
        if missing:
            raise HTTPError(422, f"missing: {', '.join(missing)}")
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise HTTPError(
                422, f"unknown: {', '.join(unknown)}; known are {', '.join(sorted(names))}"
            )
        validated = {key: self._validated(key, item) for key, item in value.items()}
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
        args = tuple(validated.pop(name) for name in positional if name in validated)
        return Arguments(args, validated)

    def _validated(self, name: str, value: Any) -> Any:
        adapter = self._adapters.get(name)
        if adapter is None:
            return value
        try:
            return adapter.validate_python(value)
        except pydantic.ValidationError as error:
            raise HTTPError(422, _problems(name, error)) from error

    @cached_property
    def _lists(self) -> frozenset[str]:
        parameters = self.signature.parameters if self.signature else ()
        lists = (list, tuple, set)
        return frozenset(
            p.name for p in parameters if (get_origin(p.annotation) or p.annotation) in lists
        )

    @cached_property
    def _adapters(self) -> dict[str, pydantic.TypeAdapter[Any]]:
        """What converts each annotated parameter; made once, not per request."""
        parameters = self.signature.parameters if self.signature else ()
        made = {p.name: _adapter(p.annotation) for p in parameters}
        return {name: adapter for name, adapter in made.items() if adapter is not None}


def _adapter(annotation: Any) -> pydantic.TypeAdapter[Any] | None:
    if annotation in (UNKNOWN, Any, object):
        return None
    try:
        return pydantic.TypeAdapter(annotation)
    except pydantic.PydanticUserError:  # a type that pydantic does not know, as numpy.ndarray
        return None


def _problems(name: str, error: pydantic.ValidationError) -> str:
    if (count := error.error_count()) > _LISTED:
        return f"{name}: {count} values in it are invalid"
    return "; ".join(f"{'.'.join(map(str, (name, *e['loc'])))}: {e['msg']}" for e in error.errors())


_LISTED = 1000
"""How many problems are listed: each takes a thousand times the memory of the byte it is about."""


def _is_valid(adapter: pydantic.TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_python(value)
    except pydantic.ValidationError:
        return False
    return True


def _decode(request: StarletteRequest, body: bytes) -> Any:
    """Return the body's value; the query parameters when there is no body."""
    if not body:
        query: dict[str, list[str]] = {}
        for key, item in request.query_params.multi_items():
            query.setdefault(key, []).append(item)
        return {k: v if len(v) > 1 else v[0] for k, v in query.items()} or _NOTHING
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return parse_json(body)
    if kind == "application/x-www-form-urlencoded":  # what curl -d sends, whatever it sends
        return _json_or(body, _form if b"=" in body else lambda b: _text(b, request))
    if kind.startswith("text/"):
        return _text(body, request)
    if not kind:
        return _json_or(body, _text_or_bytes)
    if kind == "multipart/form-data":
        raise HTTPError(415, "multipart/form-data: take a starlette Request in the first stage")
    return body


def _json_or(body: bytes, otherwise: Any) -> Any:
    try:
        return parse_json(body)
    except MalformedJSONError:
        if body.lstrip()[:1] in (b"{", b"["):
            raise
        return otherwise(body)


def _form(body: bytes) -> Mapping[str, str]:
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict"))
    except ValueError as error:
        raise HTTPError(400, f"malformed form: {error}") from None


def _text(body: bytes, request: StarletteRequest) -> str:
    charset = "utf-8"
    for parameter in request.headers.get("content-type", "").split(";")[1:]:
        key, _, value = parameter.strip().partition("=")
        charset = value.strip('"') if key.lower() == "charset" else charset
    try:
        if codecs.lookup(charset).name in _NO_CHARSETS:
            raise LookupError(f"{charset} is no character set")
        return body.decode(charset)
    except (LookupError, ValueError) as error:
        raise HTTPError(400, f"the body is not {charset!r} text: {error}") from None


_NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "unicode-escape", "utf-7"})
"""Codecs of Python that are slow, or give half of a surrogate pair, which no answer can hold."""


def _text_or_bytes(body: bytes) -> Any:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body
