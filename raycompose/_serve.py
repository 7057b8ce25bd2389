"""The seam to Ray: the only module that touches Ray's private names.

Each name used here is pinned by a test in tests/test_serve_seam.py, so that a Ray release that
changes one is noticed.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import copyreg
import dataclasses
import functools
import inspect
import queue
import threading
import uuid
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

import ray
from fastapi.encoders import jsonable_encoder
from ray import serve
from ray._private import worker
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient, async_task_id  # type: ignore[attr-defined]  # Cython
from ray.actor import ActorMethod, _ActorMethodOptionsWrapper
from ray.dag.py_obj_scanner import _PyObjScanner
from ray.exceptions import RayError, RayTaskError, UnserializableException
from ray.remote_function import RemoteFunction
from ray.serve import Application, Deployment, context
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import BuiltApplication, IDDict, build_app
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.constants import (
    RAY_SERVE_RUN_SYNC_IN_THREADPOOL,
    SERVE_HTTP_REQUEST_ID_HEADER,
    SERVE_MULTIPLEXED_MODEL_ID,
)
from ray.serve._private.http_util import (
    ASGIAppReplicaWrapper,
    _walk_fastapi_routes,
    convert_object_to_asgi_messages,
    session_id_from_headers,
)
from ray.serve._private.local_testing_mode import LocalReplicaResult, LocalRouter
from ray.serve._private.replica import UserCallableWrapper
from ray.serve._private.utils import (
    GENERATOR_COMPOSITION_NOT_SUPPORTED_ERROR,
    MULTIPLEXED_FUNCTION_MARKER_ATTR,
    generate_request_id,
    serve_encoders,
)
from ray.serve.batching import _LazyBatchQueueWrapper
from ray.serve.context import (
    ReplicaContext,
    _get_global_client,
    _get_in_flight_requests,
    _get_internal_replica_context,
    _get_requests_pending_assignment,
    _get_serve_request_context,
    _RequestContext,
    _serve_request_context,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator
from ray.serve.multiplex import _ModelMultiplexWrapper
from ray.serve.schema import ReplicaRank, ServeDeploySchema

T = TypeVar("T")

# Ray pickles what scripts and notebooks define by value, with cloudpickle, which copies the
# sentinel dataclasses.MISSING as it did others (cloudpipe/cloudpickle#513): pydantic then refuses
# every dataclass that arrives. Process-wide: the sentinel is pickled by its name from here on.
copyreg.pickle(type(dataclasses.MISSING), lambda _: "MISSING")


class RequestContext(NamedTuple):
    """What Ray Serve knows of the request that this task answers."""

    request_id: str
    app_name: str
    multiplexed_model_id: str


def request_context() -> RequestContext:
    """Return the current request's ids, empty strings outside a replica."""
    request = _get_serve_request_context()
    return RequestContext(request.request_id, request.app_name, request.multiplexed_model_id)


def receive_request(headers: Mapping[str, str], path: str = "") -> None:
    """Have this task answer a request, of which Ray would have told its replica.

    Args:
        headers: The HTTP request's.
        path: The HTTP request's; empty for a call.
    """
    _serve_request_context.set(
        _RequestContext(
            route=path,
            request_id=headers.get(SERVE_HTTP_REQUEST_ID_HEADER) or generate_request_id(),
            _internal_request_id=uuid.uuid4().hex,
            app_name=LOCAL,
            multiplexed_model_id=headers.get(SERVE_MULTIPLEXED_MODEL_ID, ""),
            session_id=session_id_from_headers(dict(headers)) or "",
            is_http_request=bool(path),
        )
    )


