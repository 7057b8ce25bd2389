"""What a stage runs, behind one calling convention: that is all the engines differ in."""

import asyncio
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import ray
from anyio import CapacityLimiter, to_thread
from ray import ObjectRef
from ray.exceptions import RayError
from ray.serve import Application
from typing_extensions import override

from raycompose import _serve
from raycompose.hosting import Host
from raycompose.references import Ref
from raycompose.runner import Context
from raycompose.signatures import is_async
from raycompose.streams import Stream, cancel

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]
_END = object()


class Target(ABC):
    """Something that a stage calls. Targets are immutable and picklable."""

    remote: ClassVar[bool] = False
    """Whether the call leaves this process, so that its arguments must be picklable."""
    portable: ClassVar[bool] = True
    """Whether a stream that calls it may be iterated in another replica."""
    takes_object_refs: ClassVar[bool] = False
    """Whether values reach it, and leave it, as ``ObjectRef``s that the caller never fetches."""

    @abstractmethod
    async def call(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        """Call it and wait for its result. Cancelling the wait cancels the call."""

    @abstractmethod
    def stream(self, args: Args, kwargs: Kwargs, ctx: Context) -> AsyncGenerator[Any, None]:
        """Call it and give its items as they come. Closing the generator cancels the call."""

    async def start(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        """Call it and give an ``ObjectRef`` or a future of its result at once; ``None``: cannot."""
        return None


@dataclass(frozen=True)
class Deployed(Target):
    """A method of a Serve deployment in its own replicas.

    Args:
        app: The bound deployment. In a replica Ray has put its ``DeploymentHandle`` in its place.
        method: The method's name.
    """

    remote: ClassVar[bool] = True
    app: Application
    method: str

    @cached_property
    def _handle(self) -> Any:
        handle: Any = self.app
        if _serve.in_replica():
            # A stream brings its handle along with every request, and each would get a router.
            handle = _handles.setdefault((handle.app_name, handle.deployment_name), handle)
        return handle.options(method_name=self.method)

    @cached_property
    def _streaming(self) -> Any:
        return self._handle.options(stream=True)

    @cached_property
    def _by_reference(self) -> Any:
        # gRPC has no ObjectRefs: pickled into a message, Ray would pin what they refer to for ever.
        return self._handle.options(_by_reference=True)

    @override
    async def call(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        handle = self._by_reference if _carries_reference(args) else self._handle
        return await result_of(_multiplexed(handle, ctx).remote(*args, **kwargs))

    @override
    async def start(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        response = _multiplexed(self._by_reference, ctx).remote(*args, **kwargs)
        ctx.on_failure(response.cancel)
        ref = await _serve.object_ref(response)
        return ctx.start(result_of(response)) if ref is None else ref

    @override
    async def stream(self, args: Args, kwargs: Kwargs, ctx: Context) -> AsyncGenerator[Any, None]:
        items = items_of(_multiplexed(self._streaming, ctx).remote(*args, **kwargs))
        async with aclosing(items):
            async for item in items:
                yield item


_handles: dict[tuple[str, str], Any] = {}
"""This replica's handle of each deployment that it calls, by application and name."""


async def result_of(response: Any) -> Any:
    """Await a ``DeploymentResponse``: cancelled with the wait, and with the user's own errors."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()  # cancelling an await does not cancel the remote call
        raise
    except RayError as error:
        raise _serve.unwrap(error) from error


async def items_of(response: Any) -> AsyncGenerator[Any, None]:
    """Iterate a ``DeploymentResponseGenerator``; closing cancels the call."""
    try:
        async for item in response:
            yield item
    except RayError as error:
        raise _serve.unwrap(error) from error
    finally:
        response.cancel()


def _carries_reference(args: Args) -> bool:
    first = args[0] if args else None
    if isinstance(first, list) and len(first) == 1:
        first = first[0]
    return isinstance(first, ObjectRef | Ref)


def _multiplexed(handle: Any, ctx: Context) -> Any:
    """The handle, with the request's model id, which Ray Serve does not pass on by itself."""
    model_id = ctx.multiplexed_model_id
    return handle.options(multiplexed_model_id=model_id) if model_id else handle


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
    async def call(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        return await call_function(self.function, args, kwargs, on_loop=self._on_loop)

    @override
    def stream(self, args: Args, kwargs: Kwargs, ctx: Context) -> AsyncGenerator[Any, None]:
        return iterate_function(self.function, args, kwargs, on_loop=self._on_loop)


@dataclass(frozen=True)
class Hosted(Target):
    """A method of a deployment that runs inside this process: fused, or on the local engine.

    Args:
        host: The deployment's user code; stages of one deployment share it.
        method: The method's name.
    """

    portable: ClassVar[bool] = False
    host: Host
    method: str

    @override
    async def call(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        async with self.host.slot():
            return await self._called(args, kwargs)

    @override
    async def start(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        # The place is taken here, in line, not by a task that runs after whoever waits for it.
        await self.host.acquire()
        started = ctx.start(self._called(args, kwargs))
        loop = asyncio.get_running_loop()
        started.add_done_callback(lambda _: loop.call_soon_threadsafe(self.host.release))
        return started

    async def _called(self, args: Args, kwargs: Kwargs) -> Any:
        function = self.host.method(self.method)
        with _serve.CallGroup().calling():
            return await call_function(function, args, kwargs, on_loop=is_async(function))

    @override
    async def stream(self, args: Args, kwargs: Kwargs, ctx: Context) -> AsyncGenerator[Any, None]:
        items = self._items(args, kwargs)
        if self.host.shared:
            # Another stage of the same deployment may need the place to take the items: let the
            # producer run ahead, as Ray Serve does between replicas.
            items = run_ahead(items)
        async with aclosing(items):
            async for item in items:
                yield item

    async def _items(self, args: Args, kwargs: Kwargs) -> AsyncGenerator[Any, None]:
        async with self.host.slot():
            function = self.host.method(self.method)
            items = iterate_function(function, args, kwargs, on_loop=is_async(function))
            calls = _serve.CallGroup()
            try:
                async with aclosing(items):
                    while True:
                        with calls.calling():
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
    takes_object_refs: ClassVar[bool] = True
    function: Any

    @override
    async def start(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        ref = self.function.remote(*args, **kwargs)
        if isinstance(ref, list):  # num_returns=N: several results, so no one reference
            return None
        ctx.on_failure(partial(ray.cancel, ref))
        return ref

    @override
    async def call(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        ref = self.function.remote(*args, **kwargs)
        try:
            return await (asyncio.gather(*ref) if isinstance(ref, list) else ref)
        except asyncio.CancelledError:
            ray.cancel(ref)
            raise
        except RayError as error:
            raise _serve.unwrap(error) from error

    @override
    async def stream(self, args: Args, kwargs: Kwargs, ctx: Context) -> AsyncGenerator[Any, None]:
        refs = self.function.remote(*args, **kwargs)
        try:
            async for ref in refs:
                yield await ref
        except RayError as error:
            raise _serve.unwrap(error) from error
        finally:
            ray.cancel(refs)


async def call_function(
    function: Callable[..., Any], args: Args, kwargs: Kwargs, *, on_loop: bool
) -> Any:
    """Call a Python callable: a coroutine on the loop, anything else in a thread."""
    try:
        if on_loop:
            return await function(*args, **kwargs)
        result = await _in_thread(partial(function, *args, **kwargs), _limiter(args))
        return await result if inspect.isawaitable(result) else result
    except (SystemExit, GeneratorExit, asyncio.CancelledError) as signal:
        _refuse(signal)
        raise
    finally:
        await _left(args)


async def iterate_function(
    function: Callable[..., Any], args: Args, kwargs: Kwargs, *, on_loop: bool
) -> AsyncGenerator[Any, None]:
    """Give the items of a generator function, one at a time; a sync one runs in a thread."""
    limiter = _limiter(args)
    call = partial(function, *args, **kwargs)
    try:
        items = call() if on_loop else await _in_thread(call, limiter)
        if inspect.isawaitable(items):
            items = await items
        if isinstance(items, AsyncIterator):
            try:
                async for item in items:
                    yield item
            finally:
                if isinstance(items, AsyncGenerator):
                    await items.aclose()
        elif isinstance(items, Iterator):
            try:
                while (item := await _next_in_thread(items, limiter)) is not _END:
                    yield item
            finally:
                if inspect.isgenerator(items):
                    await _in_thread(items.close, limiter)
        else:
            raise TypeError(
                "the stage is a stream (a generator, or stream=True) but returned "
                f"{type(items).__name__}: yield the items, or leave stream=True out"
            )
    except (SystemExit, asyncio.CancelledError) as signal:
        _refuse(signal)
        raise
    finally:
        await _left(args)


def _refuse(signal: BaseException) -> None:
    """Raise an error in the place of a signal of Python that a stage raises by itself."""
    if isinstance(signal, SystemExit):  # it would end the loop, and with it every other request
        raise RuntimeError(f"the stage called sys.exit({signal.code!r})") from signal
    try:
        task: Any = asyncio.current_task()
    except RuntimeError:  # the loop has ended, and what it ran is closed
        return
    cancelled = not hasattr(task, "cancelling") or task.cancelling()  # Python 3.10 cannot tell
    if isinstance(signal, GeneratorExit) or not cancelled:
        raise RuntimeError(f"the stage raised {signal!r}, though nobody stops it") from signal


async def _left(args: Args) -> None:
    """Stop the streams that a stage was given: it may have left them before their end."""
    for arg in args:
        if isinstance(arg, Stream):
            await arg.aclose()


async def _in_thread(call: Callable[[], Any], limiter: CapacityLimiter | None) -> Any:
    return await to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)


async def _next_in_thread(items: Iterator[Any], limiter: CapacityLimiter | None) -> Any:
    """The next item; when cancelled, not before the generator stands still and can be closed."""
    step = asyncio.ensure_future(_in_thread(partial(next, items, _END), limiter))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait({step})
        raise


def _limiter(args: Args) -> CapacityLimiter | None:
    """Threads without limit for what waits, in its thread, for stages that need threads, too."""
    return CapacityLimiter(math.inf) if any(isinstance(a, Stream | Ref) for a in args) else None


async def run_ahead(items: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """Give a generator's items while it goes on producing, without limit."""
    made: asyncio.Queue[Any] = asyncio.Queue()

    async def produce() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    made.put_nowait(item)
        finally:
            made.put_nowait(_END)

    producer = asyncio.ensure_future(produce())
    try:
        while (item := await made.get()) is not _END:
            yield item
        await producer
    finally:
        await cancel(producer)
