"""Requests: a Starlette request that crosses processes and whose JSON needs no await."""

import json
from collections.abc import AsyncGenerator, Generator, Mapping, MutableMapping
from typing import Any

import starlette.requests
from starlette.types import Message

from raycompose.flow.json import parse_json

_SENDABLE = ("type", "method", "path", "root_path", "query_string", "headers", "http_version",
             "scheme", "server", "client", "path_params", "asgi")  # fmt: skip


class Request(starlette.requests.Request):
    """The HTTP request, as a stage receives it, in whichever replica it runs.

    The body has been read, so ``json()`` may be used with ``await`` and without. ``body()``,
    ``stream()``, ``form()``, ``headers``, ``query_params`` and ``cookies`` are Starlette's.

    Args:
        scope: The ASGI scope; what cannot be sent between processes is left out.
        body: The whole body.
    """

    def __init__(self, scope: Mapping[str, Any], body: bytes) -> None:
        kept: MutableMapping[str, Any] = {k: scope[k] for k in _SENDABLE if k in scope}
        super().__init__({"type": "http", "headers": [], "query_string": b"", **kept}, _no_more)
        self._body = body

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

    def json(self) -> Any:
        """Return the body's JSON, to be used as it is or awaited.

        Raises:
            ValueError: The body is not JSON; left alone, the request is answered with 400.
        """
        if not hasattr(self, "_value"):
            self._value: Any = parse_json(self._body)
        return _awaitable(self._value)

    async def body(self) -> bytes:
        """Return the body; the JSON text of the value that a stage before this one gave."""
        if hasattr(self, "_value") and not self._body:
            self._body = json.dumps(self._value).encode()
        return self._body

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Give the body, which has been read, in one piece."""
        yield await self.body()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (dict(self.scope), self._body, self.__dict__.get("_value", _ABSENT))


class _Absent:
    """Stands for a body that was not decoded, across processes."""


_ABSENT = _Absent


def _rebuild(scope: dict[str, Any], body: bytes, value: Any) -> Request:
    request = Request(scope, body)
    if value is not _ABSENT:
        request.__dict__["_value"] = value
    return request


async def _no_more() -> Message:
    return {"type": "http.disconnect"}


class _Now:
    """Makes a JSON value awaitable; awaiting gives the plain value."""

    plain: Any

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()  # __await__ must be a generator; this one does not wait
        return self.plain

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain, (self.plain,)


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


class _Other(_Now):
    """``true``, ``false`` and ``null``, which Python does not let be subclassed."""

    def __bool__(self) -> bool:
        return bool(self.plain)

    def __eq__(self, other: object) -> bool:
        return bool(self.plain == other)

    def __hash__(self) -> int:
        return hash(self.plain)

    def __repr__(self) -> str:
        return repr(self.plain)


_KINDS: dict[type, Any] = {dict: _Dict, list: _List, str: _Str, int: _Int, float: _Float}


def _awaitable(value: Any) -> Any:
    kind = _KINDS.get(type(value))
    made = kind(value) if kind else _Other()
    made.plain = value
    return made


def _plain(value: Any) -> Any:
    return value
