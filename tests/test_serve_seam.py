"""The seam: each private name of Ray that ``raycompose/_serve.py`` uses is pinned by a test."""

import ast
import asyncio
import gc
import inspect
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import test_serve_facts
from fastapi import FastAPI
from ray import serve
from ray._private import ray_logging  # noqa: TID251  # pinned here
from ray.exceptions import RayTaskError
from ray.serve import Application, context
from ray.serve._private import constants  # noqa: TID251  # pinned here
from ray.serve._private.common import DeploymentID  # noqa: TID251  # pinned here
from ray.serve.batching import _LazyBatchQueueWrapper
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.testclient import TestClient
from support import pickle_by_value, plain
from support.plain import Batched, Box, Echo, Shape
from support.waiting import until

import raycompose as rc
from raycompose import _serve
from raycompose._serve import cluster as serve_cluster
from raycompose.client import fast

pickle_by_value(__name__)


class Either(_serve.LazyApplication):
    """A subclass of Application, for what Ray accepts as one."""

    def bind_front(self) -> Any:
        return _serve.deployment_of(Shape.bind(Box(None)))


def test_a_call_that_is_not_assigned_yet_is_cancelled_with_its_group() -> None:
    """Those not yet under way are tracked, too: ``_get_requests_pending_assignment``."""

    async def assigning() -> bool:
        group = _serve.CallGroup()
        task = asyncio.ensure_future(asyncio.sleep(60))
        context._add_request_pending_assignment(group.id, "a response's", task)
        group.cancel()
        await asyncio.wait({task})
        context._remove_request_pending_assignment(group.id, "a response's")
        return task.cancelled()

    assert asyncio.run(assigning())


SEAM = Path(_serve.__file__).parent


def private_names_used() -> set[str]:
    """Return what the seam imports from Ray, and the private attributes that it reads.

    Those of ``self`` are the seam's own.
    """
    trees = [ast.parse(path.read_text()) for path in SEAM.glob("*.py")]
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray":
            names |= {alias.name for alias in node.names}
        own = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr) and not own:
            names.add(node.attr)
    return names


def test_every_private_name_in_the_seam_is_named_in_this_file() -> None:
    """A name that the seam takes from Ray without a test, here or in a replica, is noticed.

    Ray's ``cloudpickle`` is public; tests/test_fastapi.py has what it copies.
    """
    files = (__file__, test_serve_facts.__file__, plain.__file__)
    text = "".join(Path(file).read_text() for file in files)
    used = {name for name in private_names_used() if name.startswith("_") or name[0].islower()}
    assert used, "the seam uses private names"
    assert sorted(name for name in used if not re.search(rf"\b{name}\b", text)) == []


def test_only_the_seam_touches_rays_private_modules() -> None:
    """No other module of the package imports ``ray._private`` or ``ray.serve._private``."""
    offenders = [
        path.name
        for path in SEAM.parent.rglob("*.py")
        if path.parent != SEAM and re.search(r"\bray(\.serve)?\._private\b", path.read_text())
    ]
    assert offenders == []


def test_deployment_of_an_application() -> None:
    """``Application._bound_deployment`` is the deployment, with its arguments bound."""
    deployment = _serve.deployment_of(Echo.bind(1, b=2))
    assert isinstance(deployment, serve.Deployment)
    assert (deployment.name, deployment.init_args, deployment.init_kwargs) == (
        "Echo",
        (1,),
        {"b": 2},
    )


def test_application_takes_nothing_but_its_bound_deployment() -> None:
    """LazyApplication can call Application's constructor with None and drop what it set."""
    assert list(inspect.signature(Application.__init__).parameters) == ["self", "bound_deployment"]
    lazy = Either()
    assert "_bound_deployment" not in vars(lazy)
    assert _serve.deployment_of(lazy).name == "Shape"
    assert _serve.deployment_of(lazy) is _serve.deployment_of(lazy)


