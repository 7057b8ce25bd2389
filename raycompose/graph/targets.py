"""What a stage runs, behind one calling convention: that is all the engines differ in."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from typing_extensions import override

from raycompose import _serve
from raycompose.errors import LostAnswerError, RayComposeError
from raycompose.flow.calls import ended, items_of, result_of
from raycompose.flow.concurrency import run_ahead
from raycompose.flow.failures import users_error
from raycompose.flow.request import settled
from raycompose.flow.weights import HEAVY_BYTES
from raycompose.graph.calling import (
    GENERATORS,
    Args,
    Kwargs,
    call_function,
    iterate_function,
    returned_generator,
)
from raycompose.graph.context import Context
from raycompose.graph.hosting import Host, HostedDeployment, Place
from raycompose.graph.signatures import is_async
from raycompose.graph.transport import Transport, Way

_END = object()
_AHEAD = 128
"""How many items a stream runs ahead before it lends its place while they are taken."""


class Target:
    """Something that a stage calls. Targets are immutable and picklable."""

    remote: ClassVar[bool] = False
    """Whether the call leaves this process, so that its arguments must be picklable."""
    portable: ClassVar[bool] = True
    """Whether a stream that calls it may be iterated in another replica."""
    starts: ClassVar[bool] = False
    """Whether ``start`` may be called: it has a result that can be referred to at once."""
    takes_object_refs: ClassVar[bool] = False
    """Whether values reach it, and leave it, as ``ObjectRef``s that the caller never fetches."""

    @property
    def deployment(self) -> Any:
        """What tells the deployment whose places its calls take from others; ``None``: none."""
        return None

    def call(self, args: Args, kwargs: Kwargs, ctx: Context) -> Awaitable[Any]:
        """Call it and wait for its result. Cancelling the wait cancels the call."""
        raise NotImplementedError

    def stream(self, args: Args, kwargs: Kwargs, ctx: Context) -> AsyncGenerator[Any, None]:
        """Call it and give its items as they come. Closing the generator cancels the call."""
        raise NotImplementedError

    async def start(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        """Call it and give an ``ObjectRef`` or a future of its result at once."""
        raise NotImplementedError

    async def leave(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        """Call it and wait until it has ended; give its result, or the ``ObjectRef`` of it.

        For a caller that only hands it on, to what Ray fetches it for.
        """
        return await self.call(args, kwargs, ctx)


@dataclass(frozen=True)
class Deployed(Target):
    """A method of a Serve deployment in its own replicas.

    Args:
        app: The bound deployment. In a replica Ray has put its ``DeploymentHandle`` in its place.
            Or the handle of a deployment that runs already.
        method: The method's name.
        may_call: Whether the method may call others through Ray.
    """

    remote: ClassVar[bool] = True
    starts: ClassVar[bool] = True
    app: Application | DeploymentHandle[Any]
    method: str
    may_call: bool = True

    @property
    def is_bound(self) -> bool:
        """Whether it is a deployment of the pipeline's own, which is not deployed yet."""
        return isinstance(self.app, Application)

    @property
    @override
    def deployment(self) -> Any:
        handle: Any = self.app
        is_handle = isinstance(handle, DeploymentHandle)
        return (handle.app_name, handle.deployment_name) if is_handle else handle

    @cached_property
    def _handle(self) -> Any:
        handle: Any = self.app
        if isinstance(handle, Application):
            raise RayComposeError(
                f"{_serve.deployment_of(handle).name!r} is a deployment, which runs only inside of "
                "Serve or of rc.local: give the embedded pipeline to a deployment of your own, "
                "Api.bind(app.embed()), and call it there; rc.local(app) calls it without Serve"
            )
        if _serve.in_replica() and not isinstance(handle, _serve.HandleHere):
            # A stream brings its handle along with every request, and each would get a router.
            key = (handle.app_name, handle.deployment_name)
            if key not in _shared:
                own = _serve.receives_any_size()  # this is the pipeline's own replica
                _shared[key] = _serve.on_this_loop(handle) if own else handle
            handle = _shared[key]
        return handle.options(method_name=self.method)

    @cached_property
    def _streaming(self) -> Any:
        streaming = self._handle.options(stream=True)
        # A replica that streams from itself by Ray's default transport may hang (seen in 2.60).
        return _serve.by_grpc(streaming) if _serve.is_own_deployment(streaming) else streaming

    @cached_property
    def _handles(self) -> Mapping[Way, Any]:
        return {
            "default": self._handle,
            "by reference": _serve.by_reference(self._handle),
            "by grpc": _serve.by_grpc(self._handle),
        }

    @cached_property
    def _key(self) -> str:
        return repr((self.deployment, self.method))

    def _remote(self, way: Way, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        return _routed(self._handles[way], ctx).remote(*args, **kwargs)

    def _transport(self, ctx: Context) -> Transport:
        return ctx.engine.state(self._key, partial(Transport, self.may_call))

    @override
    async def call(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        transport = self._transport(ctx)
        response = self._remote(transport.way(args, kwargs), args, kwargs, ctx)
        try:
            result = await result_of(response)
        except LostAnswerError:
            transport.distrust()
            raise
        except Exception as error:
            if not _serve.is_too_large(error):
                raise
            result = await result_of(self._remote("by reference", args, kwargs, ctx))
        transport.learn(result)
        return result

    @override
    async def leave(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        transport = self._transport(ctx)
        if not transport.is_heavy:
            return await self.call(args, kwargs, ctx)
        response = self._remote("by reference", args, kwargs, ctx)
        ref = await ended(response)
        if _serve.size(ref) >= HEAVY_BYTES:
            return ref
        result = await result_of(response)  # small for once, or an error
        transport.learn(result)
        return result

    @override
    async def start(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        response = self._remote("by reference", args, kwargs, ctx)
        ctx.on_failure(partial(_serve.cancel, response))
        ref = await _serve.object_ref(response)
        return ctx.start(result_of(response)) if ref is None else ref

    @override
    async def stream(self, args: Args, kwargs: Kwargs, ctx: Context) -> AsyncGenerator[Any, None]:
        items = items_of(_routed(self._streaming, ctx).remote(*args, **kwargs))
        async with aclosing(items):
            async for item in items:
                yield item


_shared: dict[tuple[str, str], Any] = {}
"""This replica's handle of each deployment that it calls, by application and name."""


def _routed(handle: Any, ctx: Context) -> Any:
    """The handle, with the ids that routers go by, which Ray Serve does not pass on by itself."""
    model_id, session_id = ctx.multiplexed_model_id, ctx.session_id
    if not model_id and not session_id:
        return handle
    return handle.options(multiplexed_model_id=model_id, session_id=session_id)


@dataclass(frozen=True)
class Inline(Target):
    """A Python callable, run where the pipeline runs. A ``def`` runs in a thread, as in Ray Serve.

    Args:
        function: Any callable that pickles by value or by name.
    """

    function: Callable[..., Any]

    @cached_property
    def _on_loop(self) -> bool:
        return is_async(self.function)

    @override
    def call(self, args: Args, kwargs: Kwargs, ctx: Context) -> Awaitable[Any]:
        return call_function(self.function, args, kwargs, on_loop=self._on_loop)

    @override
    def stream(self, args: Args, kwargs: Kwargs, ctx: Context) -> AsyncGenerator[Any, None]:
        return iterate_function(self.function, args, kwargs, on_loop=self._on_loop)


@dataclass(frozen=True)
class Hosted(Target):
    """A method of a deployment that is to run in this process: fused, or on the local engine.

    An engine calls it once it is opened, as ``Running``.

    Args:
        hosted: The deployment; stages of one deployment share it.
        method: The method's name.
    """

    portable: ClassVar[bool] = False
    hosted: HostedDeployment
    method: str

    @property
    @override
    def deployment(self) -> Any:
        return self.hosted


@dataclass(frozen=True)
class Running(Target):
    """A method of a deployment that runs in this process.

    Args:
        host: The deployment's user code.
        method: The method's name.
        runs_ahead: Whether a stream goes on producing while its items wait. Another stage of the
            same deployment may need the place that the stream holds to take them.
    """

    portable: ClassVar[bool] = False
    starts: ClassVar[bool] = True
    host: Host
    method: str
    runs_ahead: bool

    @property
    @override
    def deployment(self) -> Any:
        return self.host

    @cached_property
    def _function(self) -> tuple[Callable[..., Any], bool]:
        """The instance's method, which is there by now, and whether it is a coroutine."""
        function = self.host.method(self.method)
        return function, is_async(function)

    @override
    async def call(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        if not self.host.acquire_nowait():
            await self.host.acquire()
        return await self._finished(args, kwargs)

    @override
    async def start(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        # The place is taken here, in line, not by a task that runs after whoever waits for it.
        await self.host.acquire()
        return ctx.start(self._finished(args, kwargs))

    async def _finished(self, args: Args, kwargs: Kwargs) -> Any:
        try:
            function, on_loop = self._function
            with _serve.CallGroup():
                result = await call_function(function, args, kwargs, on_loop=on_loop)
        finally:  # not when its future is cancelled: its own ``finally`` has yet to run then
            self.host.release()
        if isinstance(result, GENERATORS):
            raise returned_generator(self.method)
        return settled(result, args)

    @override
    async def stream(self, args: Args, kwargs: Kwargs, ctx: Context) -> AsyncGenerator[Any, None]:
        place = Place(self.host)
        items = self._items(args, kwargs, place)
        if self.runs_ahead:  # as Ray Serve does between replicas
            items = run_ahead(items, _AHEAD, place.lend)
        async with aclosing(items):
            async for item in items:
                yield item

    async def _items(self, args: Args, kwargs: Kwargs, place: Place) -> AsyncGenerator[Any, None]:
        async with place:
            function, on_loop = self._function
            items = iterate_function(function, args, kwargs, on_loop=on_loop)
            calls = _serve.CallGroup()
            try:
                async with aclosing(items):
                    while True:
                        with calls:
                            item = await anext(items, _END)
                        if item is _END:
                            return
                        yield item
            except GeneratorExit:
                calls.cancel()
                raise


@dataclass(frozen=True)
class Task(Target):
    """A ``@ray.remote`` function, or a method of a Ray actor handle.

    Args:
        function: What has the ``.remote`` to call.
    """

    remote: ClassVar[bool] = True
    starts: ClassVar[bool] = True
    takes_object_refs: ClassVar[bool] = True
    function: Any

    @override
    async def start(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        refs = self.function.remote(*args, **kwargs)
        if not isinstance(refs, ObjectRef):  # num_returns: no one reference to the results
            return ctx.start(_results(refs))
        ctx.on_failure(partial(ray.cancel, refs))
        return refs

    @override
    async def call(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        return await _results(self.function.remote(*args, **kwargs))

    @override
    async def stream(self, args: Args, kwargs: Kwargs, ctx: Context) -> AsyncGenerator[Any, None]:
        refs = self.function.remote(*args, **kwargs)
        try:
            async for ref in refs:
                yield await ref
        except RayError as error:
            raise users_error(error) from error
        finally:
            ray.cancel(refs)


async def _results(refs: Any) -> Any:
    """What ``.remote`` gave references to: one result, or with ``num_returns`` a tuple or None."""
    try:
        if isinstance(refs, list):
            return tuple(await asyncio.gather(*refs))  # as the function itself returns them
        return None if refs is None else await refs
    except asyncio.CancelledError:
        for ref in refs if isinstance(refs, list) else [refs]:
            ray.cancel(ref)
        raise
    except RayError as error:
        raise users_error(error) from error
