"""User code as a replica has it, in another process than a replica's own."""

import contextlib
import contextvars
import functools
import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any, TypeVar

from ray import cloudpickle, serve
from ray.serve import Deployment
from ray.serve._private.common import DeploymentID
from ray.serve._private.constants import RAY_SERVE_RUN_SYNC_IN_THREADPOOL
from ray.serve._private.http_util import ASGIAppReplicaWrapper, _walk_fastapi_routes
from ray.serve._private.replica import UserCallableWrapper
from ray.serve._private.utils import MULTIPLEXED_FUNCTION_MARKER_ATTR
from ray.serve.multiplex import _ModelMultiplexWrapper

from raycompose._serve.batching import end_batches, rebatched
from raycompose._serve.deployments import is_batched
from raycompose._serve.replica import app_name, hosted, in_replica, rank, replica_context

T = TypeVar("T")


def hosted_definition(
    definition: Any, deployment: Deployment, guarded: Callable[[Any], Any]
) -> Any:
    """Return the class or function with what Ray keeps on it apart: its batch queues, its models.

    Ray keeps a ``@serve.batch`` method's queue on the class, which is right for one instance in a
    process. Two fused stages of one class would otherwise have their calls answered by each
    other's instance. Outside of a replica ``@serve.multiplexed`` methods tell no controller of
    their models, for there is none; and a FastAPI ingress has its own app, as in a replica, for
    Ray's handlers on it hold the instance, with which the class could not be bound again.

    Args:
        definition: The class or function.
        deployment: Its deployment.
        guarded: Gives what a batch calls in the place of the user's function.
    """
    if not inspect.isclass(definition):
        return rebatched(definition, deployment, guarded) if is_batched(definition) else definition
    own = {
        name: rebatched(method, deployment, guarded)
        for name, method in inspect.getmembers(definition, is_batched)
    }
    if not in_replica():
        for name, method in inspect.getmembers(definition, _is_multiplexed):
            own[name] = _remodelled(method, deployment)
        if issubclass(definition, ASGIAppReplicaWrapper) and not hasattr(definition, _OWN_APP):
            own["__init__"] = _with_own_app(definition.__init__)
    return _derived(definition, own) if own else definition


def _derived(definition: Any, own: Mapping[str, Any]) -> Any:
    """A class that goes by the same name, with some members of its own."""
    names = {"__module__": definition.__module__, "__qualname__": definition.__qualname__}
    return type(definition.__name__, (definition,), {**own, **names})


_OWN_APP = "_raycompose_own_app"


def with_own_app(deployment: Deployment) -> Deployment:
    """Return the deployment of a FastAPI ingress with an app that no other instance has."""
    definition: Any = deployment.func_or_class
    own = {"__init__": _with_own_app(definition.__init__), _OWN_APP: True}
    return deployment.options(func_or_class=_derived(definition, own), _internal=True)


def _with_own_app(init: Any) -> Any:
    cells = dict(zip(init.__code__.co_freevars, init.__closure__ or (), strict=True))
    app = cells["frozen_app_or_func"].cell_contents if "frozen_app_or_func" in cells else None
    if app is None or inspect.isfunction(app):  # a class derived from an ingress; one for each
        return init
    cells["frozen_app_or_func"] = types.CellType(cloudpickle.loads(cloudpickle.dumps(app)))
    closure = tuple(cells.values())
    return types.FunctionType(init.__code__, init.__globals__, closure=closure)


def _is_multiplexed(method: Any) -> bool:
    return inspect.isfunction(method) and hasattr(method, MULTIPLEXED_FUNCTION_MARKER_ATTR)


def _remodelled(method: Any, deployment: Deployment) -> Any:
    closure = inspect.getclosurevars(method).nonlocals
    load, most = closure["func"], closure["max_num_models_per_replica"]

    @functools.wraps(method)
    async def model(self: Any, model_id: str) -> Any:
        if not hasattr(self, _MODELS):
            with replica_context(deployment):
                setattr(self, _MODELS, _Models(load, self, most))
        return await getattr(self, _MODELS).load_model(model_id)

    return model


_MODELS = "__serve_multiplex_wrapper"