def test_autoscaling_config_of_a_deployment() -> None:
    """``_deployment_config.autoscaling_config`` is None for a fixed number of replicas."""
    assert _serve.autoscaling_config(Echo) is None
    scaled = Echo.options(autoscaling_config={"min_replicas": 1, "max_replicas": 4})
    assert _serve.autoscaling_config(scaled).max_replicas == 4


def test_a_deployment_without_its_arguments() -> None:
    """``options(_init_args=, _init_kwargs=, _internal=)`` leaves the rest as it is."""
    bound: Any = _serve.deployment_of(Echo.bind(1, b=2))
    bare = _serve.without_arguments(bound)
    assert (bound.init_args, bound.init_kwargs) == ((1,), {"b": 2})
    assert (bare.init_args, bare.init_kwargs) == ((), {})
    assert (bare.name, bare.func_or_class) == (bound.name, bound.func_or_class)


def test_options_that_a_deployment_sets() -> None:
    """``user_configured_option_names``; ``_deployment_config`` or ``_replica_config`` has it."""
    names = ("placement_group_bundles", "placement_group_strategy", "logging_config")
    assert _serve.chosen(Echo, *names) == {}
    options = {"placement_group_bundles": [{"CPU": 1}], "placement_group_strategy": "PACK"}
    placed = Echo.options(**options)
    assert _serve.chosen(placed, *names) == options
    assert _serve.chosen(Echo.options(**_serve.chosen(placed, *names)), *names) == options
    logged = serve.deployment(Batched, logging_config={"log_level": "DEBUG"})
    assert _serve.chosen(logged, *names)["logging_config"]["log_level"] == "DEBUG"


def test_settings_that_have_no_property() -> None:
    """``_deployment_config`` has each setting that fusing merges, as ``options()`` sets it."""
    from raycompose.compose import front

    for number, name in enumerate(front._LARGEST, start=31):
        assert _serve.setting(Echo.options(**{name: number}), name) == number


def test_a_fastapi_ingress_is_recognised() -> None:
    """``@serve.ingress`` makes an ASGIAppReplicaWrapper, which no other deployment is."""

    class Api:
        pass

    assert _serve.is_fastapi_ingress(serve.deployment(serve.ingress(FastAPI())(Api)))
    assert not _serve.is_fastapi_ingress(Echo)
    assert not _serve.is_fastapi_ingress(serve.deployment(len))


def test_batched_methods_are_recognised() -> None:
    """``@serve.batch`` gives its function ``set_max_batch_size``, and plain ones have none."""
    assert _serve.is_batched(Batched.many)
    assert _serve.is_batched(Batched(1).many)
    assert not _serve.is_batched(Batched.plain)


def test_batch_queues_are_found_and_copied_with_their_settings() -> None:
    """The closure of a batched method holds a _LazyBatchQueueWrapper with what was configured."""
    own = asyncio.run(_own_queues(Batched))
    assert own is not Batched
    assert (own.__name__, own.__qualname__, own.__module__) == (
        "Batched",
        Batched.__qualname__,
        Batched.__module__,
    )
    assert issubclass(own, Batched)
    queues = [_queue_of(c.many) for c in (Batched, own)]
    assert queues[0] is not queues[1]
    for name in ("max_batch_size", "batch_wait_timeout_s", "max_concurrent_batches"):
        assert getattr(queues[0], name) == getattr(queues[1], name)
    assert queues[1].max_batch_size == 3
    assert queues[1].handle_batch_func is queues[0].handle_batch_func
    assert asyncio.run(_own_queues(Echo.func_or_class)) is Echo.func_or_class


def test_a_queue_outside_of_a_replica_has_a_context_only_while_it_is_made() -> None:
    """_set_internal_replica_context is undone: _get_internal_replica_context gives None again.

    A queue asks for its replica's context as it is made (ReplicaID, DeploymentID), and there is
    none on the local engine; _INTERNAL_REPLICA_CONTEXT in ray.serve.context is what it looks at.
    """
    assert not _serve.in_replica()
    asyncio.run(_own_queues(Batched))
    assert not _serve.in_replica()
    assert context._INTERNAL_REPLICA_CONTEXT is None


