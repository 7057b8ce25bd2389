"""One event loop in a thread of its own, for blocking calls, and futures of what runs on a loop.

Inside a running event loop (Jupyter, FastAPI) Ray's ``.result()`` raises; code that blocks waits
for the background loop instead.
"""

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from anyio import to_thread

from raycompose.errors import RayComposeError, refuse_signal
from raycompose.flow.concurrency import cancel_once

T = TypeVar("T")

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
    thread = threading.Thread(target=_run, args=(background,), name="raycompose-loop", daemon=True)
    thread.start()

    async def configure() -> None:
        # As many threads for `def` stages as Ray Serve gives a front deployment's replica.
        to_thread.current_default_thread_limiter().total_tokens = 1000

    asyncio.run_coroutine_threadsafe(configure(), background).result()
    atexit.register(_stop, background, thread)
    return background


def _run(background: asyncio.AbstractEventLoop) -> None:
    """Run the loop until it is stopped: asyncio leaves it when a task ends in a ``SystemExit``."""
    while True:
        with suppress(SystemExit, KeyboardInterrupt):
            background.run_forever()
            return


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


class Started(concurrent.futures.Future[T]):
    """A coroutine that runs on a loop; cancelling the future cancels it."""

    task: "asyncio.Task[T] | None" = None
    """What runs it, once it has begun."""


def submit(
    coroutine: Coroutine[Any, Any, T], on: asyncio.AbstractEventLoop | None = None
) -> Started[T]:
    """Start a coroutine on the background loop, or another.

    As ``asyncio.run_coroutine_threadsafe``, which puts a new one in the place of a
    ``TimeoutError``: the name of the stage that raised it would be lost.
    """
    target = on or loop()
    future: Started[T] = Started()
    target.call_soon_threadsafe(_begin, future, coroutine, target)
    return future


def _begin(
    future: Started[T], coroutine: Coroutine[Any, Any, T], on: asyncio.AbstractEventLoop
) -> None:
    """Run a coroutine on the loop of this thread as what a future stands for."""
    future.task = task = on.create_task(coroutine)

    def end(task: "asyncio.Task[T]") -> None:
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            future.cancel()
        if not future.set_running_or_notify_cancel():
            return
        if error is None:
            future.set_result(task.result())
            return
        try:
            refuse_signal(error, "the pipeline")  # whoever waits would take it for its own
        except RuntimeError as instead:
            error = instead
        future.set_exception(error)

    def cancel_task(done: "concurrent.futures.Future[T]") -> None:
        if done.cancelled() and not on.is_closed():
            on.call_soon_threadsafe(cancel_once, task)

    task.add_done_callback(end)
    future.add_done_callback(cancel_task)


async def result_of(future: "concurrent.futures.Future[T]") -> T:
    """Await a future that ``submit`` gave; cancelling this cancels it."""
    try:
        return await asyncio.wrap_future(future)
    except asyncio.TimeoutError:
        # Again a new one, where the future has the one that was raised.
        if future.done() and (error := future.exception()) is not None:
            raise error from None
        raise


async def settled(future: "concurrent.futures.Future[T]") -> None:
    """Wait until a future is done, however it ends; cancelling this leaves it running."""
    if future.done():
        return
    task = future.task if isinstance(future, Started) else None
    if task is not None and task.get_loop() is running_loop():  # no thread need be woken
        await asyncio.wait({task})
        return
    elsewhere = asyncio.wrap_future(future)
    elsewhere.add_done_callback(lambda f: f.cancelled() or f.exception())  # looked at
    await asyncio.wait({elsewhere})


async def shared_result(future: "concurrent.futures.Future[T]") -> T:
    """Return what a future ends with; cancelling this leaves it running."""
    await settled(future)
    if future.cancelled():
        raise asyncio.CancelledError
    return future.result()


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
    future = submit(coroutine, target)
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
    submit(coroutine, on)


def start(coroutine: Coroutine[Any, Any, T]) -> Started[T]:
    """Start a coroutine on the running loop, as a future that any loop and thread can wait for."""
    future: Started[T] = Started()
    _begin(future, coroutine, asyncio.get_running_loop())
    return future
