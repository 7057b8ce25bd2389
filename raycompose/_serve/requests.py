"""The request that a task answers, and the calls that it makes."""

import asyncio
import contextvars
import itertools
import uuid
from collections.abc import Coroutine, Mapping
from typing import Any, NamedTuple, TypeVar

from ray._raylet import async_task_id  # type: ignore[attr-defined]  # Cython
from ray.serve._private.constants import SERVE_HTTP_REQUEST_ID_HEADER, SERVE_MULTIPLEXED_MODEL_ID
from ray.serve._private.http_util import session_id_from_headers
from ray.serve._private.utils import generate_request_id
from ray.serve.context import (
    _get_in_flight_requests,
    _get_requests_pending_assignment,
    _get_serve_request_context,
    _RequestContext,
    _serve_request_context,
)

from raycompose._serve.replica import LOCAL

T = TypeVar("T")


class RequestContext(NamedTuple):
    """What Ray Serve knows of the request that this task answers."""

    request_id: str
    app_name: str
    multiplexed_model_id: str
    session_id: str


def request_context() -> RequestContext:
    """Return the current request's ids, empty strings outside a replica."""
    request = _get_serve_request_context()
    return RequestContext(
        request.request_id, request.app_name, request.multiplexed_model_id, request.session_id
    )


def receive_request(headers: Mapping[str, str], path: str = "") -> None:
    """Have this task answer a request, of which Ray would have told its replica.

    Args:
        headers: The HTTP request's.
        path: The HTTP request's; empty for a call.
    """
    _serve_request_context.set(
        _RequestContext(
            route=path,
            request_id=headers.get(SERVE_HTTP_REQUEST_ID_HEADER) or generate_request_id(),
            _internal_request_id=uuid.uuid4().hex,
            app_name=LOCAL,
            multiplexed_model_id=headers.get(SERVE_MULTIPLEXED_MODEL_ID, ""),
            session_id=session_id_from_headers(dict(headers)) or "",
            is_http_request=bool(path),
        )
    )


class CallGroup:
    """Calls by handle that are cancelled together, apart from the rest of the request.

    Ray Serve cancels what a request has called when the request is cancelled. A fused stage is a
    part of one, and calls on its own account: Ray finds its calls by an id of their own. Calls
    made inside of ``with group:`` belong to it, and are cancelled when what is inside is.
    """

    __slots__ = ("_context", "_token", "id")

    def __init__(self) -> None:
        self._context = _part_of_request()
        self._context.__dict__["cancel_on_parent_request_cancel"] = True  # the part is ours alone
        self.id = self._context._internal_request_id

    def __enter__(self) -> None:
        self._token = _serve_request_context.set(self._context)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        _serve_request_context.reset(self._token)
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            self.cancel()

    def cancel(self) -> None:
        """Cancel the calls that are still under way."""
        for task in list(_get_requests_pending_assignment(self.id).values()):
            task.get_loop().call_soon_threadsafe(task.cancel)
        for call in list(_get_in_flight_requests(self.id).values()):
            call.cancel()


def _part_of_request() -> Any:
    part = object.__new__(_RequestContext)  # dataclasses.replace() takes ten times as long
    fields = part.__dict__
    fields.update(_get_serve_request_context().__dict__)
    fields["_internal_request_id"] = f"{_PROCESS}-{next(_parts)}"
    return part


_PROCESS = uuid.uuid4().hex
_parts = itertools.count(1)


def detached(coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Start a task whose calls are not cancelled with the request that starts it."""

    def start() -> "asyncio.Task[T]":
        async_task_id.set(None)  # by which Ray itself finds what a task has called
        _serve_request_context.set(_part_of_request())
        return asyncio.ensure_future(coroutine)

    return contextvars.copy_context().run(start)