async def _own_queues(definition: Any) -> Any:
    deployment: Any = serve.deployment(Batched)
    return _serve.hosted_definition(definition, deployment, lambda function: function)


def _queue_of(method: Any) -> Any:
    enqueue = inspect.getclosurevars(method).nonlocals["enqueue_request"]
    return next(
        cell.cell_contents
        for cell in enqueue.__closure__
        if isinstance(cell.cell_contents, _LazyBatchQueueWrapper)
    )


def test_the_function_of_a_task() -> None:
    """A task has the Python function in ``_function``; its ``options()`` hold it in a closure."""
    task = ray.remote(until)
    assert _serve.task_function(task) is until
    assert _serve.task_function(task.options(num_cpus=0)) is until
    assert _serve.task_function(object()) is None


def test_what_ray_knows_of_an_actor_method(cluster: None) -> None:
    """``_method_name`` and ``_is_generator``; options() hold the method in ``_actor_method``."""
    actor = ray.remote(Box).options(num_cpus=0).remote(None)
    try:
        method = actor.__ray_ready__
        assert _serve.method_of_actor(method) == ("__ray_ready__", False)
        configured = method.options(name="x")
        assert type(configured).__name__ == "_ActorMethodOptionsWrapper"
        assert _serve.method_of_actor(configured) == ("__ray_ready__", False)
        assert _serve.method_of_actor(object()) is None
    finally:
        ray.kill(actor)


def test_build_lists_deployments_without_a_cluster() -> None:
    """``build_app`` gives the deployments, dependencies first, and the ingress's name."""
    built = _serve.build(Shape.bind(Box(Echo.bind())), "app")
    assert [d.name for d in built.deployments] == ["Echo", "Shape"]
    assert built.ingress_deployment_name == "Shape"
    assert built.name == "app"


def test_build_finds_applications_inside_objects_and_lists_each_once() -> None:
    """Applications anywhere inside init arguments are found, the same object once."""
    echo = Echo.bind()
    nested = {"a": [Box(echo)], "b": (Box(Box(echo)), Echo.bind())}
    built = _serve.build(Shape.bind(nested), "app")
    assert [d.name for d in built.deployments] == ["Echo", "Echo_1", "Shape"]


def test_build_accepts_a_subclass_of_application() -> None:
    """A subclass of Application is found inside arguments, and accepted as the root."""
    assert [d.name for d in _serve.build(Either(), "app").deployments] == ["Shape"]
    inside = _serve.build(Shape.bind(Box(Either())), "app")
    assert [d.name for d in inside.deployments] == ["Shape", "Shape_1"]


class Answers:
    """What answers the calls of a handle in this process."""

    async def call(self, method: str, args: Any, kwargs: Any) -> Any:
        if method == "hang":
            await asyncio.Event().wait()
        return method, tuple(args), dict(kwargs), serve.get_multiplexed_model_id()

    async def stream(self, method: str, args: Any, kwargs: Any) -> Any:
        for item in args:
            yield item


def test_applications_anywhere_in_a_value_are_replaced() -> None:
    """_PyObjScanner finds and replaces them; IDDict maps by identity, so each is replaced once."""
    echo, other = Echo.bind(), Echo.bind()
    value: dict[str, Any] = {"plain": [1], "box": Box(echo), "more": [echo, other]}
    assert _serve.found(value, Application) == [echo, other]
    made = _serve.replaced(value, Application, lambda app: [app is echo])
    assert made["box"].app is made["more"][0]
    assert (made["plain"], made["more"]) == ([1], [[True], [False]])
    assert value["box"].app is echo


def test_a_value_with_nothing_to_replace_is_returned_itself() -> None:
    """Nothing is copied where there is nothing to replace."""
    value = {"a": Box(object())}
    assert _serve.replaced(value, Application, list) is value
    kept = [Echo.bind()]
    assert _serve.replaced(kept, Application, lambda app: app) is kept


