"""The deployment that fronts a pipeline: it runs the graph, for handles and for HTTP."""

import asyncio
import dataclasses
import itertools
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from typing import Any, Generic, TypeVar

from ray.serve import Application
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.types import Scope

from raycompose import _serve
from raycompose.errors import Hinting, HTTPError, RayComposeError, mark
from raycompose.flow.arguments import pack
from raycompose.flow.deadlines import Deadline, earliest
from raycompose.flow.failures import sendable
from raycompose.flow.request import plain
from raycompose.flow.streams import Stream
from raycompose.graph.calling import GENERATORS, returned_generator
from raycompose.graph.context import Context
from raycompose.graph.deadlines import run_before
from raycompose.graph.nodes import Node, stages
from raycompose.graph.opening import OpenGraph, open_graph
from raycompose.graph.sealing import Sealed
from raycompose.http.conversion import Conversion, lists_in
from raycompose.http.decoding import Decoder
from raycompose.http.entering import conversions, entered
from raycompose.http.problems import error_response, problem
from raycompose.http.responses import add_timing, refuse_application, whole
from raycompose.http.settings import Settings
from raycompose.http.streaming import streamed
from raycompose.http.timeouts import requested_deadline

NO_STREAM = "this pipeline does not stream: use client.call(...)"
STREAMS = "this pipeline streams: use client.stream(...)"
_PROCESS = uuid.uuid4().hex[:12]
_requests = itertools.count(1)

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)


