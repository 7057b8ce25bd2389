"""The deployment that fronts a pipeline: it runs the graph, for handles and for HTTP."""

import asyncio
import dataclasses
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from starlette.requests import Request as StarletteRequest
from starlette.responses import Response

from raycompose import _serve
from raycompose.errors import RayComposeError
from raycompose.flow.arguments import pack
from raycompose.flow.failures import sendable
from raycompose.flow.request import Request
from raycompose.flow.streams import Stream
from raycompose.graph.branches import Each
from raycompose.graph.calling import refuse_generator
from raycompose.graph.context import Context
from raycompose.graph.limits import is_count
from raycompose.graph.nodes import Node
from raycompose.graph.opening import OpenGraph, open_graph
from raycompose.graph.sealing import Sealed
from raycompose.graph.sequences import Sequence
from raycompose.graph.wrappers import Gated, Limited, Named
from raycompose.http.decoding import Decoder
from raycompose.http.responses import error_response, respond

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)


@dataclass(frozen=True)
class Settings:
    """What ``.options(...)`` sets of the edge rather than of the deployment.

    Args:
        pipeline: The front deployment's name.
        debug: Show an internal error's message and traceback to HTTP clients.
        max_body_bytes: The longest request body that is accepted.
    """

    pipeline: str = "Pipeline"
    debug: bool = False
    max_body_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        if not isinstance(self.debug, bool):
            raise ValueError(f"debug={self.debug!r} must be True or False")
        if not is_count(self.max_body_bytes):
            raise ValueError(
                f"max_body_bytes={self.max_body_bytes!r} must be a whole number, 1 or more"
            )


class Ingress:
    """Runs a graph. Ray Serve calls it in a replica, ``rc.local`` in this process.

    Args:
        graph: The graph; in a replica as it was composed, and Ray has put handles in the place of
            its applications.
        settings: The edge's settings.
    """

    async def __init__(self, graph: Node | Sealed[Node], settings: Settings) -> None:  # type: ignore[misc]
        root = graph.open() if isinstance(graph, Sealed) else graph
        if isinstance(graph, Sealed) and _serve.in_replica() and not _serve.is_hosted():
            graph.release()  # it would be in memory twice
        self._settings = settings
        first, signature = _leading(root), root.first.signature if root.first else None
        self._decode = Decoder(signature, settings.max_body_bytes, isinstance(first, Each))
        self._is_hosted = _serve.is_hosted()
        self._in_replica = _serve.in_replica() and not self._is_hosted
        self._graph = open_graph(root, _serve.own_user_config())
        await self._graph.start()

    def __dir__(self) -> list[str]:
        """The public methods: Ray lists them to whoever calls one that does not exist."""
        return [n for n in super().__dir__() if not n.startswith("_") or n.startswith("__")]

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer one call, by handle or over HTTP; a streaming result is an async generator."""
        if len(args) == 1 and type(args[0]) is StarletteRequest and not kwargs:
            return await self.http(args[0])
        ctx = self._context()
        try:
            result = await run(self._graph.root, pack(args, kwargs), ctx)
        except Exception as error:
            raise (sendable(error) if self._in_replica else error) from error.__cause__
        return _generator(result, ctx) if isinstance(result, Stream) else result

    async def http(self, request: StarletteRequest) -> Response:
        """Answer an HTTP request, whatever happens."""
        if not self._in_replica:
            _serve.receive_request(request.headers, request.url.path)
        ctx = self._context()
        try:
            value = await self._decode(request)
            ctx.http_scope = Request(request.scope, b"").scope
            result = await run(self._graph.root, value, ctx)
            return await respond(result, request, ctx, debug=self._settings.debug)
        except Exception as error:
            return error_response(error, ctx, debug=self._settings.debug)

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
        return _context(self._settings.pipeline, self._graph)


embedded_timings_s: ContextVar[dict[str, float] | None] = ContextVar(
    "raycompose_embedded_timings_s", default=None
)
"""Where the pipelines that a request calls sum up the seconds of their stages."""


class Embedded(Generic[In, Out]):
    """A pipeline as a callable inside your own deployment, made by ``app.embed()``.

    ``await embedded(x)`` gives the result; ``async for item in embedded.stream(x)`` the items of
    a pipeline that streams. Fused stages are constructed at the first call, or by
    ``await embedded.start()``.

    Args:
        root: The graph.
    """

    def __init__(self, root: Node) -> None:
        self._root = root
        self._graphs: weakref.WeakKeyDictionary[Any, OpenGraph] = weakref.WeakKeyDictionary()

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
        """What runs: on each event loop that calls, its own."""
        loop = asyncio.get_running_loop()
        if loop not in self._graphs:
            self._graphs[loop] = open_graph(self._root)
        return self._graphs[loop]

    @cached_property
    def _sealed(self) -> Sealed[Node]:
        return Sealed(self._root)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unsealed, (self._sealed,)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pipeline and return its result.

        Raises:
            TypeError: The pipeline streams: iterate ``stream(...)`` instead.
        """
        graph = self._graph
        result = await run(graph.root, pack(args, kwargs), _embedded_context(graph))
        if isinstance(result, Stream):
            raise TypeError("this pipeline streams: use 'async for item in pipeline.stream(...)'")
        return result

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Run the pipeline and give its items as they come."""
        graph = self._graph
        ctx = _embedded_context(graph)
        result = await run(graph.root, pack(args, kwargs), ctx)
        if not isinstance(result, Stream):
            raise TypeError(
                f"this pipeline does not stream, it gave {type(result).__name__}: call it instead"
            )
        async with aclosing(_generator(result, ctx)) as items:
            async for item in items:
                yield item


def _leading(node: Node) -> Node:
    """The stage or the combinator that a graph begins with."""
    while isinstance(node, Sequence | Named | Limited | Gated):
        node = node.children[0]
    return node


def _unsealed(sealed: Sealed[Node]) -> "Embedded[Any, Any]":
    embedded: Embedded[Any, Any] = Embedded(sealed.open())
    vars(embedded)["_sealed"] = sealed  # what is sent on is what was composed
    return embedded


async def run(root: Node, value: Any, ctx: Context) -> Any:
    """Run a graph for one request; what was started beside it is cancelled if it fails."""
    try:
        result = await root.run(value, ctx)
        refuse_generator(result, ctx.pipeline)
        return result
    except BaseException as error:
        ctx.count_failure(error)
        ctx.abandon()
        raise


async def _generator(stream: Stream[Any], ctx: Context) -> Any:
    """What Ray Serve takes for a streaming result: an async generator."""
    try:
        async with aclosing(stream):
            async for item in stream:
                yield item
    except Exception as error:
        ctx.count_failure(error)
        raise


def _embedded_context(graph: OpenGraph) -> Context:
    ctx, shared = _context("embedded", graph), embedded_timings_s.get()
    return ctx if shared is None else dataclasses.replace(ctx, timings_s=shared)


def _context(pipeline: str, graph: OpenGraph) -> Context:
    serve = _serve.request_context()
    ids = (pipeline, serve.request_id, serve.multiplexed_model_id)
    return Context(*ids, engine=graph.engine)
