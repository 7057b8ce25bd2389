"""Clients: run a pipeline, connect to one, or run it in this process, and call it."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request as StarletteRequest
from starlette.types import ASGIApp, Receive, Scope, Send

from raycompose import _serve, portal, starting
from raycompose.compose import Pipeline, pipeline
from raycompose.errors import RayComposeError, failed_stage
from raycompose.fusing import localised
from raycompose.hosting import constructed
from raycompose.ingress import Ingress
from raycompose.streams import cancel, next_of
from raycompose.targets import items_of, result_of


class Client(ABC):
    """Calls a running pipeline. A context manager that ends what it started.

    The blocking methods work everywhere, inside a running event loop (Jupyter) too, where Ray's
    ``.result()`` raises.
    """

    @abstractmethod
    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the pipeline, on the background loop."""

    @abstractmethod
    def _stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give the pipeline's items, as an async generator on the background loop."""

    @abstractmethod
    def close(self) -> None:
        """End what this client started."""

    @property
    def handle(self) -> DeploymentHandle[Any]:
        """The ``DeploymentHandle`` of the deployment that fronts the pipeline."""
        raise RayComposeError("a local client has no DeploymentHandle: use call() or stream()")

    @property
    def url(self) -> str | None:
        """Where the pipeline answers HTTP, or ``None`` when it does not."""
        return None

    @property
    def asgi(self) -> ASGIApp:
        """An ASGI app that answers HTTP as the deployed pipeline would; for ``TestClient``.

        Raises:
            RayComposeError: The client is not a local one: use ``url`` and an HTTP client.
        """
        raise RayComposeError("only rc.local(app) has an ASGI app: send requests to client.url")

    def call(self, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """Call the pipeline and block until its result is there.

        Args:
            args: The pipeline's arguments, given to its first stage unchanged.
            timeout_s: Seconds to wait; past them the call is cancelled.
            kwargs: The pipeline's keyword arguments.

        Raises:
            TimeoutError: There was no result in time.
            Exception: What a stage raised, as the user's own type; ``rc.failed_stage`` names it.
        """
        return portal.wait(_within(timeout_s, self._call(args, kwargs)))

    async def acall(self, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """Call the pipeline and await its result; see ``call``."""
        future = portal.submit(_within(timeout_s, self._call(args, kwargs)))
        return await asyncio.wrap_future(future)

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Call a pipeline that streams and give its items as they come.

        Leaving the loop early cancels the call.
        """
        items = self._stream(args, kwargs)
        try:
            while True:
                try:
                    item = portal.wait(next_of(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            portal.finish(items.aclose(), None)

    async def astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Call a pipeline that streams and give its items as they come; see ``stream``."""
        items = self._stream(args, kwargs)
        try:
            while True:
                try:
                    item = await asyncio.wrap_future(portal.submit(next_of(items)))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            await asyncio.wrap_future(portal.submit(items.aclose()))

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


_NO_STREAM = "this pipeline does not stream: use client.call(...)"


class _Remote(Client):
    """Calls an application that Ray Serve runs."""

    def __init__(
        self, handle: DeploymentHandle[Any], app_name: str, end: Callable[[], None]
    ) -> None:
        self._handle: Any = handle
        self._app_name = app_name
        self._end = end

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return await result_of(self._handle.remote(*args, **kwargs))

    async def _stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Called in here, on the background loop, where Ray's router may need a running loop.
        items = items_of(self._handle.options(stream=True).remote(*args, **kwargs))
        async with aclosing(items):
            try:
                async for item in items:
                    yield item
            except TypeError as error:
                if failed_stage(error) is not None or not _serve.did_not_stream(error):
                    raise
                raise TypeError(_NO_STREAM) from None

    @property
    def handle(self) -> DeploymentHandle[Any]:
        """The ``DeploymentHandle`` of the deployment that fronts the pipeline."""
        return self._handle

    @property
    def url(self) -> str | None:
        """Where the pipeline answers HTTP, or ``None`` when it has no route prefix."""
        return starting.url_of(self._app_name)

    def close(self) -> None:
        """End what this client started: the application, and Serve and Ray if it started them."""
        self._end()
        self._end = lambda: None

    def __repr__(self) -> str:
        return f"Client({self._app_name!r}, url={self.url!r})"


class _Local(Client):
    """Runs a pipeline in this process, without Ray."""

    def __init__(self, app: Pipeline[Any, Any]) -> None:
        self._name = repr(app)
        self._ingress = portal.wait(_open(app))

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = await self._ingress(*args, **kwargs)
        if hasattr(result, "__anext__"):
            await result.aclose()
            raise TypeError("this pipeline streams: use client.stream(...)")
        return result

    async def _stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = await self._ingress(*args, **kwargs)
        if not hasattr(result, "__anext__"):
            raise TypeError(_NO_STREAM)
        async with aclosing(result) as items:
            async for item in items:
                yield item

    @property
    def asgi(self) -> ASGIApp:
        """An ASGI app that answers HTTP as the deployed pipeline would; for ``TestClient``."""
        return self._asgi

    async def _asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        here = asyncio.get_running_loop()
        received: asyncio.Queue[Any] = asyncio.Queue()

        # The pipeline lives on the background loop, the server on its own.
        async def receive_there() -> Any:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(received.get(), here))

        async def send_there(message: Any) -> None:
            sending: Any = send(message)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(sending, here))

        async def answer() -> None:
            response = await self._ingress.http(StarletteRequest(scope, receive_there))
            await response(scope, receive_there, send_there)

        answering = asyncio.wrap_future(portal.submit(answer()))
        listening = asyncio.ensure_future(_receive_all(receive, received))
        try:
            await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():  # else the client has gone
                answering.result()
        finally:
            await cancel(answering, listening)

    def close(self) -> None:
        """Nothing runs outside this process; the objects go with the client."""

    def __repr__(self) -> str:
        return f"Client({self._name}, local)"


