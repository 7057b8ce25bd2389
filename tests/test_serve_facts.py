"""Ray Serve in replicas, as it is relied on: a release that changes one of these is noticed."""

import asyncio
import contextlib
import pickle
from typing import Any, NamedTuple

import grpc
import pytest
import ray
from ray.exceptions import ActorUnavailableError, TaskCancelledError
from ray.serve._private.request_router import replica_wrapper  # noqa: TID251  # pinned here
from ray.serve._private.router import SingletonThreadRouter  # noqa: TID251  # pinned here
from ray.serve.exceptions import RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from support import pickle_by_value
from support.cluster import Deploy
from support.plain import Box, Echo, Shape, Unpicklable
from support.waiting import until

import raycompose as rc
from raycompose import _serve
from raycompose.flow.unpickling import unpickled_error

pickle_by_value(__name__)


class Handles(NamedTuple):
    echo: DeploymentHandle[Any]
    shape: DeploymentHandle[Any]


@pytest.fixture(scope="module")
def handles(deploy: Deploy) -> Handles:
    """Two deployments of plain Ray Serve."""
    echo = deploy(Echo.bind()).handle
    shape = deploy(Shape.bind(Box(Echo.bind()))).handle
    return Handles(echo, shape)


def test_a_group_of_calls_is_cancelled_together(handles: Handles) -> None:
    """Ray tracks calls by ``_internal_request_id``: those under way ``_get_in_flight_requests``."""
    assert handles.shape.cancelled_in_a_group.remote().result() == (1, 0, "CancelledError")


def test_a_detached_task_has_ids_of_its_own(handles: Handles) -> None:
    """``_serve_request_context`` and ``async_task_id`` tell Ray whose calls to cancel."""
    here, detached, beside = handles.shape.detached.remote().result()
    assert here == beside
    assert here[1] is not None
    assert detached[0] not in ("", here[0])
    assert detached[1] is None


def test_instances_with_queues_of_their_own_do_not_mix(handles: Handles) -> None:
    """Two instances of a batched class, each with queues of its own, answer their own calls."""
    assert handles.shape.batches.remote().result() == ([10, 20, 30], [100, 200, 300], [3], [3])


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


def test_applications_tell_how_far_each_deployment_is(deploy: Deploy) -> None:
    """``get_serve_details`` gives status, replicas and what each asks for."""
    client = deploy(Echo.bind())
    name = str(client).split("'")[1]
    state = _serve.applications()[name]
    assert (state.status, state.declared) == ("RUNNING", False)
    deployment = state.deployments[0]
    assert deployment.status == "HEALTHY"
    assert (deployment.wanted, deployment.running, deployment.placed) == (1, 1, 1)
    assert set(deployment.needs) <= {"CPU"}


def test_inside_a_replica_the_request_context_has_the_ids(handles: Handles) -> None:
    """In a replica the context has the request's id, the application and the model id."""
    context = handles.echo.options(
        method_name="context", multiplexed_model_id="m"
    ).remote().result()  # fmt: skip
    assert context["request_id"]
    assert context["app_name"].startswith("app")
    assert context["multiplexed_model_id"] == "m"


def test_a_response_has_an_object_ref(handles: Handles) -> None:
    """``_to_object_ref`` gives the ObjectRef of a call by reference, before it has finished."""

    async def call() -> tuple[bool, Any]:
        ref = await _serve.object_ref(handles.echo.options(_by_reference=True).remote(5))
        return isinstance(ref, ray.ObjectRef), await ref

    assert asyncio.run(call()) == (True, 5)


def test_a_result_is_waited_for_without_fetching_it(handles: Handles) -> None:
    """``ObjectRef._ready`` can be awaited, and gives nothing."""

    async def call() -> Any:
        ref = await _serve.object_ref(handles.echo.options(_by_reference=True).remote(5))
        await _serve.ready(ref)
        return await ref

    assert asyncio.run(call()) == 5


def test_a_streaming_response_has_a_generator_of_object_refs(handles: Handles) -> None:
    """``_to_object_ref_gen`` gives references to the items of a streaming call by reference."""

    async def call() -> list[Any]:
        count = handles.echo.options(stream=True, method_name="count", _by_reference=True)
        refs = await _serve.object_ref_gen(count.remote(3))
        return [await ref async for ref in refs]

    assert asyncio.run(call()) == [0, 1, 2]


