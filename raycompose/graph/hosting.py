"""A deployment's user code in this process, as a Ray Serve replica would run it."""

import asyncio
import inspect
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from ray.serve import Application, Deployment
from ray.serve.exceptions import BackPressureError

from raycompose import _serve
from raycompose.errors import refuse_signal
from raycompose.graph.calling import without_signals


@dataclass(frozen=True, eq=False)
class HostedDeployment:
    """A deployment that is to run in its caller's process. A description: nothing runs yet.

    Args:
        deployment: What to run, without arguments.
        arguments: Its constructor's. Applications in them stay real deployments, called through
            the handles that Ray puts in their place; those that run in this process, too, are
            ``HandleTo`` here.
        holds: What the ``HandleTo`` in the arguments lead to.
    """

    deployment: Deployment
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]]
    holds: tuple["HostedDeployment", ...] = ()

    @property
    def name(self) -> str:
        """The deployment's name."""
        name: str = self.deployment.name
        return name

    @classmethod
    def of(cls, app: Application) -> "HostedDeployment":
        """Return the description of a bound deployment: the same one each time."""
        if app not in _descriptions:
            deployment = _serve.deployment_of(app)
            arguments = (deployment.init_args, deployment.init_kwargs)
            _descriptions[app] = cls(_serve.without_arguments(deployment), arguments)
        return _descriptions[app]


_descriptions: "weakref.WeakKeyDictionary[Application, HostedDeployment]" = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True, eq=False)
class HandleTo:
    """In a hosted deployment's arguments, in the place of one that runs in the same process.

    Args:
        hosted: The deployment to whose host the engine puts a handle here.
    """

    hosted: HostedDeployment


class Host:
    """One deployment's class or function, constructed once and called in this process.

    Keeps what the deployment promises its users: ``max_ongoing_requests``,
    ``max_queued_requests`` and its ``backpressure_config``, ``user_config`` by ``reconfigure``,
    ``check_health``, ``__del__``, and a ``@serve.batch`` queue of its own. It lives on one event
    loop.

    Args:
        hosted: What to run.
        handle_to: Gives the handle that takes the place of a ``HandleTo`` in its arguments.
        user_config: What to configure it with.
    """

    def __init__(
        self,
        hosted: HostedDeployment,
        handle_to: Callable[[HandleTo], Any],
        user_config: Any,
    ) -> None:
        deployment = hosted.deployment
        self._hosted = hosted
        self._handle_to = handle_to
        self.user_config = user_config
        self._slots = anyio.Semaphore(deployment.max_ongoing_requests)
        self._max_queued = deployment.max_queued_requests
        self._queued = 0
        self._instance: Any = None
        self._replica: _serve.Replica | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ready = False
        self._configured: Any = None

    async def start(self) -> None:
        """Construct the user's class, once, and give it its ``user_config``.

        When that fails every caller gets the error, and a later call tries again.
        """
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._construct())
        await asyncio.shield(self._starting)

    async def _construct(self) -> None:
        try:
            deployment, arguments = self._hosted.deployment, self._hosted.arguments
            if self._hosted.holds:
                arguments = _serve.replaced(arguments, HandleTo, self._handle_to)
            definition = _serve.hosted_definition(
                deployment.func_or_class, deployment, without_signals
            )
            self._replica = _serve.Replica(definition, arguments, deployment)
            await self._replica.construct()
            self._instance = self._replica.instance
            await self.reconfigure(self.user_config)
            self._ready = True
        except BaseException as raised:
            self._starting = None
            refuse_signal(raised, f"the constructor of {self._hosted.name!r}")
            raise

    async def reconfigure(self, user_config: Any) -> None:
        """Call the user's ``reconfigure`` as Ray would, unless nothing has changed."""
        self.user_config = user_config
        configuration = (user_config, _serve.rank())
        if self._replica is not None and configuration != self._configured:
            await self._replica.reconfigure(user_config)
            self._configured = configuration

    async def check_health(self) -> None:
        """Call the user's ``check_health``, if there is one; it raises when unhealthy."""
        if self._replica is not None:
            await self._replica.check_health()

    async def close(self) -> None:
        """Tear the user's code down, once: ``__del__``, and that of its multiplexed models.

        What is still constructed is waited for: ``__del__`` is not for what is half made.
        """
        if self._starting is not None:
            await asyncio.wait({self._starting})
        replica, self._replica = self._replica, None
        if replica is not None:
            self._instance, self._starting, self._ready = None, None, False
            await replica.destroy()

    @property
    def instance(self) -> Any:
        """The class's instance, or the function; ``None`` while it does not run."""
        return self._instance

    def method(self, name: str) -> Callable[..., Any]:
        """Return the bound method, or the function of a function deployment, while it runs.

        Raises:
            RayServeException: There is no such method; those that are there are listed.
        """
        replica: Any = self._replica
        method: Callable[..., Any] = replica.method(name)
        return method

    def acquire_nowait(self) -> bool:
        """Take one of the ``max_ongoing_requests`` places if one is free; return whether it is."""
        if not self._ready:
            return False
        try:
            self._slots.acquire_nowait()
        except anyio.WouldBlock:
            return False
        return True

    async def acquire(self) -> None:
        """Take one of the ``max_ongoing_requests`` places, waiting in line for it.

        Raises:
            BackPressureError: ``max_queued_requests`` are waiting already.
        """
        if not self._ready:
            await self.start()
        if self.acquire_nowait():
            return
        if 0 <= self._max_queued <= self._queued:
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
    started = instance.__init__(*args, **kwargs)
    if inspect.isawaitable(started):
        await started
    return instance
