"""One event loop in a thread of its own for blocking calls, and what asyncio leaves out.

Inside a running event loop (Jupyter, FastAPI) Ray's ``.result()`` raises; code that blocks waits
for the background loop instead.
"""

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from anyio import to_thread

from raycompose.errors import RayComposeError

T = TypeVar("T")
_END = object()

_background: asyncio.AbstractEventLoop | None = None
_starting = threading.Lock()


def loop() -> asyncio.AbstractEventLoop:
    """Return the process's background loop, starting it on first use."""
    global _background
    if _background is None:
        with _starting:
            if _background is None:
                _background = _start_loop()
    return _background


def _start_loop() -> asyncio.AbstractEventLoop:
    background = asyncio.new_event_loop()
    thread = threading.Thread(target=background.run_forever, name="raycompose-loop", daemon=True)
    thread.start()

    async def configure() -> None:
        # As many threads for `def` stages as Ray Serve gives a front deployment's replica.
        to_thread.current_default_thread_limiter().total_tokens = 1000

    asyncio.run_coroutine_threadsafe(configure(), background).result()
    atexit.register(_stop, background, thread)
    return background


def _stop(background: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """End what still runs, so that the interpreter does not find it pending."""

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=1) if tasks else None
        background.stop()

    if thread.is_alive():  # not in the child of a fork
        asyncio.run_coroutine_threadsafe(end(), background)
        thread.join(timeout=2)


def _forget_loop() -> None:
    """Have a forked child start a loop of its own: threads do not survive a fork."""
    global _background, _starting
    _background, _starting = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_loop)


def submit(coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Start a coroutine on the background loop; cancelling the future cancels it."""
    return asyncio.run_coroutine_threadsafe(coroutine, loop())


def wait(coroutine: Coroutine[Any, Any, T], on: asyncio.AbstractEventLoop | None = None) -> T:
    """Run a coroutine on the background loop, or another, and block until it is done.

    An interrupt of the waiting thread (Ctrl-C) cancels the coroutine.

    Raises:
        RayComposeError: The caller runs on that very loop, so waiting would never end.
    """
    target = on or loop()
    if running_loop() is target:
        coroutine.close()
        raise RayComposeError(
            "a blocking call inside a coroutine of the pipeline would wait for the event loop that "
            "it holds up: await the asynchronous form (acall, astream), or make the stage a 'def'"
        )
    future = asyncio.run_coroutine_threadsafe(coroutine, target)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def refuse_on_loop(call: str, instead: str) -> None:
    """Refuse a call that blocks on an event loop.

    Raises:
        RayComposeError: A loop runs in this thread.
    """
    if running_loop() is not None:
        raise RayComposeError(f"{call} would block the event loop: use {instead} instead")


def finish(coroutine: Coroutine[Any, Any, Any], on: asyncio.AbstractEventLoop | None) -> None:
    """Have a generator's clean-up run, without waiting for it.

    A generator that was left behind is closed by the garbage collector, in whichever thread and at
    whichever line that runs: on the loop's own thread, say, or with a lock held that the loop
    needs next. Waiting there might never end.
    """
    asyncio.run_coroutine_threadsafe(coroutine, on or loop())


def start(coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Start a coroutine on the running loop, as a future that any loop and thread can wait for."""
    return asyncio.run_coroutine_threadsafe(coroutine, asyncio.get_running_loop())


async def gather(*coroutines: Any) -> list[Any]:
    """Wait for all; the first failure cancels the others, waits for them to stop, and is raised."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        await cancel(*tasks)
        raise


async def cancel(*tasks: "asyncio.Future[Any] | None") -> None:
    """Cancel tasks and wait until they have stopped, whatever they end with."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    if running:
        await asyncio.gather(*running, return_exceptions=True)


async def next_of(items: AsyncIterator[T]) -> T:
    """Return the next item, as a coroutine, which a task needs and ``anext`` does not give."""
    return await anext(items)


async def run_ahead(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
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
