"""Calls by gRPC, which Ray Serve makes between replicas where it is told to.

Values arrive in the caller's memory, in one message. A replica refuses requests above a limit,
unread; a caller has one, too, and what is above that is lost, though the callee ran.
"""

import asyncio
from typing import Any

import grpc
from ray.exceptions import ActorUnavailableError
from ray.serve._private.replica_result import gRPCReplicaResult
from ray.serve._private.request_router import replica_wrapper

_UNLIMITED = -1  # gRPC's word for it


def receive_any_size() -> None:
    """Have this process receive results of any size, up to gRPC's own 2 GiB.

    The limit is ``RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH``, which Ray reads when it is
    imported, and takes when a handle first finds a replica.
    """
    replica_wrapper.RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH = _UNLIMITED


def receives_any_size() -> bool:
    """Tell whether this process receives results of any size."""
    limit: int = replica_wrapper.RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH
    return limit == _UNLIMITED


def is_too_large(error: BaseException) -> bool:
    """Tell whether a replica refused this request, unread, for its size."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return False
    said = error.details() or ""  # "CLIENT:" is this process, which refused the response
    return "Received message larger than max" in said and "CLIENT:" not in said


async def sent_error(response: Any) -> bytes | None:
    """Return the pickled exception that a call by gRPC was answered with; ``None`` if with none.

    Awaiting the response raises it, unless it cannot be unpickled.
    """
    result = response._replica_result
    if not isinstance(result, gRPCReplicaResult) or not result._call.done():
        return None
    answer = asyncio.run_coroutine_threadsafe(_answer(result._call), result._grpc_call_loop)
    message = await asyncio.wrap_future(answer)
    return message.serialized_message if message is not None and message.is_error else None


async def _answer(call: Any) -> Any:
    try:
        return await call
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        return None


def lost_answer(error: BaseException, response: Any) -> str | Exception | None:
    """Return what a failure of gRPC itself means; ``None`` of any other error.

    Text, where the replica could not pickle its answer or unpickle the call, and the error of a
    replica that is gone.
    """
    if not isinstance(error, grpc.aio.AioRpcError) or is_too_large(error):
        return None
    if error.code() is grpc.StatusCode.UNKNOWN:
        return str(error.details())
    result = response._replica_result
    actor_id = result._actor_id.binary() if result else None
    gone: Exception = ActorUnavailableError(f"no answer: {error.details()}", actor_id)
    return gone
