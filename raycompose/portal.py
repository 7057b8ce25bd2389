"""One event loop in a thread of its own, so that blocking calls work everywhere.

Inside a running event loop (Jupyter, FastAPI) Ray's ``.result()`` raises; code that blocks waits
for this loop instead.
"""

import asyncio
import concurrent.futures
import functools
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """Return the process's background loop, starting it on first use."""
    background = asyncio.new_event_loop()
    threading.Thread(target=background.run_forever, name="raycompose-loop", daemon=True).start()
    return background


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


def started(coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Start a coroutine on the running loop, as a future that any loop and thread can wait for."""
    return asyncio.run_coroutine_threadsafe(coroutine, asyncio.get_running_loop())
