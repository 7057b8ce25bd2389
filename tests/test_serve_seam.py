"""Ray as it is relied on: each test pins one behaviour, so that a release that changes it shows.

The first part pins the private names that ``raycompose/_serve.py`` uses, the second the public
behaviour that the code is built around.
"""

import ast
import asyncio
import inspect
import pickle
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
from conftest import Deploy
from fastapi import FastAPI
from ray import _raylet, serve  # pinned here
from ray.exceptions import RayTaskError
from ray.serve import Application, context
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

import raycompose as rc
from raycompose import _serve

NO_CPU = {"num_cpus": 0}

# Replicas do not find the test modules by name.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class _Echo:
    """What most tests call; it remembers what was cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.produced = 0

    async def __call__(self, value: Any = None) -> Any:
        return value

    async def kinds(self, value: Any) -> list[str]:
        items = value if isinstance(value, list) else [value]
        return [type(item).__name__ for item in items]

    async def sleep(self, label: str) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.append(label)
            raise

    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            self.produced += 1
            yield i

    async def slowly(self, label: str) -> AsyncIterator[int]:
        try:
            for i in range(1000):
                yield i
                await asyncio.sleep(0.01)
        finally:
            self.cancelled.append(label)

    async def seen(self) -> dict[str, Any]:
        return {"cancelled": self.cancelled, "produced": self.produced}

    async def fail(self, kind: str) -> None:
        if kind == "kept":
            error: Exception = rc.NoMatchError("switch", "a", ("b",))
            error.__dict__["mark"] = "kept"
            raise error
        raise Unpicklable(code=7)

    async def model_id(self) -> str:
        return str(serve.get_multiplexed_model_id())

    async def request_id(self) -> str:
        return _serve.request_context().request_id

    async def context(self) -> dict[str, str]:
        return _serve.request_context()._asdict()


class Unpicklable(Exception):
    """Does not pass its arguments to ``super().__init__``, so it does not unpickle."""

    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code


class Batched:
    """Multiplies batches, and remembers their sizes."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.sizes: list[int] = []

    @serve.batch(  # type: ignore[untyped-decorator]  # Ray's
        max_batch_size=3, batch_wait_timeout_s=0.05, max_concurrent_batches=2
    )
    async def many(self, xs: list[int]) -> list[int]:
        self.sizes.append(len(xs))
        return [x * self.factor for x in xs]

    async def plain(self, x: int) -> int:
        return x


class Box:
    """An object that holds an application, or in a replica its handle."""

    def __init__(self, app: Any) -> None:
        self.app = app


class Either(_serve.LazyApplication):
    """A subclass of Application, for what Ray accepts as one."""

    def bind_front(self) -> Any:
        return _serve.deployment_of(Shape.bind(Box(None)))


