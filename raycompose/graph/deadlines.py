"""Running a part of a graph until a deadline: of a stage, or of the whole request."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from raycompose.errors import RequestTimeoutError, StageTimeoutError, mark
from raycompose.flow.concurrency import DeadlinePassed, pulled
from raycompose.flow.deadlines import Deadline
from raycompose.flow.streams import Stream


async def run_before(
    deadline: Deadline, action: Callable[[], Awaitable[Any]], stage: str | None = None
) -> Any:
    """Return what an action gives in time; a stream has the same deadline for its last item.

    Args:
        deadline: When it is cancelled.
        action: What to await.
        stage: The stage whose limit it is; ``None``: it is the request's.

    Raises:
        StageTimeoutError: It passed.
    """
    result = await _awaited(deadline, stage, action)
    if isinstance(result, Stream):
        return Stream(partial(pulled, partial(_awaited, deadline, stage), result), portable=False)
    return result


async def _awaited(
    deadline: Deadline, stage: str | None, action: Callable[[], Awaitable[Any]]
) -> Any:
    try:
        return await deadline.before(action)
    except DeadlinePassed:
        raise _error(deadline, stage) from None


def _error(deadline: Deadline, stage: str | None) -> StageTimeoutError:
    if stage is not None:
        return mark(StageTimeoutError(stage, deadline.timeout_s), stage)
    error = RequestTimeoutError(deadline.interrupted, deadline.timeout_s)
    return error if error.stage is None else mark(error, error.stage)
