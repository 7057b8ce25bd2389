"""An ``ObjectRef`` to a result that this process is still waiting for.

Ray Serve's gRPC transport brings results into the caller's memory, where no ``ObjectRef`` leads.
A small actor of the caller's gives one at once, and its value later.
"""

import asyncio
import concurrent.futures
import functools
import uuid
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import TaskCancelledError

from raycompose.flow.failures import sendable

_UNCLAIMED_S = 60.0
"""How long an outcome is kept that nobody has asked for: its ``result`` call was cancelled."""


class _Promises:
    """Holds back calls of ``result`` until ``settle`` has been called with the same key."""

    def __init__(self) -> None:
        self._outcomes: dict[str, asyncio.Future[Any]] = {}
        self._unclaimed: dict[str, asyncio.TimerHandle] = {}

    def _outcome(self, key: str) -> "asyncio.Future[Any]":
        return self._outcomes.setdefault(key, asyncio.get_running_loop().create_future())

    async def result(self, key: str) -> Any:
        try:
            return await self._outcome(key)
        finally:
            self._outcomes.pop(key, None)
            if (timer := self._unclaimed.pop(key, None)) is not None:
                timer.cancel()

    async def settle(self, key: str, value: Any, boxed: list[BaseException | None]) -> None:
        (error,) = boxed  # bare, Ray would take an error of its own for a failed argument
        outcome = self._outcome(key)
        loop = asyncio.get_running_loop()
        self._unclaimed[key] = loop.call_later(_UNCLAIMED_S, self._forget, key)
        if error is None:
            outcome.set_result(value)
        else:
            outcome.set_exception(error)

    def _forget(self, key: str) -> None:
        self._unclaimed.pop(key, None)
        if (outcome := self._outcomes.pop(key, None)) is not None:
            outcome.exception()  # looked at, or asyncio reports that nobody has


@functools.lru_cache(maxsize=1)
def _actor(session: str, job: str) -> Any:
    # Waiting calls must not keep out the calls that settle them. (Concurrency groups would each
    # have an event loop of their own, and a future belongs to one.)
    return ray.remote(num_cpus=0, max_concurrency=100_000)(_Promises).remote()


def promise(pending: "concurrent.futures.Future[Any]") -> "ObjectRef[Any]":
    """Return an ``ObjectRef`` to the result of a future of this process."""
    context = ray.get_runtime_context()
    actor = _actor(context.get_session_name(), context.get_job_id())
    key = uuid.uuid4().hex
    ref: ObjectRef[Any] = actor.result.remote(key)

    def settle(done: "concurrent.futures.Future[Any]") -> None:
        error = TaskCancelledError() if done.cancelled() else done.exception()
        if error is None:
            try:
                actor.settle.remote(key, done.result(), [None])
                return
            except Exception as unsendable:  # whatever pickling the value may raise
                error = unsendable
        actor.settle.remote(key, None, [sendable(error)])

    pending.add_done_callback(settle)
    return ref