def test_a_handle_is_answered_in_this_process() -> None:
    """DeploymentHandle takes a LocalRouter, which gives a LocalReplicaResult; _RequestContext."""

    async def call() -> None:
        handle: Any = _serve.handle_to(Answers(), "Answers", asyncio.get_running_loop())
        chosen = handle.options(method_name="m", multiplexed_model_id="model")
        first = chosen.remote(1, b=2)
        assert await first == ("m", (1,), {"b": 2}, "model")
        nested = await handle.remote(handle.remote(3))
        assert nested[1] == (("__call__", (3,), {}, ""),)
        items = handle.options(stream=True).remote(4, 5)
        assert [item async for item in items] == [4, 5]
        with pytest.raises(RuntimeError):  # GENERATOR_COMPOSITION_NOT_SUPPORTED_ERROR
            await handle.remote(handle.options(stream=True).remote(4, 5))

    asyncio.run(call())


def test_a_call_in_this_process_ends_with_the_request_that_makes_it() -> None:
    """_add_in_flight_request has it cancelled; _remove_in_flight_request forgets it at its end."""

    async def call() -> Any:
        handle: Any = _serve.handle_to(Answers(), "Answers", asyncio.get_running_loop())
        group = _serve.CallGroup()
        with group:
            await handle.remote(1)
            assert context._get_in_flight_requests(group.id) == {}
            late = handle.remote(handle.hang.remote())
            assert len(context._get_in_flight_requests(group.id)) == 2
        group.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late

    asyncio.run(call())


class Life:
    """Remembers what a replica does with user code."""

    seen: list[Any]

    async def __init__(self, first: int, second: int) -> None:  # type: ignore[misc]  # Ray awaits
        self.seen = [(first, second), serve.get_replica_context().deployment]
        await asyncio.sleep(0)
        self.seen.append(serve.get_replica_context().app_name)

    async def reconfigure(self, config: Any, rank: Any) -> None:
        self.seen.append((config, rank.rank))

    async def check_health(self) -> None:
        self.seen.append("healthy")

    async def __del__(self) -> None:
        self.seen.append("gone")


def test_user_code_lives_as_in_a_replica() -> None:
    """UserCallableWrapper constructs, configures with the rank, checks and destroys.

    Outside of a replica there is a ReplicaContext for code that runs, and not while it waits.
    """
    deployment: Any = serve.deployment(Life)

    async def live() -> Any:
        replica = _serve.Replica(Life, ((1,), {"second": 2}), deployment)
        constructing = asyncio.ensure_future(replica.construct())
        await asyncio.sleep(0)
        assert context._INTERNAL_REPLICA_CONTEXT is None
        await constructing
        assert replica.method("check_health").__self__ is replica.instance
        with pytest.raises(RayServeException, match=r"'nope'.*'check_health'"):
            replica.method("nope")  # get_user_method_info
        await replica.reconfigure(None)
        await replica.check_health()
        instance = replica.instance
        await replica.destroy()
        await replica.destroy()
        return instance.seen

    seen = asyncio.run(live())
    gc.collect()  # Python does not call __del__ a second time
    assert seen == [(1, 2), "Life", "local", (None, 0), "healthy", "gone"]


class Multiplexed:
    def __init__(self) -> None:
        self.unloaded: list[str] = []

    @serve.multiplexed(max_num_models_per_replica=2)  # type: ignore[untyped-decorator]  # Ray's
    async def model(self, name: str) -> Any:
        return Model(name, self.unloaded)


class Model:
    def __init__(self, name: str, unloaded: list[str]) -> None:
        self.name = name
        self.unloaded = unloaded

    def __del__(self) -> None:
        self.unloaded.append(self.name)


def test_models_are_kept_outside_of_a_replica() -> None:
    """_ModelMultiplexWrapper keeps models where no controller is told of them.

    ``@serve.multiplexed`` is recognised by MULTIPLEXED_FUNCTION_MARKER_ATTR; its closure holds
    ``func`` and ``max_num_models_per_replica``; the wrapper is ``__serve_multiplex_wrapper``.
    """
    deployment: Any = serve.deployment(Multiplexed)

    async def load() -> Any:
        definition = _serve.hosted_definition(Multiplexed, deployment, lambda function: function)
        replica = _serve.Replica(definition, ((), {}), deployment)
        await replica.construct()
        names = [(await replica.instance.model(name)).name for name in ("a", "b", "a", "c")]
        unloaded = replica.instance.unloaded
        assert unloaded[:1] == ["b"]
        await replica.destroy()
        return names, set(unloaded)

    assert asyncio.run(load()) == (["a", "b", "a", "c"], {"a", "b", "c"})
    assert not ray.is_initialized() or context._INTERNAL_REPLICA_CONTEXT is None


