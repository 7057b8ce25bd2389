"""A deployment's user code in this process, as a Ray Serve replica would run it."""

import asyncio
import inspect
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.serve import Application, Deployment
from ray.serve.exceptions import BackPressureError

from raycompose import _serve


@dataclass(frozen=True, eq=False)
class HostedDeployment:
    """A deployment that is to run in its caller's process. A description: nothing runs yet.

    Args:
        deployment: What to run.
        arguments: Its constructor's. Applications in them stay real deployments, called through
            the handles that Ray puts in their place.
    """

    deployment: Deployment
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]]

    @classmethod
    def of(cls, app: Application) -> "HostedDeployment":
        """Return the description of a bound deployment: the same one each time."""
        if app not in _descriptions:
            deployment = _serve.deployment_of(app)
            _descriptions[app] = cls(deployment, (deployment.init_args, deployment.init_kwargs))
        return _descriptions[app]


_descriptions: "weakref.WeakKeyDictionary[Application, HostedDeployment]" = (
    weakref.WeakKeyDictionary()
)


class Host:
    """One deployment's class or function, constructed once and called in this process.

    Keeps what the deployment promises its users: ``max_ongoing_requests``,
    ``max_queued_requests`` and its ``backpressure_config``, ``user_config`` by ``reconfigure``,
    ``check_health``, and a ``@serve.batch`` queue of its own. It lives on one event loop.

    Args:
        hosted: What to run.
    """

    def __init__(self, hosted: HostedDeployment) -> None:
        self._hosted = hosted
        deployment = hosted.deployment
        self._definition = deployment.func_or_class
        self._slots = asyncio.Semaphore(deployment.max_ongoing_requests)
        self._max_queued = deployment.max_queued_requests
        self._queued = 0
        self._instance: Any = None
        self._starting: asyncio.Task[None] | None = None
        self._configured: Any = None

    async def start(self) -> None:
        """Construct the user's class, once, and give it its ``user_config``."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._construct())
        await asyncio.shield(self._starting)

    async def _construct(self) -> None:
        deployment = self._hosted.deployment
        definition = _serve.with_own_batch_queues(self._definition, deployment)
        if inspect.isclass(definition):
            args, kwargs = self._hosted.arguments
            self._instance = await construct(definition, *args, **kwargs)
        else:
            self._instance = definition
        if deployment.user_config is not None:
            await self.reconfigure(deployment.user_config)

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
            getattr(self._instance, name) if inspect.isclass(self._definition) else self._instance
        )
        return method

    async def acquire(self) -> None:
        """Take one of the ``max_ongoing_requests`` places, waiting in line for it.

        Raises:
            BackPressureError: ``max_queued_requests`` are waiting already.
        """
        if self._starting is None or not self._starting.done():
            await self.start()
        if self._slots.locked() and 0 <= self._max_queued <= self._queued:
            config = self._hosted.deployment.backpressure_config
            answer = (config.status_code, config.retry_after_s)
            raise BackPressureError(self._queued, self._max_queued, *answer)
        self._queued += 1
        try:
            await self._slots.acquire()
        finally:
            self._queued -= 1

    def release(self) -> None:
        """Give the place back."""
        self._slots.release()


class Place:
    """One of a host's places, held while the context lasts.

    Args:
        host: The host.
    """

    __slots__ = ("_held", "_host")

    def __init__(self, host: Host) -> None:
        self._host = host
        self._held = False

    async def __aenter__(self) -> None:
        await self._host.acquire()
        self._held = True

    async def __aexit__(self, *error: object) -> None:
        self._give_back()

    async def lend(self, until: Awaitable[Any]) -> None:
        """Let somebody else have the place while waiting; then wait in line for it."""
        self._give_back()
        await until
        await self.__aenter__()

    def _give_back(self) -> None:
        if self._held:
            self._held = False
            self._host.release()


async def construct(definition: Any, *args: Any, **kwargs: Any) -> Any:
    """Return an instance of a class whose ``__init__`` may be a coroutine, as Ray Serve allows."""
    instance = definition.__new__(definition)
    await _finish(instance.__init__(*args, **kwargs))
    return instance


async def _finish(result: Any) -> None:
    if inspect.isawaitable(result):
        await result
