"""Clients: deploy an application or connect to one, and call it."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import ray
from ray import serve
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from typing_extensions import Self

from raycompose import _serve
from raycompose.client import cluster
from raycompose.client import fast as settings
from raycompose.client.mapping import Calls
from raycompose.client.session import session
from raycompose.compose.pipeline import pipeline
from raycompose.errors import Hinting, RayComposeError, failed_stage
from raycompose.flow import background
from raycompose.flow.calls import items_of, result_of
from raycompose.flow.concurrency import DeadlinePassed, Pulls, before, pulled, within
from raycompose.graph.limits import is_number
from raycompose.http.ingress import NO_STREAM, STREAMS, Ingress

T = TypeVar("T")
logger = logging.getLogger(__name__)
_CALL = Ingress.raycompose_call.__name__
_STREAM = Ingress.raycompose_stream.__name__


class Client(Hinting, ABC):
    """Calls a running pipeline. A context manager that ends what it started.

    The blocking methods work everywhere, inside a running event loop (Jupyter) too, where Ray's
    ``.result()`` raises.
    """

    _INSTEAD = dict.fromkeys(
        ("remote", "result"),
        "call(...) returns the result, await acall(...) does so on an event loop; a deployed "
        "pipeline's client.handle.remote(...) is Ray Serve's",
    )

    @abstractmethod
    async def _call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float | None = None
    ) -> Any:
        """Call the pipeline, on the background loop."""

    @abstractmethod
    def _stream(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float | None = None
    ) -> Any:
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

    def call(self, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """Call the pipeline and block until its result is there.

        Args:
            args: The pipeline's arguments, given to its first stage unchanged.
            timeout_s: The call's deadline in seconds; past it all that runs for it is cancelled.
            kwargs: The pipeline's keyword arguments.

        Raises:
            TimeoutError: There was no result in time; ``rc.failed_stage`` names the stage that ran.
            Exception: What a stage raised, as the user's own type; ``rc.failed_stage`` names it.
        """
        return background.wait(self._call(args, kwargs, _limit(timeout_s)))

    async def acall(self, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """Call the pipeline and await its result; see ``call``."""
        call = self._call(args, kwargs, _limit(timeout_s))
        return await background.result_of(background.submit(call))

    def stream(self, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Iterator[Any]:
        """Call a pipeline that streams and yield its items as they come.

        Leaving the loop early cancels the call. The arguments and the errors are ``call``'s; the
        deadline is the last item's.
        """
        items = Pulls(self._stream(args, kwargs, _limit(timeout_s)))
        try:
            while True:
                try:
                    item = background.wait(items.next())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            background.finish(items.aclose(), None)

    async def astream(
        self, *args: Any, timeout_s: float | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Call a pipeline that streams and yield its items as they come; see ``stream``."""
        items = Pulls(self._stream(args, kwargs, _limit(timeout_s)))
        try:
            while True:
                try:
                    item = await background.result_of(background.submit(items.next()))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            await background.result_of(background.submit(items.aclose()))

    def map(
        self,
        inputs: Iterable[Any],
        *,
        max_concurrency: int = 16,
        progress: bool = False,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Call the pipeline with each input, several at once, and block for the results in order.

        ``client.map(xs)`` is ``[client.call(x) for x in xs]``, sooner.

        Args:
            inputs: Each is given to the pipeline as its one argument.
            max_concurrency: How many calls are under way at once.
            progress: Show a bar, in a terminal or a notebook.
            return_exceptions: Put an input's error in its place rather than raise the first,
                which cancels the other calls, and has the input's index in a note.

        Raises:
            ValueError: ``max_concurrency`` is no whole number of 1 or more.
        """
        calls = Calls(self._once, list(inputs), max_concurrency, return_exceptions)
        if not progress:
            return background.wait(calls.run())
        return calls.watched()

    async def amap(
        self,
        inputs: Iterable[Any],
        *,
        max_concurrency: int = 16,
        progress: bool = False,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Call the pipeline with each input and await the results in order; see ``map``."""
        calls = Calls(self._once, list(inputs), max_concurrency, return_exceptions)
        if not progress:
            return await background.result_of(background.submit(calls.run()))
        return await calls.awatched()

    def _once(self, value: Any) -> Coroutine[Any, Any, Any]:
        return self._call((value,), {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Remote(Client):
    """Calls an application that Ray Serve runs."""

    def __init__(
        self, handle: DeploymentHandle[Any], app_name: str, end: Callable[[], None]
    ) -> None:
        self._handle: Any = handle
        self._app_name = app_name
        self._fronts_pipeline = True  # until it turns out that it does not
        self._end = end
        self._is_closed = False

    async def _call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float | None = None
    ) -> Any:
        self._check_open()
        try:
            if timeout_s is None:
                return await result_of(self._handle.remote(*args, **kwargs))
            call = partial(self._timed, timeout_s, args, kwargs)
            return await within(timeout_s + _GRACE_S, call)
        except DeadlinePassed:
            raise self._late(timeout_s) from None
        except TypeError as error:
            method = self._method_instead(error, kwargs)
        # Of a FastAPI app, which Ray does not call without a method.
        named = self._handle.options(method_name=method)
        kwargs = {key: value for key, value in kwargs.items() if key != "method"}
        return await result_of(named.remote(*args, **kwargs))

    def _method_instead(self, error: TypeError, kwargs: dict[str, Any]) -> Any:
        """The method of a FastAPI app to call, after a call that Ray refused; else the error."""
        if failed_stage(error) is not None:
            raise error
        if _serve.did_stream(error):
            raise TypeError(STREAMS) from None
        if not _serve.answers_http_alone(error):
            raise error
        if "method" not in kwargs:
            raise answers_http(self._app_name, f"send requests to {self.url}") from None
        return kwargs["method"]

    def _check_open(self) -> None:
        if self._is_closed:
            raise RayComposeError(
                f"the client of {self._app_name!r} is closed: open another with rc.run(app) or "
                "rc.connect(name)"
            )

    async def _timed(self, timeout_s: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the pipeline with a deadline, which its replica minds: it knows what runs."""
        if self._fronts_pipeline:
            timed = self._handle.options(method_name=_CALL)
            try:
                return await result_of(timed.remote(timeout_s, *args, **kwargs))
            except RayServeException as error:
                if not _serve.has_no_method(error, _CALL):
                    raise
                self._fronts_pipeline = False
        return await result_of(self._handle.remote(*args, **kwargs))

    def _late(self, timeout_s: float | None) -> TimeoutError:
        return TimeoutError(
            f"the application {self._app_name!r} returned no result within timeout_s={timeout_s:g}"
        )

    async def _stream(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float | None = None
    ) -> Any:
        self._check_open()
        # Called in here, on the background loop, where Ray's router may need a running loop.
        handle = self._handle.options(stream=True)
        if self._fronts_pipeline:
            items = items_of(handle.options(method_name=_STREAM).remote(timeout_s, *args, **kwargs))
        else:
            items = items_of(handle.remote(*args, **kwargs))
        if timeout_s is not None:
            ends = asyncio.get_running_loop().time() + timeout_s + _GRACE_S
            items = pulled(partial(before, ends), items)
        try:
            async with aclosing(items):
                async for item in items:
                    yield item
        except DeadlinePassed:
            raise self._late(timeout_s) from None
        except TypeError as error:
            if failed_stage(error) is not None:
                raise
            if _serve.did_not_stream(error):
                raise TypeError(NO_STREAM) from None
            if _serve.answers_http_alone(error):
                raise answers_http(self._app_name, f"send requests to {self.url}") from None
            raise
        except RayServeException as error:
            if not self._fronts_pipeline or not _serve.has_no_method(error, _STREAM):
                raise
            self._fronts_pipeline = False
            async for item in self._stream(args, kwargs, timeout_s):
                yield item

    @property
    def handle(self) -> DeploymentHandle[Any]:
        """The ``DeploymentHandle`` of the deployment that fronts the pipeline."""
        return self._handle

    @property
    def url(self) -> str | None:
        """Where the pipeline answers HTTP, or ``None`` when it has no route prefix."""
        return cluster.url_of(self._app_name)

    def close(self) -> None:
        """End the application, unless it was deployed anew, or by somebody else.

        With the last application that this process runs end Serve and Ray, if it started them.
        """
        self._is_closed = True
        self._end()

    def __repr__(self) -> str:
        return f"Client({self._app_name!r}, url={self.url!r})"


def answers_http(app: str, instead: str) -> TypeError:
    """Return the error of a call to a FastAPI app that names no method of it."""
    return TypeError(
        f"{app} is a FastAPI app, which answers HTTP: {instead}, or call one of its methods with "
        'call(..., method="...")'
    )


def _limit(timeout_s: Any) -> float | None:
    if timeout_s is not None and not (is_number(timeout_s) and timeout_s >= 0):
        raise ValueError(f"timeout_s={timeout_s!r} must be a number of seconds, or None")
    limit: float | None = timeout_s
    return limit


def run(
    app: Application,
    *,
    name: str = "default",
    route_prefix: str | None = "/",
    fast: bool = False,
    **options: Any,
) -> Client:
    """Deploy an application and return a client; as a context manager it deletes it again.

    In plain Ray Serve: ``handle = serve.run(app, name=name, route_prefix=route_prefix)``. When
    Ray is not running it is started here, with as many logical CPUs as the application asks for.
    Running it again under its name replaces what runs, as a notebook's cell does.

    Args:
        app: A pipeline or any other Serve application; what else ``rc.stage`` takes becomes a
            pipeline of one stage.
        name: The application's name.
        route_prefix: Where it answers HTTP; ``None``: not at all.
        fast: Start Ray with Ray Serve's settings for high throughput: HAProxy, gRPC between
            replicas. On a running cluster a warning says which of them are not in force.
        options: What else ``ray.serve.run`` takes (``logging_config``, ...).

    Raises:
        CompositionError: It cannot be a stage.
        RuntimeError: The deployment failed; Ray's message says why.
    """
    app = app if isinstance(app, Application) else pipeline(app)
    if not ray.is_initialized():
        session.open(cluster.cpus_needed(app), fast=fast)
    if fast and not session.is_fast:
        logger.warning(settings.notice())
    session.start_serve()
    deploy = partial(serve.run, app, name=name, route_prefix=route_prefix, **options)
    handle, end = session.deploy(name, deploy)
    return _Remote(handle, name, end)


def connect(name: str = "default") -> Client:
    """Return a client of an application that is running; closing it leaves the application be.

    In plain Ray Serve: ``serve.get_app_handle(name)``.

    Args:
        name: The application's name.

    Raises:
        ray.serve.exceptions.RayServeException: There is no such application.
        ConnectionError: There is no Ray cluster that answers.
    """
    if not ray.is_initialized():
        ray.init(address=cluster.cluster_to_join("auto"), log_to_driver=False)
    try:
        handle = serve.get_app_handle(name)
    except RayServeException as error:
        runs = ", ".join(map(repr, _serve.applications())) or "none"
        raise RayServeException(
            f"{error} Applications on this cluster: {runs}. For another cluster, call "
            "ray.init(address=...) first, or set RAY_ADDRESS."
        ) from None
    return _Remote(handle, name, lambda: None)


_GRACE_S = 2.0
"""How long past its deadline to wait for the answer that says what was running."""
