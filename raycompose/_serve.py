"""The seam to Ray: the only module that touches Ray's private names.

Each name used here is pinned by a test in tests/test_serve_seam.py, so that a Ray release that
changes one is noticed.
"""

import asyncio
import contextvars
import copyreg
import dataclasses
import inspect
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

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
from ray.serve._private.http_util import ASGIAppReplicaWrapper, convert_object_to_asgi_messages
from ray.serve._private.local_testing_mode import make_local_deployment_handle
from ray.serve.batching import _LazyBatchQueueWrapper
from ray.serve.context import (
    _get_global_client,
    _get_in_flight_requests,
    _get_internal_replica_context,
    _get_requests_pending_assignment,
    _get_serve_request_context,
    _serve_request_context,
    _set_internal_replica_context,
)
from ray.serve.schema import ServeDeploySchema

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
    return _get_internal_replica_context() is not None


def deployment_of(app: Application) -> Deployment:
    """Return the deployment that an application binds."""
    return app._bound_deployment


def autoscaling_config(deployment: Deployment) -> Any:
    """Return the deployment's ``AutoscalingConfig``, or ``None`` for a fixed number of replicas."""
    return deployment._deployment_config.autoscaling_config


def placement_group(deployment: Deployment) -> dict[str, Any]:
    """Return the placement group options that the deployment sets, as ``options()`` takes them."""
    config = deployment._replica_config
    names = ("placement_group_bundles", "placement_group_strategy")
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


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


def with_own_batch_queues(definition: Any, deployment: Deployment) -> Any:
    """Return the class or function with ``@serve.batch`` queues of its own, on the running loop.

    Ray keeps a method's queue on the class, which is right for one instance in a process. Two
    fused stages of one class would otherwise have their calls answered by each other's instance.
    """
    if not inspect.isclass(definition):
        return _rebatched(definition, deployment) if is_batched(definition) else definition
    own = {
        name: _rebatched(method, deployment)
        for name, method in inspect.getmembers(definition, is_batched)
    }
    names = {"__module__": definition.__module__, "__qualname__": definition.__qualname__}
    return type(definition.__name__, (definition,), {**own, **names}) if own else definition


def _rebatched(method: Any, deployment: Deployment) -> Any:
    old = _batch_queue(method)
    new = serve.batch(
        max_batch_size=old.max_batch_size,
        batch_wait_timeout_s=old.batch_wait_timeout_s,
        max_concurrent_batches=old.max_concurrent_batches,
        batch_size_fn=old.batch_size_fn,
    )(old.handle_batch_func)
    if not in_replica():  # a queue asks for its replica's context when it is made
        _set_internal_replica_context(
            replica_id=ReplicaID("local", DeploymentID(deployment.name, "local")),
            servable_object=new,
            _deployment_config=deployment._deployment_config,
            rank=None,
            world_size=1,
        )
        try:
            _batch_queue(new).queue  # noqa: B018  # makes it
        finally:
            context._INTERNAL_REPLICA_CONTEXT = None
    return new


def _batch_queue(method: Any) -> Any:
    cells = inspect.getclosurevars(method).nonlocals["enqueue_request"].__closure__
    contents = (cell.cell_contents for cell in cells)
    return next(c for c in contents if isinstance(c, _LazyBatchQueueWrapper))


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


def with_local_handles(value: Any, app_name: str) -> Any:
    """Return ``value`` with every application in it replaced by a handle in this process.

    Stands on Ray Serve's local testing mode. ``value`` itself is returned when it holds none.
    """
    scanner: Any = _PyObjScanner(source_type=Application)
    try:
        found = scanner.find_nodes(value)
        if not found:
            return value
        handles: Any = IDDict()
        for app in found:
            built = build_app(
                app, name=app_name, make_deployment_handle=make_local_deployment_handle
            )
            handles[app] = built.deployment_handles[built.ingress_deployment_name]
        return scanner.replace_nodes(handles)
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


def did_not_stream(error: TypeError) -> bool:
    """Tell whether this is Ray's answer to ``stream=True`` on what gave one result."""
    return "did not return a generator" in str(error)


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
    "DeploymentState",
    "LazyApplication",
    "MethodOfActor",
    "RequestContext",
    "Running",
    "actor_class_name",
    "applications",
    "ask_cluster",
    "autoscaling_config",
    "build",
    "by_grpc",
    "by_reference",
    "call_builder",
    "cluster_address",
    "deploy_config",
    "deployment_of",
    "detached",
    "did_not_stream",
    "encode_body",
    "hush_worker_logs",
    "in_replica",
    "is_batched",
    "is_fastapi_ingress",
    "is_own_deployment",
    "method_of_actor",
    "object_ref",
    "object_ref_gen",
    "placement_group",
    "ready",
    "request_context",
    "routes_of",
    "running",
    "setting",
    "show_worker_logs",
    "task_function",
    "text_of_unsendable",
    "unwrap",
    "with_local_handles",
    "with_own_batch_queues",
]
