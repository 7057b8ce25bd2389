"""An HTTP request becomes the first stage's arguments."""

import dataclasses
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

import pydantic
from starlette.requests import Request as StarletteRequest

from raycompose.errors import HTTPError
from raycompose.request import Request
from raycompose.runner import Arguments
from raycompose.signatures import SCALARS, UNKNOWN, Signature

_NOTHING = object()


@dataclasses.dataclass(frozen=True)
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
        """
        body = await self._read(request)
        if self.signature is not None and self.signature.takes == "request":
            return Request(request.scope, body)
        value = _decode(request, body)
        if value is _NOTHING and self.signature is None:
            raise HTTPError(422, "the pipeline takes one value: send a body or query parameters")
        return self._arguments(value)

    async def _read(self, request: StarletteRequest) -> bytes:
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > self.max_body_bytes:
                raise HTTPError(413, f"the body is longer than {self.max_body_bytes} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    def _arguments(self, value: Any) -> Any:
        signature = self.signature
        if signature is None or not signature.known:
            return Arguments() if value is _NOTHING else value
        if isinstance(value, dict) and self._spreads(value):
            return self._spread(value)
        if value is _NOTHING:
            required = [p.name for p in signature.parameters if _required(p)]
            if required:
                raise HTTPError(422, f"nothing was sent, but {', '.join(required)} is required")
            return Arguments()
        if not signature.parameters:
            return Arguments()
        return self._validated(signature.parameters[0].name, value)

    def _spreads(self, value: dict[str, Any]) -> bool:
        """Whether an object is the arguments rather than the one argument."""
        assert self.signature is not None
        if self.signature.takes_several:
            return True
        only = self.signature.parameters[:1]
        return bool(only) and set(value) == {only[0].name} and only[0].annotation in SCALARS

    def _spread(self, value: dict[str, Any]) -> Arguments:
        assert self.signature is not None
        parameters = self.signature.parameters
        names = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        missing = [p.name for p in parameters if _required(p) and p.name not in value]
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
            problems = "; ".join(
                f"{'.'.join(map(str, (name, *e['loc'])))}: {e['msg']}" for e in error.errors()
            )
            raise HTTPError(422, problems) from error

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


def _required(parameter: Any) -> bool:
    variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    return parameter.default is parameter.empty and not variadic


def _decode(request: StarletteRequest, body: bytes) -> Any:
    """Return the body's value; the query parameters when there is no body."""
    if not body:
        return dict(request.query_params) or _NOTHING
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return _json(body)
    if kind == "application/x-www-form-urlencoded":  # what curl -d sends, whatever it sends
        return _json_or(body, _form if b"=" in body else lambda b: _text(b, request))
    if kind.startswith("text/"):
        return _text(body, request)
    if not kind:
        return _json_or(body, lambda b: _text(b, request))
    if kind == "multipart/form-data":
        raise HTTPError(415, "multipart/form-data: take a starlette Request in the first stage")
    return body


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise HTTPError(400, "malformed JSON: nested too deeply") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError alike
        raise HTTPError(400, f"malformed JSON: {error}") from None


def _json_or(body: bytes, otherwise: Any) -> Any:
    try:
        return _json(body)
    except HTTPError:
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
        return body.decode(charset)
    except (LookupError, UnicodeDecodeError) as error:
        raise HTTPError(400, f"the body is not {charset} text: {error}") from None