def test_a_call_is_assigned_on_the_routers_loop(handles: Handles) -> None:
    """``_replica_result_future`` is settled by ``SingletonThreadRouter._asyncio_loop``."""

    async def call() -> tuple[Any]:
        response = handles.echo.remote(5)
        assert response._is_router_running_in_separate_loop is True
        assert SingletonThreadRouter._asyncio_loop is not None
        await _serve.assigned(response)
        result = response._replica_result_future.result(timeout=0)
        assert response._replica_result in (None, result)  # None: it was assigned before we waited
        assert await response == 5
        assert response._replica_result is result
        cancelled = handles.echo.remote(6)
        _serve.cancel(cancelled)
        assert cancelled._cancelled
        return await asyncio.gather(cancelled, return_exceptions=True)

    (lost,) = asyncio.run(call())
    assert isinstance(lost, RequestCancelledError | asyncio.CancelledError | TaskCancelledError)


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


def test_a_request_by_grpc_above_the_limit_is_refused_unread(handles: Handles) -> None:
    """Ray's replicas refuse more than 4 MiB, so the call may be made again another way.

    A response that is too large for its caller is another matter: the method ran.
    """

    async def refused(method: str, value: Any) -> bool:
        call = handles.echo.options(method_name=method, _by_reference=False)
        with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as caught:
            await call.remote(value)
        return _serve.is_too_large(caught.value)

    assert asyncio.run(refused("__call__", b"x" * 5_000_000))
    assert not asyncio.run(refused("text", 5_000_000))


def test_what_this_process_receives_by_grpc_has_a_limit_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's channels take it from ``replica_wrapper``; tests/test_transport.py goes beyond it."""
    name = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
    limit = getattr(replica_wrapper, name)
    assert limit >= 4_194_304
    monkeypatch.setattr(replica_wrapper, name, limit)  # put back behind it
    assert not _serve.receives_any_size()
    _serve.receive_any_size()
    assert _serve.receives_any_size()


def test_an_error_by_grpc_is_there_as_it_was_sent(handles: Handles) -> None:
    """``gRPCReplicaResult._call`` on ``_grpc_call_loop`` answers again, with the pickled error."""

    async def sent(way: bool, method: str) -> bytes | None:
        response = handles.echo.options(method_name=method, _by_reference=way).remote("kept")
        with contextlib.suppress(Exception):
            await response
        return await _serve.sent_error(response)

    kept = unpickled_error(asyncio.run(sent(False, "fail")) or b"")
    assert (type(kept).__name__, vars(kept)["mark"]) == ("NoMatchError", "kept")
    assert asyncio.run(sent(False, "__call__")) is None
    assert asyncio.run(sent(True, "fail")) is None


def test_an_answer_that_grpc_cannot_bring(handles: Handles) -> None:
    """What cannot be pickled is an UNKNOWN of gRPC's; any other code is a replica that is gone."""

    async def lost(error: Exception | None) -> Any:
        response = handles.echo.options(method_name="hold", _by_reference=False).remote()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await response
        return _serve.lost_answer(error or caught.value, response)

    assert "cannot pickle" in asyncio.run(lost(None))
    none = grpc.aio.Metadata()
    gone = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, none, none, "reset")
    assert isinstance(asyncio.run(lost(gone)), ActorUnavailableError)  # with its ``_actor_id``
    assert asyncio.run(lost(ValueError())) is None


def test_a_handle_finds_replicas_on_the_loop_that_it_is_told_to(handles: Handles) -> None:
    """``_init(_run_router_in_separate_loop=False)``, before a handle is first called."""

    async def called() -> tuple[Any, bool]:
        handle = _serve.on_this_loop(handles.echo)
        response = handle.remote(5)
        await _serve.assigned(response)
        cancelled = handle.options(method_name="sleep").remote("on this loop")
        await _serve.assigned(cancelled)

        async def noted(what: str) -> None:  # on this loop Ray hands the cancelling over
            seen = handles.echo.seen
            await asyncio.to_thread(until, lambda: "on this loop" in seen.remote().result()[what])

        await noted("started")  # before, it would be cancelled without having run
        _serve.cancel(cancelled)
        await noted("cancelled")
        return await response, response._is_router_running_in_separate_loop

    assert asyncio.run(called()) == (5, False)


def test_the_size_of_a_result_is_known_without_fetching_it(handles: Handles) -> None:
    """``get_local_object_locations``: small results, and errors, are in this process."""

    async def sizes() -> list[int]:
        text = handles.echo.options(method_name="text", _by_reference=True)
        refs = [await _serve.object_ref(text.remote(size)) for size in (10, 3_000_000)]
        refs.append(await _serve.object_ref(handles.echo.fail.remote("kept")))
        for ref in refs:
            await _serve.ready(ref)
        return [_serve.size(ref) for ref in refs]

    small, large, error = asyncio.run(sizes())
    assert (small, error) == (0, 0)
    assert 3_000_000 <= large < 3_001_000


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
