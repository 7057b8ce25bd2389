"""A deployment's user code in this process, as a Ray Serve replica would run it."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from ray.serve import Deployment
from ray.serve.exceptions import BackPressureError

from raycompose import _serve


class Host:
    """One deployment's class or function, constructed once and called in this process.

    Keeps what the deployment promises its users: ``max_ongoing_requests``,
    ``max_queued_requests`` and its ``backpressure_config``, ``user_config`` by ``reconfigure``,
    ``check_health``, and a ``@serve.batch`` queue of its own.

    Args:
        deployment: What to run. Applications in its arguments stay real deployments, called
            through the handles that Ray puts in their place.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.name = deployment.name
        self.definition = deployment.func_or_class
        self.arguments = (deployment.init_args, deployment.init_kwargs)
        self.user_config = deployment.user_config
        self.max_ongoing_requests = deployment.max_ongoing_requests
        self.max_queued_requests = deployment.max_queued_requests
        self.backpressure = deployment.backpressure_config
        self._instance: Any = None
        self._slots: Any = None
        self._queued = 0
        self._starting: asyncio.Task[None] | None = None
        self._configured: Any = None
        self.shared = False
        """Whether several stages of the graph are methods of this deployment."""

    async def start(self) -> None:
        """Construct the user's class, once, and give it its ``user_config``."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._construct())
        await asyncio.shield(self._starting)

    async def _construct(self) -> None:
        self._slots = asyncio.Semaphore(self.max_ongoing_requests)
        definition = _serve.with_own_batch_queues(self.definition, self.deployment)
        if inspect.isclass(definition):
            args, kwargs = self.arguments
            self._instance = await constructed(definition, *args, **kwargs)
        else:
            self._instance = definition
        if self.user_config is not None:
            await self.reconfigure(self.user_config)

    async def reconfigure(self, user_config: Any) -> None:
        """Call the user's ``reconfigure(user_config)``, unless it has this configuration."""
        if user_config != self._configured:
            await _finish(self._instance.reconfigure(user_config))
            self._configured = user_config

    async def check_health(self) -> None:
        """Call the user's ``check_health``, if there is one; it raises when unhealthy."""
        check = getattr(self._instance, "check_health", None)
        if check is not None:
            await _finish(check())

    def method(self, name: str) -> Callable[..., Any]:
        """Return the bound method, or the function of a function deployment."""
        method: Callable[..., Any] = (
            getattr(self._instance, name) if inspect.isclass(self.definition) else self._instance
        )
        return method

    async def acquire(self) -> None:
        """Take one of the ``max_ongoing_requests`` places, waiting in line for it.

        Raises:
            BackPressureError: ``max_queued_requests`` are waiting already.
        """
        if self._starting is None or not self._starting.done():
            await self.start()
        if self._slots.locked() and 0 <= self.max_queued_requests <= self._queued:
            answer = (self.backpressure.status_code, self.backpressure.retry_after_s)
            raise BackPressureError(self._queued, self.max_queued_requests, *answer)
        self._queued += 1
        try:
            await self._slots.acquire()
        finally:
            self._queued -= 1

    def release(self) -> None:
        """Give the place back."""
        self._slots.release()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a place."""
        await self.acquire()
        try:
            yield
        finally:
            self.release()

    def __getstate__(self) -> dict[str, Any]:
        """What to run, without what runs: Ray pickles the arguments of a replica that has started.

        A host that has started is never copied to be used: ``Hosted`` is not portable.
        """
        runtime = {"_slots": None, "_queued": 0, "_instance": None, "_starting": None}
        runtime["_configured"] = None
        return {**self.__dict__, **runtime}


async def constructed(definition: Any, *args: Any, **kwargs: Any) -> Any:
    """Return an instance of a class whose ``__init__`` may be a coroutine, as Ray Serve allows."""
    instance = definition.__new__(definition)
    await _finish(instance.__init__(*args, **kwargs))
    return instance


async def _finish(result: Any) -> None:
    if inspect.isawaitable(result):
        await result