class _Shape:
    """One class that answers unary, streaming and HTTP calls; it may hold an Echo in a box."""

    def __init__(self, box: Box) -> None:
        self.box = box

    async def __call__(self, n: Any) -> Any:
        if isinstance(n, int):
            return self._items(n)
        return type(n).__name__

    async def _items(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def held(self) -> str:
        return type(self.box.app).__name__

    async def pull(self, box: Box, n: int) -> int:
        """Iterate a stream of another replica, through a handle that came as an argument."""
        response = box.app.options(stream=True, method_name="count").remote(n)
        return sum([item async for item in response])

    async def batches(self) -> tuple[list[int], list[int], list[int], list[int]]:
        deployment: Any = serve.deployment(Batched)
        a, b = (_serve.with_own_batch_queues(Batched, deployment)(n) for n in (10, 100))
        results = await asyncio.gather(*(f(x) for x in (1, 2, 3) for f in (a.many, b.many)))
        return results[::2], results[1::2], a.sizes, b.sizes

    async def cancelled_in_a_group(self) -> tuple[int, int, str]:
        """Return how many calls Ray tracks of a group, how many of others, and their end."""
        group = _serve.CallGroup()
        with group.calling():
            response = self.box.app.sleep.remote("group")
        await response._to_object_ref()  # assigned
        tracked = context._get_in_flight_requests(group.id)
        others = context._get_in_flight_requests("another")
        counts = len(tracked), len(others)
        group.cancel()
        try:
            await response
        except asyncio.CancelledError as error:
            return *counts, type(error).__name__
        return *counts, "a result"

    async def detached(self) -> list[Any]:
        """Return the ids by which Ray finds what this request calls: here, and detached."""

        async def ids() -> tuple[str, Any]:
            request = context._serve_request_context.get()
            return request._internal_request_id, _raylet.async_task_id.get()  # type: ignore[attr-defined]

        return [await ids(), await _serve.detached(ids()), await asyncio.ensure_future(ids())]

    async def downstream_model_id(self) -> tuple[str, str]:
        mine = serve.get_multiplexed_model_id()
        return mine, await self.box.app.model_id.remote()

    async def downstream_request_id(self) -> tuple[str, str]:
        return _serve.request_context().request_id, await self.box.app.request_id.remote()


Echo: Any = serve.deployment(name="Echo", ray_actor_options=NO_CPU)(_Echo)
Shape: Any = serve.deployment(name="Shape", ray_actor_options=NO_CPU)(_Shape)


class Handles(NamedTuple):
    echo: DeploymentHandle[Any]
    shape: DeploymentHandle[Any]


@pytest.fixture(scope="module")
def handles(deploy: Deploy) -> Handles:
    """Two deployments of plain Ray Serve."""
    echo = deploy(Echo.bind()).handle
    shape = deploy(Shape.bind(Box(Echo.bind()))).handle
    return Handles(echo, shape)


def until(condition: Callable[[], Any], deadline_s: float = 10) -> Any:
    """Poll until ``condition`` gives something true, and return it."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"not true within {deadline_s} s")


def test_a_group_of_calls_is_cancelled_together(handles: Handles) -> None:
    """Ray tracks calls by ``_internal_request_id``: those under way ``_get_in_flight_requests``."""
    assert handles.shape.cancelled_in_a_group.remote().result() == (1, 0, "CancelledError")


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


def test_a_detached_task_has_ids_of_its_own(handles: Handles) -> None:
    """``_serve_request_context`` and ``async_task_id`` tell Ray whose calls to cancel."""
    here, detached, beside = handles.shape.detached.remote().result()
    assert here == beside
    assert here[1] is not None
    assert detached[0] not in ("", here[0])
    assert detached[1] is None


# The seam itself


def private_names_used() -> set[str]:
    """Return what _serve.py imports from Ray, and the private attributes that it reads."""
    tree = ast.parse(Path(_serve.__file__).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray":
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            names.add(node.attr)
    return names


def test_every_private_name_in_the_seam_is_named_in_this_file() -> None:
    """A name that the seam takes from Ray without a test here is noticed."""
    text = Path(__file__).read_text()
    used = {name for name in private_names_used() if name.startswith("_") or name[0].islower()}
    assert used, "the seam uses private names"
    assert sorted(name for name in used if not re.search(rf"\b{name}\b", text)) == []


def test_only_the_seam_touches_rays_private_modules() -> None:
    """No other module of the package imports ``ray._private`` or ``ray.serve._private``."""
    offenders = [
        path.name
        for path in Path(_serve.__file__).parent.rglob("*.py")
        if path.name != "_serve.py" and re.search(r"\bray(\.serve)?\._private\b", path.read_text())
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


def test_placement_group_of_a_deployment() -> None:
    """``_replica_config`` has the placement group options, as ``options()`` takes them."""
    assert _serve.placement_group(Echo) == {}
    options = {"placement_group_bundles": [{"CPU": 1}], "placement_group_strategy": "PACK"}
    placed = Echo.options(**options)
    assert _serve.placement_group(placed) == options
    assert _serve.placement_group(Echo.options(**_serve.placement_group(placed))) == options


def test_settings_that_have_no_property() -> None:
    """``_deployment_config`` has each setting that fusing merges, as ``options()`` sets it."""
    from raycompose.compose import front

    for number, name in enumerate(front._LONGEST, start=31):
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
    return _serve.with_own_batch_queues(definition, deployment)


def _queue_of(method: Any) -> Any:
    enqueue = inspect.getclosurevars(method).nonlocals["enqueue_request"]
    return next(
        cell.cell_contents
        for cell in enqueue.__closure__
        if type(cell.cell_contents).__name__ == "_LazyBatchQueueWrapper"
    )


def test_instances_with_queues_of_their_own_do_not_mix(handles: Handles) -> None:
    """Two instances of a batched class, each with queues of its own, answer their own calls."""
    assert handles.shape.batches.remote().result() == ([10, 20, 30], [100, 200, 300], [3], [3])


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


def test_handles_in_this_process_take_the_place_of_applications() -> None:
    """_PyObjScanner replaces applications, and make_local_deployment_handle runs them here."""
    value: dict[str, Any] = {"plain": [1], "box": Box(Echo.bind())}
    replaced = _serve.with_local_handles(value, "app")
    assert replaced["plain"] == [1]
    assert replaced["box"].app.remote(5).result() == 5
    assert isinstance(value["box"].app, Application)


def test_a_value_without_applications_is_returned_itself() -> None:
    """Nothing is copied where there is nothing to replace."""
    value = {"a": Box(object())}
    assert _serve.with_local_handles(value, "app") is value


def test_one_application_has_one_local_handle() -> None:
    """IDDict maps by identity: the same application gives the same local deployment."""
    echo = Echo.bind()
    first, second, other = _serve.with_local_handles([echo, echo, Echo.bind()], "app")
    assert first is second
    assert other is not first


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


def test_running_tells_where_serve_listens(deploy: Deploy) -> None:
    """``_get_global_client`` gives the HTTP config and each application's route prefix."""
    client = deploy(Echo.bind())
    found = _serve.running()
    assert found is not None
    assert client.url in [
        f"http://{host}:{found.port}{prefix}/"
        for host in (found.host, "127.0.0.1")
        for prefix in found.route_prefixes.values()
    ]


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


def test_the_users_exception_is_the_cause_of_a_task_error() -> None:
    """``RayTaskError.cause`` is the exception that user code raised, however deeply wrapped."""
    error = ValueError("of the user")
    once = RayTaskError("f", "traceback", error)
    assert _serve.unwrap(once) is error
    assert _serve.unwrap(RayTaskError("g", "traceback", once)) is error
    assert _serve.unwrap(once.as_instanceof_cause()) is error
    assert _serve.unwrap(error) is error


def test_outside_a_replica_the_request_context_is_empty() -> None:
    """``_get_serve_request_context`` gives empty ids where no request is answered."""
    assert _serve.request_context() == ("", "", "")


def test_inside_a_replica_the_request_context_has_the_ids(handles: Handles) -> None:
    """In a replica the context has the request's id, the application and the model id."""
    context = handles.echo.options(
        method_name="context", multiplexed_model_id="m"
    ).remote().result()  # fmt: skip
    assert context["request_id"]
    assert context["app_name"].startswith("app")
    assert context["multiplexed_model_id"] == "m"


# References


def test_a_response_has_an_object_ref(handles: Handles) -> None:
    """``_to_object_ref`` gives the ObjectRef of a call by reference, before it has finished."""

    async def call() -> tuple[bool, Any]:
        ref = await _serve.object_ref(handles.echo.options(_by_reference=True).remote(5))
        return isinstance(ref, ray.ObjectRef), await ref

    assert asyncio.run(call()) == (True, 5)


def test_a_streaming_response_has_a_generator_of_object_refs(handles: Handles) -> None:
    """``_to_object_ref_gen`` gives references to the items of a streaming call by reference."""

    async def call() -> list[Any]:
        count = handles.echo.options(stream=True, method_name="count", _by_reference=True)
        refs = await _serve.object_ref_gen(count.remote(3))
        return [await ref async for ref in refs]

    assert asyncio.run(call()) == [0, 1, 2]


def test_a_call_by_grpc_has_no_object_ref(handles: Handles) -> None:
    """A call by gRPC says so in ``by_reference``; ``_to_object_ref`` then raises."""

    async def call() -> None:
        response = handles.echo.options(_by_reference=False).remote(5)
        stream = handles.echo.options(stream=True, method_name="count", _by_reference=False)
        items = stream.remote(3)
        assert response.by_reference is False
        with pytest.raises(RuntimeError):
            await response._to_object_ref()
        with pytest.raises(RuntimeError):
            await items._to_object_ref_gen()
        assert await _serve.object_ref(response) is None
        assert await _serve.object_ref_gen(items) is None
        assert await response == 5
        assert [item async for item in items] == [0, 1, 2]

    asyncio.run(call())


def test_local_testing_mode_has_no_object_ref() -> None:
    """In local testing mode ``_to_object_ref`` raises a RuntimeError that says so."""

    async def call() -> Any:
        (handle,) = _serve.with_local_handles([Echo.bind()], "app")
        response = handle.remote(5)
        items = handle.options(stream=True, method_name="count").remote(3)
        with pytest.raises(RuntimeError, match="local testing mode"):
            await response._to_object_ref()
        with pytest.raises(RuntimeError, match="local testing mode"):
            await items._to_object_ref_gen()
        assert await _serve.object_ref(response) is None
        assert await _serve.object_ref_gen(items) is None
        return await response

    assert asyncio.run(call()) == 5


def test_a_top_level_reference_is_resolved_on_arrival(handles: Handles) -> None:
    """A bare ObjectRef or response argument arrives as its value, so it cannot be a reference."""
    kinds = handles.echo.kinds
    assert kinds.remote(ray.put(5)).result() == ["int"]
    assert kinds.remote(handles.echo.remote("x")).result() == ["str"]


def test_a_reference_inside_a_list_arrives_as_it_is(handles: Handles) -> None:
    """A list that holds an ObjectRef is passed on unchanged."""
    assert handles.echo.kinds.remote([ray.put(5), 5]).result() == ["ObjectRef", "int"]


def test_a_response_inside_a_list_is_refused(handles: Handles) -> None:
    """A DeploymentResponse inside a container cannot be sent, hence references."""
    response = handles.echo.remote(5)
    with pytest.raises(RayServeException, match="serializ"):
        handles.echo.kinds.remote([response]).result()
    assert response.result() == 5


# Streams


def test_one_call_method_answers_unary_and_streaming(handles: Handles) -> None:
    """An ``async def`` that returns a value or an async generator answers both kinds of call."""
    assert handles.shape.remote("x").result() == "str"
    assert list(handles.shape.options(stream=True).remote(3)) == [0, 1, 2]


def test_a_handle_inside_an_object_travels_and_streams(handles: Handles) -> None:
    """An object that holds a handle can be an argument, and its receiver streams through it."""
    assert handles.shape.pull.remote(Box(handles.echo), 10).result() == 45


def test_a_stream_cannot_be_an_argument(handles: Handles) -> None:
    """A DeploymentResponseGenerator as an argument is refused, hence our own streams."""
    stream = handles.echo.options(stream=True, method_name="count").remote(3)
    with pytest.raises(Exception, match="Streaming deployment handle results cannot"):
        handles.echo.kinds.remote(stream).result()
    stream.cancel()


def test_cancelling_a_stream_stops_its_producer(handles: Handles) -> None:
    """``response.cancel()`` on a stream closes the generator in the replica."""
    stream = handles.echo.options(stream=True, method_name="slowly").remote("stream")
    assert next(iter(stream)) == 0
    stream.cancel()
    until(lambda: "stream" in handles.echo.seen.remote().result()["cancelled"])


def test_a_remote_producer_runs_ahead(handles: Handles) -> None:
    """Ray Serve's streams have no back-pressure: a producer makes all, whoever asks for one."""
    before = handles.echo.seen.remote().result()["produced"]
    stream = handles.echo.options(stream=True, method_name="count").remote(2000)
    assert next(iter(stream)) == 0
    until(lambda: handles.echo.seen.remote().result()["produced"] == before + 2000, 30)
    stream.cancel()


# Applications and handles


def test_in_a_replica_a_handle_takes_the_place_of_an_application(handles: Handles) -> None:
    """The application inside a bound argument is a DeploymentHandle in the replica."""
    assert handles.shape.held.remote().result() == "DeploymentHandle"


def test_a_handle_has_every_attribute(handles: Handles) -> None:
    """``hasattr(handle, anything)`` is true, so handles are recognised by isinstance alone."""
    assert hasattr(handles.echo, "no_such_method_anywhere")
    assert isinstance(handles.echo, DeploymentHandle)
    assert not callable(handles.echo)


def test_handles_and_unstarted_responses_pickle(handles: Handles) -> None:
    """A handle survives pickling, with its options."""
    again = pickle.loads(pickle.dumps(handles.echo.options(method_name="kinds")))
    assert again.remote(5).result() == ["int"]


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


# Cancellation, errors, ids


def test_cancelling_an_await_does_not_cancel_the_call(handles: Handles) -> None:
    """``asyncio.wait_for`` leaves the remote call running; ``response.cancel()`` ends it."""

    async def call(label: str, *, cancel: bool) -> DeploymentResponse[Any]:
        response = handles.echo.sleep.remote(label)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_awaited(response), 0.5)
        if cancel:
            response.cancel()
        return response

    left = asyncio.run(call("left", cancel=False))
    asyncio.run(call("ended", cancel=True))
    until(lambda: "ended" in handles.echo.seen.remote().result()["cancelled"])
    assert "left" not in handles.echo.seen.remote().result()["cancelled"]
    left.cancel()