class Ingress:
    """Runs a graph. Ray Serve calls it in a replica, ``rc.local`` in this process.

    Args:
        graph: The graph; in a replica as it was composed, and Ray has put handles in the place of
            its applications.
        settings: The edge's settings.
    """

    async def __init__(self, graph: Node | Sealed[Node], settings: Settings) -> None:  # type: ignore[misc]
        self._is_hosted = _serve.is_hosted()
        # A replica may open pipelines by rc.local, too; those it does not front.
        deployed = isinstance(graph, Sealed) and _serve.in_replica()
        self._in_replica = deployed and not self._is_hosted
        root = graph.open() if isinstance(graph, Sealed) else graph
        if isinstance(graph, Sealed) and self._in_replica:
            graph.release()  # it would be in memory twice
        self._settings = settings
        self._timeout_s = settings.timeout_s
        self._any_path = any(stage.signature.takes == "request" for stage in stages(root))
        if _serve.in_replica():
            _serve.receive_any_size()
        self._graph = open_graph(root, _serve.own_user_config())
        convert = Conversion(root.first.signature) if root.first else None
        # What HTTP runs: where no one stage comes first, each branch converts what it is sent.
        self._root = self._graph.root if convert else entered(self._graph.root)
        lists = lists_in([convert] if convert else conversions(self._root))
        self._decode = Decoder(convert, settings.max_body_bytes, lists)
        await self._graph.start()

    def __dir__(self) -> list[str]:
        """The public methods: Ray lists them to whoever calls one that does not exist."""
        return [n for n in super().__dir__() if not n.startswith("_") or n.startswith("__")]

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer one call, by handle or over HTTP; a streaming result is an async generator."""
        if len(args) == 1 and type(args[0]) is StarletteRequest and not kwargs:
            return await self.http(args[0])
        ctx = self._context()
        result = await self._called(args, kwargs, ctx)
        return _items(result, ctx) if isinstance(result, Stream) else result

    async def raycompose_call(self, timeout_s: float | None, /, *args: Any, **kwargs: Any) -> Any:
        """Answer one call, by handle, in so many seconds."""
        ctx = self._context()
        result = await self._called(args, kwargs, ctx, timeout_s)
        if isinstance(result, Stream):  # which the clients refuse, without a look at it
            ctx.abandon()
        return _items(result, ctx) if isinstance(result, Stream) else result

    async def raycompose_stream(
        self, timeout_s: float | None, /, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """Answer one call that wants items, in so many seconds: one, where a branch gives one.

        Raises:
            TypeError: The pipeline never streams.
        """
        if not self._graph.root.streams:
            raise TypeError(NO_STREAM)
        ctx = self._context()
        result = await self._called(args, kwargs, ctx, timeout_s)
        async with aclosing(_items(result, ctx)) as items:
            async for item in items:
                yield item

    async def _called(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        ctx: Context,
        timeout_s: float | None = None,
    ) -> Any:
        limited = timeout_s is not None or self._timeout_s is not None
        deadline = earliest(self._timeout_s, timeout_s) if limited else None
        try:
            result = await run(self._graph.root, pack(args, kwargs), ctx, deadline)
            if isinstance(result, Application):
                refuse_application(result, _giver(self._graph.root, ctx))
        except Exception as error:
            raise (sendable(error) if self._in_replica else error) from error.__cause__
        return result

    async def http(self, request: StarletteRequest) -> Response:
        """Answer an HTTP request, whatever happens."""
        if not self._in_replica:
            _serve.receive_request(request.headers, request.url.path)
        ctx = self._context()
        if not self._in_replica:
            ctx.request_id = request.headers.get("x-request-id", ctx.request_id)
        debug = self._settings.debug

        def report(error: Exception) -> dict[str, Any]:
            return problem(error, ctx, _giver(self._graph.root, ctx), debug=debug)

        def broken(error: Exception) -> dict[str, Any]:
            details = report(error)  # which may name the stage
            ctx.count_failure(error)
            return details

        try:
            self._check_path(request.scope)
            requested = requested_deadline(request.headers, early=self._in_replica)
            deadline = earliest(self._timeout_s, requested)
            value = await (
                self._decode(request)
                if deadline is None
                else run_before(deadline, partial(self._decode, request))
            )
            ctx.http_scope = request.scope
            result = await run(self._root, value, ctx, deadline)
            if isinstance(result, Exception):
                giver = _giver(self._graph.root, ctx)
                raise mark(result, giver, ctx.request_id) if giver else result
        except Exception as error:
            return self._with_headers(error_response(error, report), ctx)
        try:
            if isinstance(result, Stream):
                accept = ",".join(request.headers.getlist("accept"))
                response: Response = await streamed(result, accept, self._settings.stream, broken)
            else:
                response = whole(result)
        except Exception as error:
            response = error_response(error, broken)
        return self._with_headers(response, ctx)

    def _with_headers(self, response: Response, ctx: Context) -> Response:
        if not self._in_replica and ctx.request_id:  # else Ray's proxy adds it
            response.raw_headers.append(
                (b"x-request-id", ctx.request_id.encode("latin-1", "replace"))
            )
        return add_timing(response, ctx)

    def _check_path(self, scope: Scope) -> None:
        """Refuse a path below the pipeline's, unless a stage takes the request, to look at it."""
        path, prefix = scope["path"], scope.get("root_path", "").rstrip("/")
        if not self._any_path and path.removeprefix(prefix) not in ("", "/"):
            raise HTTPError(404, f"the pipeline answers at {prefix or '/'}, and nothing below it")

    async def reconfigure(self, user_config: Mapping[str, Any] | None, rank: Any = None) -> None:
        """Give each fused stage its part of the front deployment's ``user_config``.

        Args:
            user_config: ``{stage name: that stage's user_config}``.
            rank: The replica's; that it is asked for has Ray call this whenever it changes.
        """
        hosts = self._graph.hosts
        for name in user_config or {}:
            if name not in hosts:
                raise RayComposeError(
                    f"user_config names the stage {name!r}, which is not fused into this replica; "
                    f"fused are {', '.join(map(repr, hosts)) or 'none'}"
                )
        for name, host in hosts.items():
            await host.reconfigure((user_config or {}).get(name, host.user_config))

    async def check_health(self) -> None:
        """Ask each fused stage; the replica is as healthy as they are."""
        for host in self._graph.hosts.values():
            await host.check_health()

    async def close(self) -> None:
        """Tear the fused stages down."""
        await self._graph.close()

    def __del__(self) -> Any:
        """Ray Serve calls this, and awaits it, when it stops the replica."""
        awaits = vars(self).get("_graph") and (self._in_replica or self._is_hosted)
        return self.close() if awaits else None

    def _context(self) -> Context:
        ctx = _context(self._settings.pipeline, self._graph)
        # On the local engine; a pipeline inside another goes by the other's.
        if not ctx.request_id and not self._is_hosted:
            ctx.request_id = f"{_PROCESS}-{next(_requests)}"
        return ctx


embedded_timings_s: ContextVar[dict[str, float] | None] = ContextVar(
    "raycompose_embedded_timings_s", default=None
)
"""Where the pipelines that a request calls sum up the seconds of their stages."""

embedded_deadline: ContextVar[Deadline | None] = ContextVar(
    "raycompose_embedded_deadline", default=None
)
"""The deadline of the request that calls pipelines, where the edge has read it."""


