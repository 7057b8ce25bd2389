"""An HTTP request becomes the value that a graph runs on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ray.exceptions import TaskCancelledError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest

from raycompose.errors import HTTPError
from raycompose.flow.charsets import codec
from raycompose.flow.json import MalformedJSONError, parse_json
from raycompose.flow.request import Request
from raycompose.http.conversion import NOTHING, Conversion
from raycompose.http.forms import form_fields


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
    """Decodes requests for a pipeline.

    Args:
        convert: What makes the first stage's arguments; ``None`` when the pipeline begins with a
            combinator, which takes one value as it is.
        max_body_bytes: The longest body that is read.
        lists: The names under which a query or a form gives a list, also of one.
    """

    convert: Conversion | None
    max_body_bytes: int
    lists: frozenset[str] = frozenset()

    async def __call__(self, request: StarletteRequest) -> Any:
        """Return the value to run the graph with.

        Raises:
            HTTPError: The request is at fault: 400, 413 or 422.
            ClientDisconnect: The sender left before the end of the body.
        """
        body = await self._read(request)
        if self.convert is not None and self.convert.signature.takes == "request":
            return Request(request.scope, body, request.receive)
        value = await _decode(request, body)
        if type(value) is _Fields:  # ?xs=1 is a list of one where xs is a list
            value = {
                k: [v] if k in self.lists and not isinstance(v, list) else v
                for k, v in value.items()
            }
        if self.convert is not None:
            try:
                return self.convert(value)
            except HTTPError as error:
                raise hinted(error, value, request) from error.__cause__
        if value is NOTHING:
            raise HTTPError(422, "the pipeline takes one value: send a body or query parameters")
        return value

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


def hinted(error: HTTPError, value: Any, request: StarletteRequest) -> HTTPError:
    """Return why a value does not fit, with how to send JSON where text was sent.

    Args:
        error: Why.
        value: The value.
        request: What it was sent in.
    """
    sent = _content_type(request)
    # JSON is known under what curl sends, and without a type.
    if not isinstance(value, str | bytes) or _is_json(sent) or sent in ("", _FORM):
        return error
    hint = f"the body was sent as {sent}; JSON is sent as application/json"
    return HTTPError(error.status, f"{error.detail} ({hint})")


async def _decode(request: StarletteRequest, body: bytes) -> Any:
    """Return the body's value; the query parameters when there is no body."""
    if not body:
        return _Fields.of(request.query_params.multi_items()) or NOTHING
    kind = _content_type(request)
    if _is_json(kind):
        return parse_json(body)
    if kind == _FORM:  # what curl -d sends, whatever it sends
        return _json_or(body, _form if b"=" in body else lambda b: _text(b, request))
    if kind.startswith("text/"):
        return _text(body, request)
    if not kind:
        return _json_or(body, _text_or_bytes)
    if kind == "multipart/form-data":
        return await _multipart(Request(request.scope, body))
    return body


_FORM = "application/x-www-form-urlencoded"


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
