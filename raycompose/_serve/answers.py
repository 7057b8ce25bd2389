"""What Ray Serve answers: values as it sends them, errors as it reports them."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi.encoders import jsonable_encoder
from ray.exceptions import RayError, RayTaskError, UnserializableException
from ray.serve._private.http_util import convert_object_to_asgi_messages
from ray.serve._private.utils import serve_encoders


def encode_body(value: Any) -> tuple[bytes, str]:
    """Return ``value`` as Ray Serve itself would send it: the body and its content type."""
    start, body = convert_object_to_asgi_messages(value)
    return body["body"], dict(start["headers"])[b"content-type"].decode()


def jsonable(value: Any, encoders: Mapping[Any, Callable[[Any], Any]]) -> Any:
    """Return ``value`` as the plain tree that Ray Serve itself would send as JSON.

    Args:
        value: What to send.
        encoders: What gives the plain value of types that Ray Serve does not know.
    """
    return jsonable_encoder(value, custom_encoder={**serve_encoders, **encoders})


def did_not_stream(error: TypeError) -> bool:
    """Tell whether this is Ray's answer to ``stream=True`` on what gave one result."""
    return "did not return a generator" in str(error)


def did_stream(error: TypeError) -> bool:
    """Tell whether this is Ray's answer to a call for one result of what streams."""
    return "returned a generator. You must use" in str(error)


def answers_http_alone(error: TypeError) -> bool:
    """Tell whether this is Ray's answer to a call of a FastAPI ingress, without a method."""
    return "ASGIAppReplicaWrapper.__call__()" in str(error)


def has_no_method(error: Exception, method: str) -> bool:
    """Tell whether this is Ray's answer to a call of this method, which a deployment has not."""
    return f"Tried to call a method '{method}' that does not exist" in str(error)


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