class CallGroup:
    """Calls by handle that are cancelled together, apart from the rest of the request.

    Ray Serve cancels what a request has called when the request is cancelled. A fused stage is a
    part of one, and calls on its own account: Ray finds its calls by an id of their own.
    """

    def __init__(self) -> None:
        self.context = _part_of_request(cancel_on_parent_request_cancel=True)
        self.id = self.context._internal_request_id

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Have the calls made inside belong to the group, and end with what is inside."""
        token = _serve_request_context.set(self.context)
        try:
            yield
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            _serve_request_context.reset(token)

    def cancel(self) -> None:
        """Cancel the calls that are still under way."""
        for task in list(_get_requests_pending_assignment(self.id).values()):
            task.get_loop().call_soon_threadsafe(task.cancel)
        for call in list(_get_in_flight_requests(self.id).values()):
            call.cancel()


def _part_of_request(**changes: Any) -> Any:
    own_id = uuid.uuid4().hex
    return dataclasses.replace(_get_serve_request_context(), _internal_request_id=own_id, **changes)


def detached(coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Start a task whose calls are not cancelled with the request that starts it."""

    def start() -> "asyncio.Task[T]":
        async_task_id.set(None)  # by which Ray itself finds what a task has called
        _serve_request_context.set(_part_of_request())
        return asyncio.ensure_future(coroutine)

    return contextvars.copy_context().run(start)


def in_replica() -> bool:
    """Tell whether this process is a Serve replica."""
    found = _get_internal_replica_context()
    return found is not None and type(found) is not _LocalContext


def deployment_of(app: Application) -> Deployment:
    """Return the deployment that an application binds."""
    return app._bound_deployment


def autoscaling_config(deployment: Deployment) -> Any:
    """Return the deployment's ``AutoscalingConfig``, or ``None`` for a fixed number of replicas."""
    return deployment._deployment_config.autoscaling_config


def without_arguments(deployment: Deployment) -> Deployment:
    """Return the deployment with no constructor arguments bound, in which Ray would look."""
    return deployment.options(_init_args=(), _init_kwargs={}, _internal=True)


def chosen(deployment: Deployment, *options: str) -> dict[str, Any]:
    """Return those of the options that the deployment sets, as ``options()`` takes them.

    Args:
        deployment: The deployment.
        options: Names of options of ``Deployment.options``.
    """
    config, replica = deployment._deployment_config, deployment._replica_config
    given = config.user_configured_option_names
    values = {o: getattr(config if hasattr(config, o) else replica, o) for o in options}
    return {o: value for o, value in values.items() if o in given and value is not None}


def is_fastapi_ingress(deployment: Deployment) -> bool:
    """Tell whether the deployment is wrapped by ``@serve.ingress``."""
    target = deployment.func_or_class
    return inspect.isclass(target) and issubclass(target, ASGIAppReplicaWrapper)


def routes_of(deployment: Deployment) -> list[tuple[str, str]]:
    """Return the methods and paths of a FastAPI ingress; none of any other deployment."""
    if not is_fastapi_ingress(deployment):
        return []
    held = inspect.getclosurevars(deployment.func_or_class.__init__).nonlocals
    schema = getattr(held.get("frozen_app_or_func"), "openapi", None)
    paths = schema()["paths"] if schema else {}
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def is_batched(method: Callable[..., Any]) -> bool:
    """Tell whether ``method`` is wrapped by ``@serve.batch``: callers then pass single items."""
    return inspect.isroutine(method) and hasattr(method, "set_max_batch_size")


def hosted_definition(definition: Any, deployment: Deployment) -> Any:
    """Return the class or function with what Ray keeps on it apart: its batch queues, its models.

    Ray keeps a ``@serve.batch`` method's queue on the class, which is right for one instance in a
    process. Two fused stages of one class would otherwise have their calls answered by each
    other's instance. Outside of a replica ``@serve.multiplexed`` methods tell no controller of
    their models, for there is none.
    """
    if not inspect.isclass(definition):
        return _rebatched(definition, deployment) if is_batched(definition) else definition
    own = {
        name: _rebatched(method, deployment)
        for name, method in inspect.getmembers(definition, is_batched)
    }
    if not in_replica():
        for name, method in inspect.getmembers(definition, _is_multiplexed):
            own[name] = _remodelled(method, deployment)
    names = {"__module__": definition.__module__, "__qualname__": definition.__qualname__}
    return type(definition.__name__, (definition,), {**own, **names}) if own else definition


