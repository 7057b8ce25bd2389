"""The local engine: a pipeline in this process, without a cluster, and its ASGI app."""

import asyncio
import atexit
import dataclasses
import inspect
import os
import weakref
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from functools import cache, partial
from typing import Any

from anyio import CancelScope
from ray import serve
from ray.serve import Application
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from raycompose import _serve
from raycompose.client.client import Client, answers_http
from raycompose.compose.applications import with_stand_ins
from raycompose.compose.checks import check_constructor
from raycompose.compose.pipeline import Pipeline, pipeline
from raycompose.errors import RayComposeError
from raycompose.flow import background
from raycompose.flow.concurrency import cancel
from raycompose.flow.deadlines import Deadline
from raycompose.flow.streams import Stream
from raycompose.graph.calling import without_signals
from raycompose.graph.context import Context
from raycompose.graph.deadlines import run_before
from raycompose.graph.hosting import HostedDeployment, construct
from raycompose.graph.nodes import Node, Stage
from raycompose.graph.opening import OpenGraph, connected, open_graph, retarget
from raycompose.graph.signatures import Signature, is_generator
from raycompose.graph.targets import Deployed, Hosted, Inline, Running, Target, Task
from raycompose.http.ingress import NO_STREAM, STREAMS, Ingress
from raycompose.http.settings import Settings


@cache
def _front() -> Any:
    """The deployment where functions run."""
    return serve.deployment(Ingress, max_ongoing_requests=1000)


def local(app: Application, *, apps: Mapping[str, Any] | None = None) -> "LocalClient":
    """Run an application in this process, without a cluster: for unit tests and debuggers.

    Deployments are constructed here and now; values are not copied between stages. Of
    ``@serve.batch`` and ``@serve.multiplexed`` it runs stages and the methods of stages; a function
    of a module that a stage calls by itself keeps what it has in the process, and needs a replica.

    Args:
        app: A pipeline, or a FastAPI ingress (``@serve.ingress``), whose routes ``.asgi`` has and
            whose methods ``call(..., method="...")`` reaches; another application becomes a
            pipeline of one stage.
        apps: What stands in for other applications (``rc.app``), by their names: whatever
            ``rc.stage`` takes. ``"name/deployment"`` is one deployment of an application.

    Raises:
        RayComposeError: The pipeline calls an application that nothing stands in for, and no Ray
            runs on which it could be found; or something stands in for one that it does not call.
    """
    if _is_fastapi(app):
        if apps:
            raise RayComposeError(
                "apps= is for a pipeline's rc.app(...), but this is a FastAPI app"
            )
        check_constructor(app)
        fastapi = background.wait(_open_fastapi(_hosted_ingress(app)))
        _left_open().add(fastapi)
        return LocalClient(fastapi.name, fastapi)
    whole: Pipeline[Any, Any] = app if isinstance(app, Pipeline) else pipeline(app)
    root = with_stand_ins(whole.root, apps or {})
    return LocalClient(repr(whole), background.wait(_open(_hosted(root), whole.settings)))


def _is_fastapi(app: Any) -> bool:
    if isinstance(app, Pipeline) or not isinstance(app, Application):
        return False
    return _serve.is_fastapi_ingress(_serve.deployment_of(app))