class _Models(_ModelMultiplexWrapper):  # type: ignore[misc]  # Ray's types are not followed
    """A cache of models of which no controller is told."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.metrics_pusher.stop_event.set()

    def _push_model_ids_info(self) -> None:
        pass


class Replica:
    """User code as a replica has it: constructed, configured and torn down by Ray's own code.

    Stands on ``UserCallableWrapper``, through which a replica does everything with user code. It
    lives on the running loop, here as it does in a replica.

    Args:
        definition: The deployment's class or function; what ``hosted_definition`` gives.
        arguments: The constructor's, with handles in the place of applications.
        deployment: The deployment.
    """

    def __init__(
        self,
        definition: Any,
        arguments: tuple[tuple[Any, ...], Mapping[str, Any]],
        deployment: Deployment,
    ) -> None:
        self._deployment = deployment
        self._definition = definition
        self._code = UserCallableWrapper(
            definition,
            arguments[0],
            dict(arguments[1]),
            deployment_id=DeploymentID(deployment.name, app_name()),
            run_sync_methods_in_threadpool=RAY_SERVE_RUN_SYNC_IN_THREADPOOL,
            run_user_code_in_separate_thread=False,
            local_testing_mode=False,
            deployment_config=deployment._deployment_config,
            actor_id="",
        )

    @property
    def instance(self) -> Any:
        """The class's instance, or the function."""
        return self._code.user_callable

    def method(self, name: str) -> Any:
        """Return the bound method, or the function of a function deployment.

        Raises:
            RayServeException: There is no such method; those that are there are listed.
        """
        return self._code.get_user_method_info(name).callable

    async def construct(self) -> None:
        """Construct the class; start the lifespan of a FastAPI ingress."""
        hosted.set(True)
        await self._run(self._code.initialize_callable())

    async def reconfigure(self, user_config: Any) -> None:
        """Call ``reconfigure(user_config)``, with the rank if it takes one, when Ray would."""
        await self._run(self._code.call_reconfigure(user_config, rank()))

    async def check_health(self) -> None:
        """Call ``check_health``, if there is one; it raises when unhealthy."""
        check = self._code.call_user_health_check()
        if check is not None:
            await self._run(check)

    async def destroy(self) -> None:
        """Call ``__del__``, which may be a coroutine, and unload multiplexed models."""
        instance = self.instance
        await self._run(self._code.call_destructor())
        end_batches(self._definition)
        if inspect.isclass(self._definition) and hasattr(instance, "__del__"):
            _never_destroy_again(instance)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """A replica's context is there for the code that runs now, not for what it waits for."""
        return coroutine if in_replica() else _Steps(coroutine, self._deployment, self.instance)


class _Steps:
    def __init__(self, coroutine: Any, deployment: Deployment, instance: Any) -> None:
        self._coroutine = coroutine
        self._where = (deployment, instance)

    def __await__(self) -> Generator[Any, Any, Any]:
        step = functools.partial(self._coroutine.send, None)
        while True:
            with replica_context(*self._where):
                try:
                    waits_for = step()
                except StopIteration as done:
                    return done.value
            try:
                yield waits_for
                step = functools.partial(self._coroutine.send, None)
            except BaseException as error:
                step = functools.partial(self._coroutine.throw, error)


def _never_destroy_again(instance: Any) -> None:
    """Keep Python from calling ``__del__`` a second time, when it collects the instance."""
    kind = type(instance)
    spent = {"__del__": lambda self: None, "__slots__": ()}
    with contextlib.suppress(TypeError):  # a class that does not let itself be derived from
        instance.__class__ = type(kind.__name__, (kind,), spent)


def asgi_of(instance: Any) -> Any:
    """Return a FastAPI ingress as an ASGI app, whose routes have this instance for their ``self``.

    Ray's own routes ask the replica's context for it.
    """
    with contextlib.suppress(AttributeError):  # an ASGI app of another kind has no such routes
        for route, *_ in _walk_fastapi_routes(instance.app):
            parameters = inspect.signature(route.endpoint).parameters.values()
            found = next((getattr(p.default, "dependency", None) for p in parameters), None)
            if getattr(found, "__name__", "") == "get_current_servable_instance":
                instance.app.dependency_overrides[found] = _current_instance

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        _answering.set(instance)
        await instance(scope, receive, send)

    return asgi


_answering: contextvars.ContextVar[Any] = contextvars.ContextVar("raycompose_answering")


async def _current_instance() -> Any:
    # The app is sent with its overrides when its class is deployed, too.
    return _answering.get(None) or serve.get_replica_context().servable_object