def _rebatched(method: Any, deployment: Deployment) -> Any:
    old = _batch_queue(method)
    new: Any = serve.batch(
        max_batch_size=old.max_batch_size,
        batch_wait_timeout_s=old.batch_wait_timeout_s,
        max_concurrent_batches=old.max_concurrent_batches,
        batch_size_fn=old.batch_size_fn,
    )(old.handle_batch_func)
    if not in_replica():  # a queue asks for its replica's context when it is made, or changed
        set_size = new.set_max_batch_size

        def set_max_batch_size(new_max_batch_size: int) -> None:
            with _replica_context(deployment):
                set_size(new_max_batch_size)

        new.set_max_batch_size = set_max_batch_size
        with _replica_context(deployment):
            _batch_queue(new).queue  # noqa: B018  # makes it
    return new


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


def _is_multiplexed(method: Any) -> bool:
    return inspect.isfunction(method) and hasattr(method, MULTIPLEXED_FUNCTION_MARKER_ATTR)


def _remodelled(method: Any, deployment: Deployment) -> Any:
    closure = inspect.getclosurevars(method).nonlocals
    load, most = closure["func"], closure["max_num_models_per_replica"]

    @functools.wraps(method)
    async def model(self: Any, model_id: str) -> Any:
        if not hasattr(self, _MODELS):
            with _replica_context(deployment):
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

    async def construct(self) -> None:
        """Construct the class; start the lifespan of a FastAPI ingress."""
        _hosted.set(True)
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
            with _replica_context(*self._where):
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


@dataclasses.dataclass
class _LocalContext(ReplicaContext):  # type: ignore[misc]  # Ray's types are not followed
    """The context of a replica that is none, for what asks for one."""


_context_lock = threading.RLock()


@contextmanager
def _replica_context(deployment: Deployment, instance: Any = None) -> Iterator[None]:
    """Have ``serve.get_replica_context()`` succeed inside, which must not wait for anything."""
    with _context_lock:
        before = context._INTERNAL_REPLICA_CONTEXT
        context._INTERNAL_REPLICA_CONTEXT = before or _LocalContext(
            replica_id=ReplicaID("local", DeploymentID(deployment.name, LOCAL)),
            servable_object=instance,
            _deployment_config=deployment._deployment_config,
            rank=rank(),
            world_size=1,
        )
        try:
            yield
        finally:
            context._INTERNAL_REPLICA_CONTEXT = before


_hosted: contextvars.ContextVar[bool] = contextvars.ContextVar("raycompose_hosted", default=False)


def is_hosted() -> bool:
    """Tell whether the code that is constructed now is hosted, rather than a replica's own."""
    return _hosted.get()


def own_user_config() -> Any:
    """Return this replica's ``user_config``; ``None`` outside of one, and for what it hosts."""
    if not in_replica() or is_hosted():
        return None
    return _get_internal_replica_context()._deployment_config.user_config


def rank() -> ReplicaRank:
    """Return this replica's rank; outside of one that of the only replica."""
    return _get_internal_replica_context().rank if in_replica() else _FIRST


_FIRST = ReplicaRank(rank=0, node_rank=0, local_rank=0)
LOCAL = "local"
"""The application's name outside of a replica."""


def app_name() -> str:
    """Return the name of the application that this replica is part of."""
    name: str = _get_internal_replica_context().app_name if in_replica() else LOCAL
    return name


def methods_of(ingress: type) -> list[str]:
    """Return the public methods that a FastAPI ingress has beside Ray's."""
    ours = set(dir(ASGIAppReplicaWrapper))
    public = [name for name in dir(ingress) if name[0] != "_" and name not in ours]
    return [name for name in public if callable(getattr(ingress, name))]


def constructor(definition: type) -> Any:
    """Return the constructor that the user has written, of a FastAPI ingress, too."""
    if issubclass(definition, ASGIAppReplicaWrapper):  # Ray's wrapper takes anything and passes it
        definition = next(c for c in definition.__mro__ if "frozen_app_or_func" not in _closure(c))
    return definition.__init__  # type: ignore[misc]  # the class's own, to be looked at


def _closure(definition: Any) -> Mapping[str, Any]:
    written = vars(definition).get("__init__")
    return inspect.getclosurevars(written).nonlocals if inspect.isfunction(written) else {}


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


class Callee(Protocol):
    """What answers the calls of a handle in this process."""

    async def call(self, method: str, args: Any, kwargs: Any) -> Any:
        """Give the result of a method."""

    def stream(self, method: str, args: Any, kwargs: Any) -> AsyncGenerator[Any, None]:
        """Give the items of a method that is a generator."""


