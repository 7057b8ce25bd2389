"""What a call by handle answers: awaited, item by item; cancelled with the wait."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from ray import ObjectRef
from ray.exceptions import RayError

from raycompose import _serve
from raycompose.errors import LostAnswerError, add_note, refuse_signal
from raycompose.flow.failures import users_error
from raycompose.flow.unpickling import unpickled_error


async def result_of(response: Any) -> Any:
    """Await a ``DeploymentResponse``: cancelled with the wait, and with the user's own errors.

    Raises:
        LostAnswerError: The callee's answer could not be sent by gRPC.
    """
    try:
        await _serve.assigned(response)
        return await response
    except asyncio.CancelledError as signal:
        if await _serve.sent_error(response) is not None:
            refuse_signal(signal)  # the stage's own
        _serve.cancel(response)  # cancelling an await does not cancel the remote call
        raise
    except RayError as error:
        raise users_error(error) from error
    except Exception as error:
        if (lost := _serve.lost_answer(error, response)) is not None:
            raise (lost if isinstance(lost, Exception) else LostAnswerError(lost)) from error
        if (sent := await _serve.sent_error(response)) is not None:
            unpickled = users_error(unpickled_error(sent))
            add_note(unpickled, "the log of the stage's replica has its traceback")
            raise unpickled from None
        raise


async def ended(response: Any) -> "ObjectRef[Any]":
    """Wait until a call by reference has ended, however it did, and return its ``ObjectRef``."""
    try:
        await _serve.assigned(response)
        ref: ObjectRef[Any] = await _serve.object_ref(response)
        await _serve.ready(ref)
    except asyncio.CancelledError:
        _serve.cancel(response)
        raise
    except RayError as error:
        raise users_error(error) from error
    return ref


async def items_of(response: Any) -> AsyncGenerator[Any, None]:
    """Iterate a ``DeploymentResponseGenerator``; closing cancels the call."""
    try:
        await _serve.assigned(response)
        async for item in response:
            yield item
    except RayError as error:
        raise users_error(error) from error
    finally:
        _serve.cancel(response)
