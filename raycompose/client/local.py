"""The local engine: a pipeline in this process, without a cluster, and its ASGI app."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray.serve import Application
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from raycompose import _serve
from raycompose.client.client import Client
from raycompose.compose.pipeline import Pipeline, pipeline
from raycompose.flow import concurrency
from raycompose.flow.concurrency import cancel
from raycompose.graph.hosting import HostedDeployment, construct
from raycompose.graph.nodes import Node
from raycompose.graph.opening import retarget
from raycompose.graph.targets import Deployed, Hosted, Inline, Target, Task
from raycompose.http.ingress import Ingress


def local(app: Application) -> "LocalClient":
    """Run an application in this process, without a cluster: for unit tests and debuggers.

    Deployments are constructed here and now; values are not copied between stages.

    Args:
        app: A pipeline; another application becomes a pipeline of one stage.
    """
    return LocalClient(app if isinstance(app, Pipeline) else pipeline(app))


class LocalClient(Client):
    """Calls a pipeline that runs in this process, without Ray."""

    def __init__(self, app: Pipeline[Any, Any]) -> None:
        self._name = repr(app)
        self._ingress = concurrency.wait(_open(app))
        self._asgi = _ASGIBridge(self._ingress)

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = await self._ingress(*args, **kwargs)
        if hasattr(result, "__anext__"):
            await result.aclose()
            raise TypeError("this pipeline streams: use client.stream(...)")
        return result

    async def _stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        async with aclosing(self._ingress.raycompose_stream(*args, **kwargs)) as items:
            async for item in items:
                yield item

    @property
    def asgi(self) -> ASGIApp:
        """An ASGI app that answers HTTP as the deployed pipeline would; for ``TestClient``."""
        return self._asgi

    def close(self) -> None:
        """Nothing runs outside this process; the objects go with the client."""

    def __repr__(self) -> str:
        return f"Client({self._name}, local)"


async def _open(app: Pipeline[Any, Any]) -> Ingress:
    ingress: Ingress = await construct(Ingress, _localised(app.root, "local"), app.settings)
    return ingress


def _localised(root: Node, app_name: str) -> Node:
    """The graph with every stage run in this process."""
    made: dict[HostedDeployment, HostedDeployment] = {}

    def here(hosted: HostedDeployment) -> HostedDeployment:
        if hosted not in made:
            arguments = _serve.with_local_handles(hosted.arguments, app_name)
            made[hosted] = replace(hosted, arguments=arguments)
        return made[hosted]

    def localised(target: Target) -> Target:
        if isinstance(target, Deployed):
            return Hosted(here(HostedDeployment.of(target.app)), target.method)
        if isinstance(target, Hosted):
            return Hosted(here(target.hosted), target.method)
        if isinstance(target, Task) and (function := _serve.task_function(target.function)):
            return Inline(function)
        return target

    return retarget(root, localised)


class _ASGIBridge:
    """Answers a server's requests on the background loop, where the pipeline lives."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
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
            sending: Any = send(message)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(sending, here))

        async def answer() -> None:
            response = await self._ingress.http(Request(scope, receive_there))
            await response(scope, receive_there, send_there)

        answering = asyncio.wrap_future(concurrency.submit(answer()))
        listening = asyncio.ensure_future(_receive_all(receive, received))
        try:
            await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done() or sent:  # else the client has left without its answer
                await answering  # to the end of the response's background tasks
        finally:
            await cancel(answering, listening)


class _Received:
    """What a server has received for a request, and then that the client has left, for ever."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self._left: Any = None

    def put(self, message: Any) -> None:
        if message["type"] == "http.disconnect":
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
        more = message["type"] == "http.request" and message.get("more_body", False)
    if message["type"] == "http.request":
        message = await receive()  # nothing but the disconnect can follow the body
        received.put(message)
    if message["type"] != "http.disconnect":
        await asyncio.Event().wait()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