class HandleHere(DeploymentHandle[Any]):  # type: ignore[misc]  # Ray's types are not followed
    """A handle whose calls are answered in this process."""


def handle_to(callee: Callee, name: str, loop: asyncio.AbstractEventLoop) -> DeploymentHandle[Any]:
    """Return a ``DeploymentHandle`` whose calls are answered in this process.

    Stands on Ray Serve's local testing mode.

    Args:
        callee: What answers them.
        name: The deployment's name.
        loop: The event loop that the callee lives on.
    """
    return HandleHere(name, app_name(), _create_router=lambda **_: _Router(callee, loop))


class _Router(LocalRouter):  # type: ignore[misc]  # Ray's types are not followed
    def __init__(self, callee: Callee, loop: asyncio.AbstractEventLoop) -> None:
        self._callee = callee
        self._loop = loop

    def assign_request(self, request_meta: Any, *args: Any, **kwargs: Any) -> Any:
        items: queue.Queue[Any] | None = queue.Queue() if request_meta.is_streaming else None
        answer = self._answer(request_meta, args, kwargs, items)
        result = _Result(
            asyncio.run_coroutine_threadsafe(answer, self._loop),
            request_id=request_meta.request_id,
            is_streaming=request_meta.is_streaming,
            generator_result_queue=items,
        )
        assigned: concurrent.futures.Future[Any] = concurrent.futures.Future()
        assigned.set_result(result)
        return assigned

    async def _answer(self, meta: Any, args: Any, kwargs: Any, items: Any) -> Any:
        _serve_request_context.set(
            _RequestContext(
                route=meta.route,
                request_id=meta.request_id,
                _internal_request_id=meta.internal_request_id,
                app_name=app_name(),
                multiplexed_model_id=meta.multiplexed_model_id,
                session_id=meta.session_id,
            )
        )
        args = [await _resolved(arg) for arg in args]
        kwargs = {name: await _resolved(arg) for name, arg in kwargs.items()}
        if items is None:
            return await self._callee.call(meta.call_method, args, kwargs)
        async for item in self._callee.stream(meta.call_method, args, kwargs):
            items.put_nowait(item)
        return None


async def _resolved(argument: Any) -> Any:
    if isinstance(argument, DeploymentResponseGenerator):
        raise GENERATOR_COMPOSITION_NOT_SUPPORTED_ERROR
    return await argument if isinstance(argument, DeploymentResponse) else argument


class _Result(LocalReplicaResult):  # type: ignore[misc]  # Ray's types are not followed
    """A result that another deployment's handle takes for an argument, too."""

    async def to_object_ref_async(self) -> Any:
        if not in_replica():
            raise self.OBJ_REF_NOT_SUPPORTED_ERROR
        return ray.put(await self.get_async())


def setting(deployment: Deployment, name: str) -> Any:
    """Return a setting of the deployment that has no public property."""
    return getattr(deployment._deployment_config, name)


def task_function(task: Any) -> Callable[..., Any] | None:
    """Return the Python function that a ``@ray.remote`` function wraps, ``None`` if it is not one.

    Also of what ``task.options(...)`` gives.
    """
    if not isinstance(task, RemoteFunction):
        # A class that Ray makes for each call of options(), which holds the task in a closure.
        remote = getattr(type(task), "remote", None)
        held = inspect.getclosurevars(remote).nonlocals if inspect.isfunction(remote) else {}
        task = held.get("func_cls")
    return task._function if isinstance(task, RemoteFunction) else None


class MethodOfActor(NamedTuple):
    """What Ray knows of an actor's method."""

    name: str
    streams: bool


def method_of_actor(method: Any) -> MethodOfActor | None:
    """Return what Ray knows of an actor's method, ``None`` if it is not one.

    Also of what ``actor.method.options(...)`` gives.
    """
    if isinstance(method, _ActorMethodOptionsWrapper):
        method = method._actor_method
    if not isinstance(method, ActorMethod):
        return None
    return MethodOfActor(method._method_name, bool(method._is_generator))


def actor_class_name(actor_class: Any) -> str:
    """Return the name of the class that ``@ray.remote`` wraps."""
    name: str = actor_class.__ray_metadata__.class_name
    return name


