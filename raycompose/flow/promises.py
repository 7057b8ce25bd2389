"""An ``ObjectRef`` to a result that this process is still waiting for.

Ray Serve's gRPC transport brings results into the caller's memory, where no ``ObjectRef`` leads.
A small actor of the caller's gives one at once, and its value later.
"""

import asyncio
import concurrent.futures
import functools
import uuid
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, TaskCancelledError

from raycompose.errors import RayComposeError
from raycompose.flow import background
from raycompose.flow.failures import sendable, users_error

_UNCLAIMED_S = 60.0
"""How long an outcome is kept that nobody has asked for: its ``result`` call was cancelled."""


@dataclass(frozen=True)
class _Boxed:
    """An outcome that is not sent bare: Ray would fetch an ``ObjectRef``, and raise an error."""

    value: Any = None
    error: BaseException | None = None


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

    async def settle(self, key: str, sent: Any) -> None:
        boxed = sent if isinstance(sent, _Boxed) else _Boxed(sent)
        outcome = self._outcome(key)
        loop = asyncio.get_running_loop()
        self._unclaimed[key] = loop.call_later(_UNCLAIMED_S, self._forget, key)
        if boxed.error is None:
            outcome.set_result(boxed.value)
        else:
            outcome.set_exception(boxed.error)

    async def last(self) -> None:
        await asyncio.Future()

    def _forget(self, key: str) -> None:
        self._unclaimed.pop(key, None)
        if (outcome := self._outcomes.pop(key, None)) is not None:
            outcome.exception()  # looked at, or asyncio reports that nobody has


@functools.lru_cache(maxsize=1)
def _actor(session: str, job: str) -> Any:
    # Waiting calls must not keep out the calls that settle them. (Concurrency groups would each
    # have an event loop of their own, and a future belongs to one.)
    actor = ray.remote(num_cpus=0, max_concurrency=100_000)(_Promises).remote()
    actor.last.remote().future().add_done_callback(lambda _: _actor.cache_clear())  # it has died
    return actor


def promise(pending: "concurrent.futures.Future[Any]") -> "ObjectRef[Any]":
    """Return an ``ObjectRef`` to the result of a future of this process."""
    context = ray.get_runtime_context()
    actor = _actor(context.get_session_name(), context.get_job_id())
    key = uuid.uuid4().hex
    ref: ObjectRef[Any] = actor.result.remote(key)

    def settle(done: "concurrent.futures.Future[Any]") -> None:
        error = TaskCancelledError() if done.cancelled() else done.exception()
        if error is None:
            value = done.result()
            try:
                send(_Boxed(value) if isinstance(value, ObjectRef | BaseException) else value)
                return
            except Exception as unsendable:  # whatever pickling the value may raise
                error = unsendable
        send(_Boxed(error=sendable(error)))

    def send(outcome: Any) -> None:
        actor.settle.remote(key, outcome).future().add_done_callback(look)

    def look(sent: "concurrent.futures.Future[None]") -> None:
        if (failure := sent.exception()) is not None and not isinstance(failure, RayActorError):
            # From another thread: this one is Ray's own, and must not wait.
            unreadable = _Boxed(error=_unreadable(failure))
            background.loop().call_soon_threadsafe(actor.settle.remote, key, unreadable)

    pending.add_done_callback(settle)
    return ref


def _unreadable(failure: BaseException) -> RayComposeError:
    cause = users_error(failure)
    return RayComposeError(
        "a stage's result cannot be unpickled in another process, where a reference to it leads: "
        f"{type(cause).__name__}: {cause}. Return what can be pickled and unpickled, or fuse the "
        "stage that takes it"
    )
