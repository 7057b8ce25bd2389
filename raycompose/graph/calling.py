"""Running the user's own code: coroutines on the event loop, everything else in a thread."""

import asyncio
import functools
import inspect
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing
from functools import partial
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from anyio import CapacityLimiter, to_thread

from raycompose.errors import refuse_signal
from raycompose.flow.concurrency import keep
from raycompose.flow.references import Ref
from raycompose.flow.streams import Stream

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]
_END = object()
GENERATORS = (GeneratorType, AsyncGeneratorType)


async def call_function(
    function: Callable[..., Any], args: Args, kwargs: Kwargs, *, on_loop: bool
) -> Any:
    """Call a Python callable: a coroutine on the loop, anything else in a thread."""
    try:
        if on_loop:
            return await function(*args, **kwargs)
        result = await _in_thread(partial(function, *args, **kwargs), _limiter(args))
        return await result if inspect.isawaitable(result) else result
    except BaseException as raised:
        refuse_signal(raised)
        raise
    finally:
        for arg in args:  # as close_streams does, without a coroutine of its own
            if type(arg) is Stream:
                await arg.aclose()


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
                while True:
                    step = asyncio.ensure_future(_in_thread(partial(next, items, _END), limiter))
                    if (item := await asyncio.shield(step)) is _END:
                        break
                    yield item
            finally:
                if inspect.isgenerator(items):
                    if step.done():
                        await _in_thread(items.close, limiter)
                    else:  # cancelled: nobody waits for a generator that blocks
                        keep(_close_after(step, items, limiter))
        else:
            raise TypeError(
                "the stage is a stream (a generator, or stream=True) but returned "
                f"{type(items).__name__}: yield the items, or leave stream=True out"
            )
    except GeneratorExit:  # the items are not wanted any more
        raise
    except BaseException as raised:
        refuse_signal(raised)
        raise
    finally:
        await close_streams(args)


def returned_generator(name: str) -> TypeError:
    """Return the error of a generator in the place of a result: nobody has said that it streams."""
    return TypeError(
        f"{name!r} returned a generator, but is not written as one: compose it with "
        "rc.stage(..., stream=True), or yield the items in it"
    )


def without_signals(function: Any) -> Any:
    """Return a function of batches with errors for signals: Ray tells its callers of errors alone.

    Args:
        function: A coroutine function or an async generator function.
    """

    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except BaseException as raised:
            refuse_signal(raised)
            raise

    @functools.wraps(function)
    async def iterate(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(function(*args, **kwargs)) as items:
            while True:
                try:
                    item = await anext(items, _END)
                except BaseException as raised:
                    refuse_signal(raised)
                    raise
                if item is _END:
                    return
                yield item

    return iterate if inspect.isasyncgenfunction(function) else call


async def close_streams(args: Args) -> None:
    """Stop the streams that a stage was given: it may have left them before their end."""
    for arg in args:
        if isinstance(arg, Stream):
            await arg.aclose()


async def _in_thread(call: Callable[[], Any], limiter: CapacityLimiter | None) -> Any:
    return await to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)


async def _close_after(
    step: "asyncio.Future[Any]", items: Generator[Any, Any, Any], limiter: CapacityLimiter | None
) -> None:
    """Close a generator once it stands still; while it runs it cannot be."""
    await asyncio.gather(step, return_exceptions=True)
    await _in_thread(items.close, limiter)


def _limiter(args: Args) -> CapacityLimiter | None:
    """Threads without limit for what waits, in its thread, for stages that need threads, too."""
    return CapacityLimiter(math.inf) if any(isinstance(a, Stream | Ref) for a in args) else None