async def object_ref(response: Any) -> Any:
    """Return the ``ObjectRef`` of a response; ``None`` by gRPC and in local testing mode."""
    return await _converted(response, response._to_object_ref)


async def object_ref_gen(response: Any) -> Any:
    """Return the ``ObjectRefGenerator`` of a streaming response; ``None`` where there is none."""
    return await _converted(response, response._to_object_ref_gen)


async def ready(ref: Any) -> None:
    """Wait until the result of an ``ObjectRef`` exists, without fetching it."""
    await ref._ready()


async def _converted(response: Any, convert: Callable[[], Any]) -> Any:
    if not response.by_reference:
        return None
    try:
        return await convert()
    except RuntimeError as error:
        if "local testing mode" in str(error):
            return None
        raise


class LazyApplication(Application):  # type: ignore[misc]  # Ray's types are not followed
    """An application whose deployment is bound when Ray first asks for it."""

    def __init__(self) -> None:
        super().__init__(None)
        del self._bound_deployment  # set by Application; here computed from the graph

    @cached_property
    def _bound_deployment(self) -> Deployment:
        return self.bind_front()

    def bind_front(self) -> Deployment:
        """Return the deployment with its arguments bound."""
        raise NotImplementedError


def build(app: Application, name: str) -> BuiltApplication:
    """Return the deployments that Ray Serve would start for ``app``, without a cluster."""
    return build_app(app, name=name)


def found(value: Any, kind: type) -> list[Any]:
    """Return everything of a kind in ``value``, wherever pickling finds it."""
    scanner: Any = _PyObjScanner(source_type=kind)
    try:
        return list(scanner.find_nodes(value))
    finally:
        scanner.clear()


def replaced(value: Any, kind: type | tuple[type, ...], replacement: Callable[[Any], Any]) -> Any:
    """Return ``value`` with everything of a kind in it replaced, wherever pickling finds it.

    ``value`` itself is returned when nothing is to be replaced.
    """
    scanner: Any = _PyObjScanner(source_type=kind)
    try:
        table: Any = IDDict()
        found = scanner.find_nodes(value)
        for item in found:
            table[item] = replacement(item)
        changed = any(table[item] is not item for item in found)
        return scanner.replace_nodes(table) if changed else value
    finally:
        scanner.clear()


def call_builder(target: Any, arguments: Mapping[str, str]) -> Application:
    """Return the application that an import path names, calling it if it is an app builder."""
    return call_user_app_builder_with_args_if_necessary(target, dict(arguments))


def cluster_address(address: str | None) -> str | None:
    """Return the running cluster that ``ray.init(address)`` would join; ``None``: it starts one."""
    found: str | None = canonicalize_bootstrap_address(address)
    return found


def ask_cluster(address: str) -> None:
    """Ask the cluster at ``host:port`` whether it is one; it may take its time to say no.

    Raises:
        Exception: It is none, or wants a token that this process does not have.
    """
    GcsClient(address=address).get_all_node_info(timeout=5)


def show_worker_logs(show: Callable[[dict[str, Any]], None]) -> None:
    """Have ``show`` print what workers write, in the place of Ray.

    It is given ``actor_name``, ``lines`` and ``is_err``, among others.
    """
    global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
    global_worker_stdstream_dispatcher.remove_handler("raycompose")
    global_worker_stdstream_dispatcher.add_handler("raycompose", show)


def hush_worker_logs() -> None:
    """Show nothing more of what workers write: how Serve's own end is nobody's concern."""
    worker._worker_logs_enabled = False


def deploy_config(config: Mapping[str, Any]) -> None:
    """Deploy a Serve config's applications on the running Serve, without waiting for them."""
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))


class DeploymentState(NamedTuple):
    """How far a deployment is: its replicas, and what each asks for."""

    name: str
    status: str
    message: str
    wanted: int
    running: int
    placed: int
    needs: dict[str, float]


class ApplicationState(NamedTuple):
    """How far an application is."""

    status: str
    message: str
    declared: bool
    deployments: tuple[DeploymentState, ...]