class LocalClient(Client):
    """Calls an application that runs in this process, without Ray."""

    def __init__(self, name: str, served: "Ingress | FastAPIApp") -> None:
        self._name = name
        self._ingress = served
        self._asgi = _ASGIBridge(served)
        # What nobody closes ends when nobody can call it any more, by the client or over HTTP.
        self._end = weakref.finalize(self._asgi, _end, served)
        self._end.atexit = False  # the background loop ends with all that runs on it

    async def _call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float | None = None
    ) -> Any:
        self._begin()
        result = await self._ingress.raycompose_call(timeout_s, *args, **kwargs)
        if inspect.isasyncgen(result):
            await result.aclose()
            raise TypeError(STREAMS)
        return result

    async def _stream(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float | None = None
    ) -> Any:
        self._begin()
        async with aclosing(self._ingress.raycompose_stream(timeout_s, *args, **kwargs)) as items:
            async for item in items:
                yield item

    def _begin(self) -> None:
        if not self._end.alive:
            raise RayComposeError(f"{self!r} is closed: open another with rc.local(app)")
        _serve.receive_request({})  # it has an id, as with Ray: pipelines inside have the same

    @property
    def asgi(self) -> ASGIApp:
        """An ASGI app that answers HTTP as the deployed application would; for ``TestClient``."""
        return self._asgi

    def close(self) -> None:
        """Tear down the stages, as Ray Serve does when it stops a replica: ``__del__`` runs."""
        if self._end.detach() is not None:
            self._asgi.closed = True
            background.wait(self._ingress.close())

    def __repr__(self) -> str:
        return f"Client({self._name}, local)"


def _end(served: "Ingress | FastAPIApp") -> None:
    background.finish(served.close(), None)


