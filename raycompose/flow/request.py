"""Requests: a Starlette request that crosses processes and whose JSON needs no await."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any

import starlette.requests
from pydantic_core import SchemaSerializer, core_schema
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException
from starlette.types import Message, Receive

from raycompose.errors import HTTPError
from raycompose.flow.charsets import codec
from raycompose.flow.json import parse_json
from raycompose.flow.structures import leaves, rebuilt

_SENDABLE = ("type", "method", "path", "root_path", "query_string", "headers", "http_version",
             "scheme", "server", "client", "path_params", "asgi")  # fmt: skip


def sendable(scope: Mapping[str, Any]) -> dict[str, Any]:
    """Return what can be sent on of an ASGI scope."""
    return {key: scope[key] for key in _SENDABLE if key in scope}


class Request(starlette.requests.Request):
    """The HTTP request, as a stage receives it, in whichever replica it runs.

    The body has been read, so ``json()`` may be used with ``await`` and without. ``body()``,
    ``stream()``, ``form()``, ``headers``, ``query_params`` and ``cookies`` are Starlette's.

    Args:
        scope: The ASGI scope; what cannot be sent between processes is left out.
        body: The whole body.
        receive: What tells that the client has left, where that can be known; elsewhere the
            stage is cancelled when it leaves.
    """

    def __init__(
        self, scope: Mapping[str, Any], body: bytes, receive: Receive | None = None
    ) -> None:
        whole = {"type": "http", "headers": [], "query_string": b"", **sendable(scope)}
        super().__init__(whole, receive or _nothing)
        self._body = body
        self.unawaited: set[int] = set()
        """The ids of what ``json()`` gave and nobody has awaited."""

    @classmethod
    async def read(cls, request: starlette.requests.Request) -> "Request":
        """Return a Starlette request with its body read."""
        return request if isinstance(request, cls) else cls(request.scope, await request.body())

    @classmethod
    def of(cls, value: Any, scope: Mapping[str, Any] | None) -> "Request":
        """Return a request whose JSON body is ``value``; a request is returned as it is.

        Args:
            value: A mapping becomes the body; anything else becomes ``{"data": value}``.
            scope: The original request's, for headers, query and path; ``None`` without one.
        """
        if isinstance(value, cls):
            return value
        made = cls(scope or {"method": "POST", "path": "/"}, b"")
        made._value = dict(value) if isinstance(value, Mapping) else {"data": value}
        return made

    def with_header(self, name: str, value: str) -> "Request":
        """Return the request with a header of that value, in the place of any it has."""
        key = name.lower().encode()
        others = [header for header in self.scope["headers"] if header[0] != key]
        headers = [*others, (key, value.encode())]
        made = Request({**self.scope, "headers": headers}, self._body, self._receive)
        if hasattr(self, "_value"):
            made._value = self._value
        return made

    def json(self) -> Any:
        """Return the body's JSON, to be used as it is or awaited.

        Raises:
            ValueError: The body is not JSON (``json.JSONDecodeError``); left alone, the request
                is answered with 400.
        """
        if not hasattr(self, "_value"):
            self._value: Any = parse_json(self._body)
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # in a thread nobody can await it
            return _copied(self._value)
        made = _KINDS.get(type(self._value), _Constant)(self._value)
        made.unawaited = self.unawaited
        self.unawaited.add(id(made))
        return made

    async def body(self) -> bytes:
        """Return the body; the JSON text of the value that a stage before this one gave."""
        if hasattr(self, "_value") and not self._body:
            self._body = json.dumps(self._value).encode()
        return self._body

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Give the body, which has been read, in one piece, and end as Starlette's does: empty."""
        yield await self.body()
        yield b""

    async def _get_form(self, **limits: Any) -> FormData:  # behind form(), which is Starlette's
        try:
            if self._form is None:
                self._form = await super(Request, self._with_known_charset())._get_form(**limits)
            return self._form
        except (MultiPartException, FormParserError) as error:
            raise HTTPError(400, f"malformed form: {error}") from None

    def _with_known_charset(self) -> "Request":
        """The request, with a charset of a multipart form that Python looks up without a trace."""
        kind, options = parse_options_header(self.headers.get("content-type"))
        if kind != b"multipart/form-data" or b"charset" not in options:
            return self
        try:
            charset = codec(options[b"charset"].decode("latin-1"))
        except LookupError:
            charset = "latin-1"  # what Starlette takes then
        boundary = re.sub(r'(["\\\\])', r"\\\1", options.get(b"boundary", b"").decode("latin-1"))
        return self.with_header(
            "content-type", f'multipart/form-data; boundary="{boundary}"; charset={charset}'
        )

    @property
    def sent(self) -> tuple[dict[str, Any], bytes, Any]:
        """What of the request travels: its scope, its body, and the body's value if it has one."""
        return dict(self.scope), self._body, self.__dict__.get("_value", _ABSENT)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self.sent


def settled(result: Any, args: tuple[Any, ...]) -> Any:
    """Return a stage's result with plain values for the awaitable JSON of its request, if any."""
    if not args or type(args[0]) is not Request or not args[0].unawaited:
        return result
    return rebuilt(result, {id(part): part.plain() for part in leaves(result, (_Now,))})


def plain(value: Any) -> Any:
    """Return a value, the awaitable JSON of a request without the awaiting."""
    return value.plain() if isinstance(value, _Now) else value


class _Absent:
    """Stands for a body that was not decoded, across processes."""


_ABSENT = _Absent


def _rebuild(scope: dict[str, Any], body: bytes, value: Any) -> Request:
    request = Request(scope, body)
    if value is not _ABSENT:
        request.__dict__["_value"] = value
    return request


async def _nothing() -> Message:
    await asyncio.Event().wait()  # nothing comes after the body
    return {"type": "http.disconnect"}


_SERIALIZER = SchemaSerializer(
    core_schema.any_schema(
        serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.plain())
    )
)  # by which pydantic writes a value of ours in a field of type Any


class _Now:
    """Makes a JSON value awaitable; awaiting, and pickling, give the plain value."""

    __slots__ = ()
    unawaited: set[int]  # the request's, without the request: what it says is nobody's to show

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()  # __await__ must be a generator; this one does not wait
        self.unawaited.discard(id(self))
        return self.plain()

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.plain(),)

    def plain(self) -> Any:
        """Return the value without the awaiting, as it is now."""
        base: Any = type(self).__mro__[2]  # behind the awaitable kind and _Now: dict, list, ...
        return base(self)


class _Dict(_Now, dict):  # type: ignore[type-arg]
    pass


class _List(_Now, list):  # type: ignore[type-arg]
    pass


class _Str(_Now, str):
    pass


class _Int(_Now, int):
    pass


class _Float(_Now, float):
    pass


class _Constant(_Now):
    """``true``, ``false`` and ``null``, which Python does not let be subclassed."""

    __slots__ = ("_value", "unawaited")
    __pydantic_serializer__ = _SERIALIZER

    def __init__(self, value: Any) -> None:
        self._value = value

    def plain(self) -> Any:
        """Return the value."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return bool(self._value == other)

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return repr(self._value)


_KINDS: dict[type, Any] = {dict: _Dict, list: _List, str: _Str, int: _Int, float: _Float}
ENCODERS: dict[Any, Callable[[Any], Any]] = {_Constant: _Constant.plain}
"""What gives the plain value of what an encoder does not know."""


def _copied(value: Any) -> Any:
    """A copy of an object or a list, so that changing it does not change the request."""
    return value.copy() if type(value) in (dict, list) else value


def _same(value: Any) -> Any:
    return value