def applications() -> dict[str, ApplicationState]:
    """Return the state of every application on the running Serve, by name."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return {}
    details = client.get_serve_details()["applications"]
    return {
        name: ApplicationState(
            app["status"].value,
            app["message"],
            app["source"] == "declarative",
            tuple(map(_deployment_state, app["deployments"].values())),
        )
        for name, app in details.items()
    }


def _deployment_state(details: dict[str, Any]) -> DeploymentState:
    replicas = details["replicas"]
    return DeploymentState(
        details["name"],
        details["status"].value,
        details["message"],
        details["target_num_replicas"],
        sum(replica["state"] == "RUNNING" for replica in replicas),
        sum(replica.get("pid") is not None for replica in replicas),
        dict(details["required_resources"] or {}),
    )


class Running(NamedTuple):
    """A running Serve instance: where it listens, and each application's route prefix."""

    host: str
    port: int
    route_prefixes: dict[str, str | None]


def running() -> Running | None:
    """Return what runs on the cluster that this process has joined; ``None`` without Serve."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    apps = client.get_serve_details()["applications"]
    prefixes = {name: app["route_prefix"] for name, app in apps.items()}
    return Running(client.http_config.host, client.http_config.port, prefixes)


def encode_body(value: Any) -> tuple[bytes, str]:
    """Return ``value`` as Ray Serve itself would send it: the body and its content type."""
    start, body = convert_object_to_asgi_messages(value)
    return body["body"], dict(start["headers"])[b"content-type"].decode()


def jsonable(value: Any) -> Any:
    """Return ``value`` as the plain tree that Ray Serve itself would send as JSON."""
    return jsonable_encoder(value, custom_encoder=serve_encoders)


def did_not_stream(error: TypeError) -> bool:
    """Tell whether this is Ray's answer to ``stream=True`` on what gave one result."""
    return "did not return a generator" in str(error)


def has_no_method(error: Exception) -> bool:
    """Tell whether this is Ray's answer to a call of a method that a deployment does not have."""
    return "Tried to call a method" in str(error) and "that does not exist" in str(error)


def unwrap(error: BaseException) -> BaseException:
    """Return the exception that the user's code raised, out of Ray's ``RayTaskError``."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def text_of_unsendable(error: BaseException) -> str | None:
    """Return Ray's text of an exception that it could not send; ``None`` for any other error."""
    if isinstance(error, UnserializableException):
        return str(error)
    if type(error) is RayError and "isn't serializable" in str(error):
        return str(error)
    return None


def by_reference(handle: Any) -> Any:
    """Return the handle with results as ``ObjectRef``s, whatever Ray's default transport is."""
    return handle.options(_by_reference=True)


def by_grpc(handle: Any) -> Any:
    """Return the handle with calls by gRPC, whatever Ray's default transport is."""
    return handle.options(_by_reference=False)


def is_own_deployment(handle: Any) -> bool:
    """Tell whether a handle leads to the deployment that this replica belongs to."""
    replica = _get_internal_replica_context()
    return replica is not None and replica.replica_id.deployment_id == handle.deployment_id


__all__ = [
    "ApplicationState",
    "CallGroup",
    "Callee",
    "DeploymentState",
    "HandleHere",
    "LazyApplication",
    "MethodOfActor",
    "Replica",
    "RequestContext",
    "Running",
    "actor_class_name",
    "app_name",
    "applications",
    "asgi_of",
    "ask_cluster",
    "autoscaling_config",
    "build",
    "by_grpc",
    "by_reference",
    "call_builder",
    "chosen",
    "cluster_address",
    "constructor",
    "deploy_config",
    "deployment_of",
    "detached",
    "did_not_stream",
    "encode_body",
    "end_batches",
    "found",
    "handle_to",
    "has_no_method",
    "hosted_definition",
    "hush_worker_logs",
    "in_replica",
    "is_batched",
    "is_fastapi_ingress",
    "is_hosted",
    "is_own_deployment",
    "jsonable",
    "method_of_actor",
    "methods_of",
    "object_ref",
    "object_ref_gen",
    "own_user_config",
    "rank",
    "ready",
    "receive_request",
    "replaced",
    "request_context",
    "routes_of",
    "running",
    "setting",
    "show_worker_logs",
    "task_function",
    "text_of_unsendable",
    "unwrap",
    "without_arguments",
]
