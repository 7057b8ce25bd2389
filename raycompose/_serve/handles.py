"""Handles: how a call travels, and those that are answered in this process."""

import asyncio
import concurrent.futures
import queue
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import Any, Protocol

import ray
from ray.experimental import get_local_object_locations
from ray.serve._private.local_testing_mode import LocalReplicaResult, LocalRouter
from ray.serve._private.router import SingletonThreadRouter
from ray.serve._private.utils import GENERATOR_COMPOSITION_NOT_SUPPORTED_ERROR
from ray.serve.context import (
    _add_in_flight_request,
    _get_internal_replica_context,
    _get_serve_request_context,
    _remove_in_flight_request,
    _RequestContext,
    _serve_request_context,
)
from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from raycompose._serve.replica import app_name, in_replica


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
        _end_with_request(result)
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
    if isinstance(argument, DeploymentResponse):
        return await argument
    if isinstance(argument, list | tuple | set | Mapping):
        _refuse_responses(argument.values() if isinstance(argument, Mapping) else argument)
    return argument


def _refuse_responses(items: Iterable[Any]) -> None:
    """Refuse responses in a container, which Ray Serve cannot send, either."""
    kinds = set(map(type, items))
    if DeploymentResponseGenerator in kinds:
        raise GENERATOR_COMPOSITION_NOT_SUPPORTED_ERROR
    if DeploymentResponse in kinds:
        next(item for item in items if type(item) is DeploymentResponse).__reduce__()


def _end_with_request(result: Any) -> None:
    """Have a call cancelled with the request that makes it, awaited or not, as Ray Serve does."""
    request = _get_serve_request_context()
    if request.cancel_on_parent_request_cancel:
        ids = request._internal_request_id, uuid.uuid4().hex
        _add_in_flight_request(*ids, result)
        result.add_done_callback(lambda _: _remove_in_flight_request(*ids))


class _Result(LocalReplicaResult):  # type: ignore[misc]  # Ray's types are not followed
    """A result as a remote one: cancelling the wait for it is not cancelling the call."""

    async def get_async(self) -> Any:
        return await asyncio.shield(self._asyncio_future)

    async def __anext__(self) -> Any:
        try:
            return await super().__anext__()
        except RequestCancelledError:  # the response tells who cancelled what
            raise asyncio.CancelledError from None

    async def to_object_ref_async(self) -> Any:
        if not in_replica():
            raise self.OBJ_REF_NOT_SUPPORTED_ERROR
        return ray.put(await self.get_async())


async def assigned(response: Any) -> None:
    """Wait until a call is assigned to a replica, which is what awaiting it does first.

    Cancelled while Ray itself waits for that, a call that was just assigned may be lost, and run on
    (about one in a thousand on a busy machine, seen in 2.60).
    """
    future = response._replica_result_future
    if not future.done():
        elsewhere = response._is_router_running_in_separate_loop
        waiting = asyncio.wrap_future(future) if elsewhere else future
        response._replica_result = await asyncio.shield(waiting)


def cancel(response: Any) -> None:
    """Cancel a call, wherever it is on its way."""
    future, loop = response._replica_result_future, SingletonThreadRouter._asyncio_loop
    response._cancelled = True
    future.add_done_callback(_cancel_result)
    if future.done():
        return
    if response._is_router_running_in_separate_loop and loop is not None:
        # In a callback of the router's own loop: between the two with which a task of that loop
        # hands its result over, the result would be lost.
        loop.call_soon_threadsafe(loop.call_soon, future.cancel)
    else:
        future.cancel()


def _cancel_result(assignment: Any) -> None:
    if not assignment.cancelled() and assignment.exception() is None:
        assignment.result().cancel()


async def object_ref(response: Any) -> Any:
    """Return the ``ObjectRef`` of a response; ``None`` by gRPC and in local testing mode."""
    return await _converted(response, response._to_object_ref)


async def object_ref_gen(response: Any) -> Any:
    """Return the ``ObjectRefGenerator`` of a streaming response; ``None`` where there is none."""
    return await _converted(response, response._to_object_ref_gen)


async def ready(ref: Any) -> None:
    """Wait until the result of an ``ObjectRef`` exists, without fetching it."""
    await ref._ready()


def size(ref: Any) -> int:
    """Return the size in bytes of the result of an ``ObjectRef`` of this process's, once ready.

    0 of one so small that Ray keeps it in this process, as it does most errors.
    """
    found = get_local_object_locations([ref]).get(ref, {})
    return (found.get("object_size") or 0) if found.get("node_ids") else 0


async def _converted(response: Any, convert: Callable[[], Any]) -> Any:
    if not response.by_reference:
        return None
    await assigned(response)
    try:
        return await convert()
    except RuntimeError as error:
        if "local testing mode" in str(error):
            return None
        raise


def on_this_loop(handle: Any) -> Any:
    """Return a handle to the same deployment that finds replicas on the running loop.

    By default Ray Serve's routers have a thread of their own, and each call crosses to it twice.
    Ray's documented switch for a whole process is ``RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP=0``.
    A handle of its own, for Ray Serve gives out the ones that it has: others may call them from
    threads.
    """
    own = DeploymentHandle(
        handle.deployment_name, handle.app_name, handle_options=handle.handle_options
    )
    own._init(_run_router_in_separate_loop=False)
    return own


def by_reference(handle: Any) -> Any:
    """Return the handle with results as ``ObjectRef``s, whatever Ray's default transport is."""
    return handle.options(_by_reference=True)


def by_grpc(handle: Any) -> Any:
    """Return the handle with calls by gRPC, whatever Ray's default transport is."""
    return handle.options(_by_reference=False)


def is_refusal_of(error: DeploymentUnavailableError, handle: Any) -> bool:
    """Tell whether an error says that the deployment of this handle takes no calls."""
    refused: bool = error._deployment_id == handle.deployment_id
    return refused


def options_of(handle: DeploymentHandle[Any]) -> tuple[str, bool]:
    """Return the method that a handle calls, and whether as a stream."""
    return handle.handle_options.method_name, handle.handle_options.stream


def is_own_deployment(handle: Any) -> bool:
    """Tell whether a handle leads to the deployment that this replica belongs to."""
    replica = _get_internal_replica_context()
    return replica is not None and replica.replica_id.deployment_id == handle.deployment_id