def test_batches_outside_of_a_replica_can_be_resized_and_ended() -> None:
    """``set_max_batch_size`` asks for a replica's context; ``_handle_batch_task`` collects.

    It is a task of the ``_BatchQueue`` that the wrapper keeps as its ``_queue``.
    """

    async def resize() -> None:
        own = await _own_queues(Batched)
        own.many.set_max_batch_size(7)
        queue = _queue_of(own.many)._queue
        assert queue.max_batch_size == 7
        _serve.end_batches(own)
        await asyncio.wait({queue._handle_batch_task}, timeout=5)
        assert queue._handle_batch_task.cancelled()

    asyncio.run(resize())


def test_fastapi_routes_have_their_instance_outside_of_a_replica() -> None:
    """Ray's routes depend on ``get_current_servable_instance``; _walk_fastapi_routes finds them."""
    api = FastAPI()

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        @api.get("/name")
        def of_self(self) -> str:
            return self.name

    definition: Any = serve.ingress(api)(Named)
    deployment: Any = serve.deployment(definition)

    async def names() -> list[str]:
        replicas = [_serve.Replica(definition, ((name,), {}), deployment) for name in ("a", "b")]
        for replica in replicas:
            await replica.construct()
        clients = [TestClient(_serve.asgi_of(replica.instance)) for replica in replicas]
        answers = [await asyncio.to_thread(client.get, "/name") for client in clients]
        for replica in replicas:
            await replica.destroy()
        return [answer.json() for answer in answers]

    assert asyncio.run(names()) == ["a", "b"]


def test_the_constructor_that_a_user_has_written() -> None:
    """Ray's wrapper of an ingress holds ``frozen_app_or_func``, and is not the user's class."""

    class Mine:
        def __init__(self, a: int) -> None:
            self.a = a

        def method(self) -> None:
            """Do nothing."""

    wrapped: Any = serve.ingress(FastAPI())(Mine)
    assert _serve.constructor(wrapped) is Mine.__init__
    assert _serve.constructor(Mine) is Mine.__init__
    assert _serve.methods_of(wrapped) == ["method"]


def test_a_request_without_a_proxy_has_what_its_headers_say() -> None:
    """_RequestContext, ``session_id_from_headers`` and ``generate_request_id``, as Ray's proxy."""

    async def received(headers: dict[str, str]) -> Any:
        _serve.receive_request(headers, "/path")
        return context._get_serve_request_context(), serve.get_multiplexed_model_id()

    headers = {"x-request-id": "r", "x-session-id": "s", "serve_multiplexed_model_id": "m"}
    found, model_id = asyncio.run(received(headers))
    assert (found.route, found.request_id, found.session_id) == ("/path", "r", "s")
    assert model_id == "m"
    first, second = (asyncio.run(received({}))[0].request_id for _ in range(2))
    assert first not in ("", second)


def test_what_workers_write_is_shown_once() -> None:
    """``global_worker_stdstream_dispatcher`` gives what workers write to its handlers, by name."""
    shown: list[Any] = []
    for _ in range(2):
        _serve.show_worker_logs(shown.append)
    ray_logging.global_worker_stdstream_dispatcher.emit({"lines": ["a"]})
    ray_logging.global_worker_stdstream_dispatcher.remove_handler("raycompose")
    assert shown == [{"lines": ["a"]}]