class FastAPIApp:
    """A FastAPI ingress in this process, with what is bound to it.

    Args:
        graph: Its host, and those of the applications that it is bound to.
    """

    def __init__(self, graph: OpenGraph) -> None:
        self._graph = graph
        self.name, self._host = next(iter(graph.hosts.items()))
        self._asgi: ASGIApp = _serve.asgi_of(self._host.instance)

    async def raycompose_call(self, timeout_s: float | None, /, *args: Any, **kwargs: Any) -> Any:
        """Call one of its methods, as its ``DeploymentHandle`` would, in so many seconds."""
        call = partial(self._called, *args, **kwargs)
        return await (call() if timeout_s is None else run_before(Deadline(timeout_s), call))

    async def _called(self, *args: Any, method: str | None = None, **kwargs: Any) -> Any:
        if method is None:
            raise answers_http(self.name, "use client.asgi")
        if not callable(getattr(self._host.instance, method, None)):
            raise AttributeError(
                f"{self.name!r} has no method {method!r}; it has "
                f"{', '.join(_serve.methods_of(type(self._host.instance)))}"
            )
        called = Running(self._host, method, runs_ahead=False)
        if is_generator(self._host.method(method)):
            return called.stream(args, kwargs, Context())
        return await called.call(args, kwargs, Context())

    async def raycompose_stream(
        self, timeout_s: float | None, /, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """Call one of its methods for its items, as the pipelines' ingress does."""
        call = partial(self._streamed, *args, **kwargs)
        stream = await (call() if timeout_s is None else run_before(Deadline(timeout_s), call))
        async with aclosing(stream) as items:
            async for item in items:
                yield item

    async def _streamed(self, *args: Any, **kwargs: Any) -> Stream[Any]:
        items: AsyncGenerator[Any, None] = await self._called(*args, **kwargs)
        if not isinstance(items, AsyncGenerator):
            raise TypeError(NO_STREAM)
        return Stream(lambda: items, portable=False)

    async def http(self, request: HTTPConnection) -> ASGIApp:
        """Return what answers an HTTP request, or a WebSocket."""
        _serve.receive_request(request.headers, request.url.path)
        return self._asgi

    async def close(self) -> None:
        """Tear it down, and what is bound to it."""
        _left_open().discard(self)
        await self._graph.close()


@cache
def _left_open() -> "weakref.WeakSet[FastAPIApp]":
    """The FastAPI apps that the end of the process closes: theirs is to shut down."""
    apps: weakref.WeakSet[FastAPIApp] = weakref.WeakSet()
    process = os.getpid()

    def close() -> None:
        for app in list(apps) if os.getpid() == process else ():  # not in the child of a fork
            with suppress(Exception):  # nobody is there to be told
                background.submit(app.close()).result(timeout=2)

    atexit.register(close)
    return apps


def _hosted_ingress(app: Application) -> Node:
    hosted = HostedDeployment.of(app)
    hosted = dataclasses.replace(hosted, deployment=_serve.with_own_app(hosted.deployment))
    name = hosted.name
    root = Stage(name, Hosted(hosted, "__call__"), Signature(), name=name)
    return connected(root, HostedDeployment.of)


async def _open_fastapi(root: Node) -> FastAPIApp:
    graph = open_graph(root)
    await graph.start()
    return FastAPIApp(graph)


async def _open(root: Node, settings: Settings) -> Ingress:
    ingress: Ingress = await construct(Ingress, retarget(root, _with_own_batches), settings)
    return ingress


def _with_own_batches(target: Target) -> Target:
    if isinstance(target, Inline) and _serve.is_batched(target.function):
        return Inline(_serve.hosted_definition(target.function, _front(), without_signals))
    return target


def _hosted(root: Node) -> Node:
    """The graph with every stage run in this process.

    Not made on the background loop: Ray pickles what it copies, and pickling waits for a module
    that is being imported, which may be the one that is calling.
    """

    def hosted(target: Target) -> Target:
        if isinstance(target, Deployed) and target.is_bound:
            return Hosted(HostedDeployment.of(target.app), target.method)
        if isinstance(target, Task) and (function := _serve.task_function(target.function)):
            return Inline(function)
        return target

    return connected(retarget(root, hosted), HostedDeployment.of)


class _ASGIBridge:
    """Answers a server's requests on the background loop, where the pipeline lives."""

    def __init__(self, ingress: "Ingress | FastAPIApp") -> None:
        self._ingress = ingress
        self.closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.closed and scope["type"] != "lifespan":
            raise RayComposeError("the client is closed: open another with rc.local(app)")
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        is_socket = scope["type"] == "websocket"
        if is_socket and isinstance(self._ingress, Ingress):  # a pipeline has none
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        here = asyncio.get_running_loop()
        received = _Received()
        sent = False

        async def receive_there() -> Any:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(received.get(), here))

        async def send_there(message: Any) -> None:
            nonlocal sent
            # Known before it is sent: the client may leave at once.
            sent = message["type"] == "http.response.body" and not message.get("more_body", False)
            sent = sent or message["type"] == "websocket.close"
            sending: Any = send(message)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(sending, here))

        async def answer() -> None:
            request: Any = HTTPConnection(scope) if is_socket else Request(scope, receive_there)
            response = await self._ingress.http(request)
            await response(scope, receive_there, send_there)

        answering = asyncio.wrap_future(background.submit(answer()))
        listening = asyncio.ensure_future(_receive_all(receive, received))
        try:
            await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
            # Else the client has left without its answer; who answers a socket is told so.
            if answering.done() or sent or is_socket:
                await asyncio.wait({answering})  # to the end of the response's background tasks
                answering.result()
        finally:
            if is_socket and not answering.done():  # a server that waits no longer has it told
                received.put({"type": "websocket.disconnect", "code": 1006})
                with CancelScope(shield=True):
                    await asyncio.wait({answering}, timeout=_GOODBYE_S)
            await cancel(answering, listening)


_GOODBYE_S = 1.0
"""How long who answers a WebSocket has to end, when the server does not wait for it."""
_DISCONNECTS = ("http.disconnect", "websocket.disconnect")


class _Received:
    """What a server has received for a request, and then that the client has left, for ever."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self._left: Any = None

    def put(self, message: Any) -> None:
        if message["type"] in _DISCONNECTS:
            self._left = message
        self._messages.put_nowait(message)

    async def get(self) -> Any:
        if self._messages.empty() and self._left is not None:
            return self._left
        return await self._messages.get()


async def _receive_all(receive: Receive, received: _Received) -> None:
    """Pass the body's messages on, and return when the client disconnects."""
    more = True
    while more:
        message = await receive()
        received.put(message)
        more = message["type"] in ("websocket.connect", "websocket.receive") or (
            message["type"] == "http.request" and message.get("more_body", False)
        )
    if message["type"] == "http.request":
        message = await receive()  # nothing but the disconnect can follow the body
        received.put(message)
    if message["type"] not in _DISCONNECTS:
        await asyncio.Event().wait()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
