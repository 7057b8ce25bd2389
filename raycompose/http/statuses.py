"""The HTTP status of an error."""

from http import HTTPStatus
from typing import Any

from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from raycompose.errors import (
    UNAVAILABLE,
    ApplicationUnavailableError,
    NoMatchError,
    StageTimeoutError,
)


def status_of(error: Exception) -> tuple[int, Any]:
    """Return the status of an error, and what the client may know of it."""
    match error:
        case HTTPException():
            return error.status_code, error.detail
        case NoMatchError():
            return 422, str(error)
        case ClientDisconnect():  # for nobody to read, and no fault of ours for the log
            return 499, None
        case StageTimeoutError():
            return 504, str(error)
        case BackPressureError():
            return error.status_code, "too many requests are waiting; try again later"
        case ApplicationUnavailableError():
            return 503, f"the application {error.app!r} is not running"
        case _ if isinstance(error, UNAVAILABLE):
            return 503, "a stage is unavailable; try again later"
        case _:
            return 500, None


def title_of(status: int) -> str:
    """Return what a status is called."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