async def _awaited(response: Any) -> Any:
    return await response


def test_an_exceptions_dict_crosses_processes(handles: Handles) -> None:
    """What is set on an exception travels with it: the name of the stage that failed does so."""
    with pytest.raises(rc.NoMatchError) as caught:
        handles.echo.fail.remote("kept").result()
    error = _serve.unwrap(caught.value)
    assert isinstance(error, rc.NoMatchError)
    assert (error.node, error.keys, vars(error)["mark"]) == ("switch", ("b",), "kept")


def test_an_exception_that_does_not_unpickle_loses_its_type(handles: Handles) -> None:
    """An exception whose arguments do not reach ``super().__init__`` arrives as another."""
    with pytest.raises(Exception, match="Unpicklable") as caught:
        handles.echo.fail.remote("lost").result()
    assert not isinstance(_serve.unwrap(caught.value), Unpicklable)


def test_the_model_id_is_not_passed_on_and_the_request_id_is(handles: Handles) -> None:
    """Ray Serve passes the request id on downstream by itself, the multiplexed model id not."""
    shape = handles.shape.options(multiplexed_model_id="m")
    assert shape.downstream_model_id.remote().result() == ("m", "")
    mine, theirs = handles.shape.downstream_request_id.remote().result()
    assert mine
    assert mine == theirs


def test_result_raises_inside_a_running_loop(handles: Handles) -> None:
    """``.result()`` is refused on an event loop, hence the client's loop in a thread."""

    async def call() -> None:
        response = handles.echo.remote(1)
        with pytest.raises(RuntimeError):
            response.result()
        assert await response == 1

    asyncio.run(call())


def test_stream_of_one_result_is_told_by_its_message(handles: Handles) -> None:
    """Ray raises a TypeError for ``stream=True`` on a method that gives one result."""
    with pytest.raises(TypeError) as caught:
        list(handles.echo.options(stream=True).remote(1))
    assert _serve.did_not_stream(caught.value)
    assert not _serve.did_not_stream(TypeError("a user's own"))


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
