"""The answers of a pipeline's own edge, in the FastAPI app of an ingress that embeds pipelines."""

from functools import partial
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raycompose import _serve
from raycompose.errors import TRANSIENT, HTTPError, failed_stage
from raycompose.graph.context import Context
from raycompose.http.ingress import embedded_deadline, embedded_timings_s
from raycompose.http.problems import error_response, problem
from raycompose.http.responses import server_timing
from raycompose.http.timeouts import requested_deadline


def install(app: Any) -> None:
    """Have a FastAPI app answer a stage's errors as a pipeline does by itself.

    A time-out is 504, a lost replica 503, back-pressure 503 with ``Retry-After``, and every other
    error of a stage has its status, as problem details (RFC 9457) with the stage and the request
    id. So has what no handler of the app's own takes; a route's own ``HTTPException`` stays
    FastAPI's. ``Server-Timing`` has the embedded pipelines' stages, and the request's header
    ``x-request-timeout-seconds`` is their deadline. Call it before
    ``@serve.ingress(app)``, which copies the app:

        api = FastAPI()
        rc.fastapi.install(api)

    Args:
        app: The ``FastAPI`` app.
    """
    app.add_exception_handler(HTTPException, _HTTPErrors(app.exception_handlers[HTTPException]))
    # The innermost, so that what it hands over to is what looks for handlers of errors.
    app.user_middleware.append(Middleware(_Edge, handlers=app.exception_handlers))


class _Edge:
    """Middleware that times embedded pipelines, and has errors answered."""

    def __init__(self, app: ASGIApp, handlers: dict[Any, Any]) -> None:
        self._app = app
        if isinstance(app, ExceptionMiddleware):
            # Only now: Ray Serve sets handlers of its own when the replica starts.
            for kind in (*TRANSIENT, HTTPError, *({Exception} - handlers.keys())):
                app.add_exception_handler(kind, _answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        timings_s: dict[str, float] = {}
        embedded_timings_s.set(timings_s)
        if scope["type"] == "http":
            try:
                deadline = requested_deadline(Headers(scope=scope), early=_serve.in_replica())
            except HTTPError as error:
                await (await _answer(Request(scope), error))(scope, receive, send)
                return
            embedded_deadline.set(deadline)

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start" and timings_s:
                timing = server_timing(Context(timings_s=timings_s))
                MutableHeaders(scope=message)["server-timing"] = timing
            await send(message)

        await self._app(scope, receive, timed)


class _HTTPErrors:
    """Answers the ``HTTPException`` of a stage; another is the app's own."""

    def __init__(self, others: Any) -> None:
        self._others = others

    async def __call__(self, request: Request, error: Any) -> Response:
        if failed_stage(error) is not None:
            return await _answer(request, error)
        response: Response = await self._others(request, error)
        return response


async def _answer(request: Request, error: Exception) -> Response:
    serve = _serve.request_context()
    ctx = Context("the route", serve.request_id)
    return error_response(error, partial(problem, ctx=ctx, giver=None, debug=False))
