"""Queues that collect the calls of ``@serve.batch``, in another process than a replica's own."""

import contextvars
import inspect
import os
import weakref
from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve import Deployment
from ray.serve.batching import _LazyBatchQueueWrapper

from raycompose._serve.deployments import is_batched
from raycompose._serve.replica import replica_context


def rebatched(method: Any, deployment: Deployment, guarded: Callable[[Any], Any]) -> Any:
    """Return a ``@serve.batch`` function or method with a queue of its own.

    Args:
        method: The function or method.
        deployment: The deployment that it is part of.
        guarded: Gives what is called in the place of the user's function.
    """
    old = _batch_queue(method)
    new: Any = serve.batch(
        max_batch_size=old.max_batch_size,
        batch_wait_timeout_s=old.batch_wait_timeout_s,
        max_concurrent_batches=old.max_concurrent_batches,
        batch_size_fn=old.batch_size_fn,
    )(guarded(old.handle_batch_func))
    queue = _batch_queue(new)
    queue.__class__, queue.deployment = _Queue, deployment
    new.set_max_batch_size = queue.set_max_batch_size
    queue.queue  # noqa: B018  # makes it
    _queues.add(queue)
    return new


class _Queue(_LazyBatchQueueWrapper):  # type: ignore[misc]  # Ray's types are not followed
    """What collects the calls of a method, on the running loop, in batches.

    It asks for its replica's context when it is made, or changed.
    """

    deployment: Deployment
    of_parent: Any = None

    @property
    def queue(self) -> Any:
        if self._queue is None:
            contextvars.Context().run(self._make)  # not in a call's
        return self._queue

    def _make(self) -> Any:
        with replica_context(self.deployment):
            return super().queue

    def set_max_batch_size(self, new_max_batch_size: int) -> None:
        with replica_context(self.deployment):
            super().set_max_batch_size(new_max_batch_size)


_queues: "weakref.WeakSet[_Queue]" = weakref.WeakSet()


def _renew_queues() -> None:
    """Have a forked child collect batches on a loop of its own: the parent's does not run there."""
    for queue in _queues:
        queue.of_parent, queue._queue = queue._queue, None  # kept, or asyncio reports its task


os.register_at_fork(after_in_child=_renew_queues)


def _batch_queue(method: Any) -> Any:
    cells = inspect.getclosurevars(method).nonlocals["enqueue_request"].__closure__
    contents = (cell.cell_contents for cell in cells)
    return next(c for c in contents if isinstance(c, _LazyBatchQueueWrapper))


def end_batches(definition: Any) -> None:
    """End the tasks that collect batches, of a definition with queues of its own."""
    found = inspect.getmembers(definition, is_batched) if inspect.isclass(definition) else []
    methods = [method for _, method in found] or [definition] * is_batched(definition)
    for method in methods:
        queue = _batch_queue(method)._queue
        if queue is not None:
            queue._handle_batch_task.cancel()