def test_an_app_builder_is_called_with_its_arguments() -> None:
    """``call_user_app_builder_with_args_if_necessary`` calls functions and checks applications."""
    received = {}

    def builder(args: dict[str, str]) -> Any:
        received.update(args)
        return Echo.bind()

    assert isinstance(_serve.call_builder(builder, {"key": "value"}), Application)
    assert received == {"key": "value"}
    app = rc.pipeline(Echo.bind())
    assert _serve.call_builder(app, {}) is app
    with pytest.raises(ValueError, match="Arguments"):
        _serve.call_builder(app, {"key": "value"})


def test_cluster_address_without_an_environment(
    monkeypatch: pytest.MonkeyPatch, cluster: None
) -> None:
    """``canonicalize_bootstrap_address`` keeps an address, and reads RAY_ADDRESS for none."""
    assert _serve.cluster_address("192.0.2.1:6379") == "192.0.2.1:6379"
    assert _serve.cluster_address("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.2:6379")
    assert _serve.cluster_address(None) == "192.0.2.2:6379"


def test_a_cluster_answers_what_no_other_server_does(cluster: None) -> None:
    """``GcsClient`` is what tells a Ray cluster from whatever listens there."""
    _serve.ask_cluster(ray.get_runtime_context().gcs_address)


def test_what_workers_write_is_shown_by_whom_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """``global_worker_stdstream_dispatcher`` passes on what Ray itself would print."""
    dispatcher = vars(serve_cluster)["global_worker_stdstream_dispatcher"]
    monkeypatch.setattr(dispatcher, "handlers", [("ray_print_logs", print)])
    shown: list[dict[str, Any]] = []
    _serve.show_worker_logs(lambda data: None)
    _serve.show_worker_logs(shown.append)
    dispatcher.emit({"actor_name": "ServeReplica:a:b", "lines": ["x"]})
    assert shown == [{"actor_name": "ServeReplica:a:b", "lines": ["x"]}]
    assert [name for name, _ in dispatcher.handlers] == ["raycompose"]


def test_worker_logs_can_be_hushed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``_worker_logs_enabled`` of Ray's ``worker`` module."""
    monkeypatch.setattr(vars(serve_cluster)["worker"], "_worker_logs_enabled", True)
    data = {"pid": "raylet", "lines": ["x"], "ip": "", "localhost": ""}
    vars(serve_cluster)["worker"].print_worker_logs(data, sys.stdout)
    assert "x" in capsys.readouterr().out
    _serve.hush_worker_logs()
    vars(serve_cluster)["worker"].print_worker_logs(data, sys.stdout)
    assert capsys.readouterr().out == ""


def test_a_config_is_deployed_by_the_client_of_serve(cluster: None) -> None:
    """``deploy_apps`` takes a ``ServeDeploySchema``; tests of the command line run one."""
    client = context._get_global_client()
    assert "config" in inspect.signature(client.deploy_apps).parameters


def test_the_routes_of_a_fastapi_ingress() -> None:
    """``@serve.ingress`` keeps the FastAPI app in its constructor's closure."""
    api = FastAPI()

    @serve.deployment
    @serve.ingress(api)
    class Api:
        @api.get("/items/{number}")
        def item(self, number: int) -> int:
            return number

    assert _serve.routes_of(Api) == [("GET", "/items/{number}")]
    assert _serve.routes_of(Echo) == []


@pytest.mark.parametrize(
    ("value", "body", "kind"),
    [
        ("text", b"text", "text/plain"),
        (b"\x00\x01", b"\x00\x01", "text/plain"),
        ({"a": [1, None]}, b'{"a":[1,null]}', "application/json"),
        (3, b"3", "application/json"),
        (True, b"true", "application/json"),
    ],
)
def test_bodies_are_encoded_as_ray_serve_encodes_them(value: Any, body: bytes, kind: str) -> None:
    """``convert_object_to_asgi_messages`` gives a start message with headers, and a body."""
    encoded, content_type = _serve.encode_body(value)
    assert encoded == body
    assert content_type.startswith(kind)


def test_values_are_plain_as_ray_serve_makes_them() -> None:
    """``serve_encoders`` has what FastAPI's encoder needs for NumPy's arrays and scalars."""
    value = {"array": np.arange(3), "scalar": np.float32(0.5)}
    assert _serve.jsonable(value, {}) == {"array": [0, 1, 2], "scalar": 0.5}


