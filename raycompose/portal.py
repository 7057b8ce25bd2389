"""One event loop in a thread of its own, so that blocking calls work everywhere.

Inside a running event loop (Jupyter, FastAPI) Ray's ``.result()`` raises; code that blocks waits
for this loop instead.
"""

import asyncio
import atexit
import concurrent.futures
import functools
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from anyio import to_thread

T = TypeVar("T")


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """Return the process's background loop, starting it on first use."""
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

    asyncio.run_coroutine_threadsafe(end(), background)
    thread.join(timeout=2)


def submit(coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Start a coroutine on the background loop; cancelling the future cancels it."""
    return asyncio.run_coroutine_threadsafe(coroutine, loop())


def wait(coroutine: Coroutine[Any, Any, T], on: asyncio.AbstractEventLoop | None = None) -> T:
    """Run a coroutine on the background loop, or another, and block until it is done.

    An interrupt of the waiting thread (Ctrl-C) cancels the coroutine.
    """
    future = asyncio.run_coroutine_threadsafe(coroutine, on or loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def finish(coroutine: Coroutine[Any, Any, Any], on: asyncio.AbstractEventLoop | None) -> None:
    """Have a generator's clean-up run, without waiting for it.

    A generator that was left behind is closed by the garbage collector, in whichever thread and at
    whichever line that runs: on the loop's own thread, say, or with a lock held that the loop
    needs next. Waiting there might never end.
    """
    asyncio.run_coroutine_threadsafe(coroutine, on or loop())


def started(coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Start a coroutine on the running loop, as a future that any loop and thread can wait for."""
    return asyncio.run_coroutine_threadsafe(coroutine, asyncio.get_running_loop())