def run(
    app: Application, *, name: str = "default", route_prefix: str | None = "/", **options: Any
) -> Client:
    """Deploy an application and return a client; as a context manager it deletes it again.

    In plain Ray Serve: ``handle = serve.run(app, name=name, route_prefix=route_prefix)``. When
    Ray is not running it is started here, with as many logical CPUs as the application asks for.

    Args:
        app: A pipeline or any other Serve application.
        name: The application's name.
        route_prefix: Where it answers HTTP; ``None``: not at all.
        options: What else ``ray.serve.run`` takes (``logging_config``, ...).

    Raises:
        RuntimeError: The deployment failed; Ray's message says why.
    """
    end = contextlib.ExitStack()
    if not ray.is_initialized():
        starting.start_ray(starting.cpus_needed(app))
        end.callback(ray.shutdown)
    if not starting.serve_is_running():
        end.callback(serve.shutdown)
    try:
        handle = serve.run(app, name=name, route_prefix=route_prefix, **options)
    except BaseException:
        end.close()
        raise
    end.callback(serve.delete, name)
    return _Remote(handle, name, end.close)


def connect(name: str = "default") -> Client:
    """Return a client of an application that is running; closing it leaves the application be.

    In plain Ray Serve: ``serve.get_app_handle(name)``.

    Args:
        name: The application's name.

    Raises:
        ray.serve.exceptions.RayServeException: There is no such application.
    """
    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False)
    return _Remote(serve.get_app_handle(name), name, lambda: None)


def local(app: Application) -> Client:
    """Run an application in this process, without a cluster: for unit tests and debuggers.

    Deployments are constructed here and now; values are not copied between stages.

    Args:
        app: A pipeline; another application becomes a pipeline of one stage.
    """
    return _Local(app if isinstance(app, Pipeline) else pipeline(app))


async def _open(app: Pipeline[Any, Any]) -> Ingress:
    ingress: Ingress = await constructed(Ingress, localised(app.root, "local"), app.settings)
    return ingress


async def _within(timeout_s: float | None, coroutine: Any) -> Any:
    try:
        return await asyncio.wait_for(coroutine, timeout_s)
    except asyncio.TimeoutError as error:
        if timeout_s is None or type(error) is not asyncio.TimeoutError:
            raise
        raise TimeoutError(f"the pipeline gave no result within timeout_s={timeout_s:g}") from None


async def _receive_all(receive: Receive, received: "asyncio.Queue[Any]") -> None:
    """Pass the body's messages on, and return when the client disconnects."""
    more = True
    while more:
        message = await receive()
        received.put_nowait(message)
        more = message["type"] == "http.request" and message.get("more_body", False)
    if message["type"] == "http.request":
        message = await receive()  # nothing but the disconnect can follow the body
        received.put_nowait(message)
    if message["type"] != "http.disconnect":
        await asyncio.Event().wait()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