def test_the_users_exception_is_the_cause_of_a_task_error() -> None:
    """``RayTaskError.cause`` is the exception that user code raised, however deeply wrapped."""
    error = ValueError("of the user")
    once = RayTaskError("f", "traceback", error)
    assert _serve.unwrap(once) is error
    assert _serve.unwrap(RayTaskError("g", "traceback", once)) is error
    assert _serve.unwrap(once.as_instanceof_cause()) is error
    assert _serve.unwrap(error) is error


def test_a_refusal_says_which_deployment_takes_no_calls() -> None:
    """``DeploymentUnavailableError._deployment_id`` is what a handle's ``deployment_id`` is."""
    handle: Any = DeploymentHandle("Model", "llm")
    refusal = DeploymentUnavailableError(DeploymentID("Model", "llm"))
    assert refusal._deployment_id == handle.deployment_id
    assert _serve.is_refusal_of(refusal, handle)
    assert not _serve.is_refusal_of(refusal, DeploymentHandle("Model", "other"))


def test_the_settings_for_high_throughput_are_switches() -> None:
    """``ray.serve._private.constants`` has them, by the names of their environment variables."""
    assert {fast.OPTIMIZED, fast.HAPROXY} <= vars(constants).keys()


def test_a_handle_tells_its_options(cluster: None) -> None:
    """``handle_options`` has what ``options`` was given."""
    handle: Any = DeploymentHandle("Model", "llm")
    assert _serve.options_of(handle) == ("__call__", False)
    assert _serve.options_of(handle.options(method_name="go", stream=True)) == ("go", True)


def test_outside_a_replica_the_request_context_is_empty() -> None:
    """``_get_serve_request_context`` gives empty ids where no request is answered."""
    assert _serve.request_context() == ("", "", "", "")


def test_local_testing_mode_has_no_object_ref() -> None:
    """In local testing mode ``_to_object_ref`` raises a RuntimeError that says so."""

    async def call() -> Any:
        handle: Any = _serve.handle_to(Answers(), "Answers", asyncio.get_running_loop())
        response = handle.remote(5)
        items = handle.options(stream=True).remote(3)
        with pytest.raises(RuntimeError, match="local testing mode"):
            await response._to_object_ref()
        with pytest.raises(RuntimeError, match="local testing mode"):
            await items._to_object_ref_gen()
        assert await _serve.object_ref(response) is None
        assert await _serve.object_ref_gen(items) is None
        return await response

    assert asyncio.run(call())[1] == (5,)


def test_defaults_of_a_deployment() -> None:
    """A deployment asks for one CPU and takes five requests at once unless told otherwise."""
    plain = serve.deployment(until)
    assert (plain.ray_actor_options or {}).get("num_cpus", 1) == 1
    assert plain.max_ongoing_requests == 5
    assert plain.num_replicas == 1


def test_two_deployments_of_one_name_are_told_apart() -> None:
    """Of two deployments of one name the second becomes ``Name_1``."""
    built = _serve.build(Shape.bind([Echo.bind(), Echo.bind()]), "app")
    assert [d.name for d in built.deployments] == ["Echo", "Echo_1", "Shape"]


def test_back_pressure_knows_its_retry_after() -> None:
    """BackPressureError has a status code and ``retry_after_s``, and pickles."""
    from ray.serve.exceptions import BackPressureError

    error = BackPressureError(3, 2)
    assert error.status_code in (429, 503)
    assert error.retry_after_s is None or error.retry_after_s >= 0
    again = pickle.loads(pickle.dumps(BackPressureError(3, 2, 429, 1.5)))
    assert (again.status_code, again.retry_after_s) == (429, 1.5)


def test_this_is_a_known_release_of_ray() -> None:
    """The release that these tests were written for, or a later one."""
    assert tuple(int(part) for part in ray.__version__.split(".")[:2]) >= (2, 60)
    assert sys.version_info >= (3, 10)