class Embedded(Hinting, Generic[In, Out]):
    """A pipeline as a callable inside your own deployment, made by ``app.embed()``.

    ``await embedded(x)`` returns the result; ``async for item in embedded.stream(x)`` the items of
    a pipeline that streams. Fused stages are constructed at the first call, or by
    ``await embedded.start()``.

    Args:
        root: The graph.
        timeout_s: Seconds that a call may take, or ``None``.
    """

    _INSTEAD = dict.fromkeys(
        ("acall", "astream", "call", "remote"),
        "use 'await pipeline(x)', or 'async for item in pipeline.stream(x)' where it streams",
    )

    def __init__(self, root: Node, timeout_s: float | None = None) -> None:
        self._root = root
        self._timeout_s = timeout_s
        self._graphs: dict[asyncio.AbstractEventLoop, OpenGraph] = {}
        self._sealed: Sealed[Node] | None = None

    async def start(self) -> None:
        """Construct the fused stages now rather than at the first call."""
        await self._graph.start()

    async def close(self) -> None:
        """Tear down the fused stages that run on this event loop; a later call starts anew.

        Await it in your deployment's ``async def __del__``, say.
        """
        graph = self._graphs.pop(asyncio.get_running_loop(), None)
        if graph is not None:
            await graph.close()

    @property
    def _graph(self) -> OpenGraph:
        """What runs: on each event loop that calls, its own, until another follows its end."""
        loop = asyncio.get_running_loop()
        if loop not in self._graphs:
            for ended in [other for other in list(self._graphs) if other.is_closed()]:
                self._graphs.pop(ended, None)
            self._graphs[loop] = open_graph(self._root)
        return self._graphs[loop]

    def __reduce__(self) -> tuple[Any, ...]:
        return _unsealed, (self._sealed or Sealed(self._root), self._timeout_s)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pipeline and return its result.

        Raises:
            TypeError: The pipeline streams: iterate ``stream(...)`` instead.
        """
        graph = self._graph
        ctx = _embedded_context(graph)
        result = await self._run(graph.root, pack(args, kwargs), ctx)
        if isinstance(result, Stream):
            ctx.abandon()
            raise TypeError("this pipeline streams: use 'async for item in pipeline.stream(...)'")
        return result

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Run the pipeline and yield its items as they come."""
        if not self._root.streams:
            raise TypeError("this pipeline does not stream: call it instead")
        graph = self._graph
        ctx = _embedded_context(graph)
        result = await self._run(graph.root, pack(args, kwargs), ctx)
        async with aclosing(_items(result, ctx)) as items:
            async for item in items:
                yield item

    async def _run(self, root: Node, value: Any, ctx: Context) -> Any:
        deadline = earliest(self._timeout_s, embedded_deadline.get())
        return await run(root, plain(value), ctx, deadline)


def _unsealed(sealed: Sealed[Node], timeout_s: float | None) -> "Embedded[Any, Any]":
    embedded: Embedded[Any, Any] = Embedded(sealed.open(), timeout_s)
    embedded._sealed = sealed  # noqa: SLF001  # what is sent on is what was composed
    return embedded


def _giver(root: Node, ctx: Context) -> str | None:
    """The stage that gave the result, where that is clear."""
    exits = [stage.name for stage in root.exits]
    ran = [name for name in exits if name in ctx.timings_s] or exits
    return ran[0] if len(ran) == 1 else None


async def run(root: Node, value: Any, ctx: Context, deadline: Deadline | None = None) -> Any:
    """Run a graph for one request; what was started beside it is cancelled if it fails."""
    try:
        if deadline is None:
            result = await root.run(value, ctx)
        else:
            result = await run_before(deadline, partial(root.run, value, ctx))
        if isinstance(result, GENERATORS):
            giver = _giver(root, ctx)
            error = returned_generator(giver or ctx.pipeline)
            raise mark(error, giver, ctx.request_id) if giver else error
        return ctx.given_to(result) if root.starts_beside else result
    except BaseException as error:
        ctx.count_failure(error)
        ctx.abandon()
        raise


async def _items(result: Any, ctx: Context) -> AsyncGenerator[Any, None]:
    """The items of a stream; a result that is none is the one item."""
    if not isinstance(result, Stream):
        yield result
        return
    try:
        async with aclosing(result):
            async for item in result:
                yield item
    except Exception as error:
        ctx.count_failure(error)
        raise


def _embedded_context(graph: OpenGraph) -> Context:
    ctx, shared = _context("embedded", graph), embedded_timings_s.get()
    return ctx if shared is None else dataclasses.replace(ctx, timings_s=shared)


def _context(pipeline: str, graph: OpenGraph) -> Context:
    serve = _serve.request_context()
    ids = (pipeline, serve.request_id, serve.multiplexed_model_id, serve.session_id)
    return Context(*ids, engine=graph.engine)
