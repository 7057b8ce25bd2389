"""Pipelines behind HTTP in this process, and what they answer."""

from typing import Any

from starlette.testclient import TestClient

import raycompose as rc

JSON = {"content-type": "application/json"}
CURL = {"content-type": "application/x-www-form-urlencoded"}
"""What curl says of a body whose type it is not told."""


def http(*stages: Any, **options: Any) -> TestClient:
    """Return what sends requests to a pipeline of some stages."""
    app = rc.pipeline(*stages)
    return TestClient(rc.local(app.options(**options) if options else app).asgi)


def answer(result: Any) -> Any:
    """Return the HTTP response to a stage that returns ``result``."""
    return http(lambda: result).get("/")


def failure(error: Exception, **options: Any) -> Any:
    """Return the HTTP response to a stage that raises ``error``."""

    def failing() -> None:
        raise error

    return http(failing, **options).get("/")


def problem(response: Any, status: int) -> dict[str, Any]:
    """Return a response's problem details, having checked their shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/problem+json")
    details: dict[str, Any] = response.json()
    assert details["status"] == status
    assert details["title"]
    return details


def kind_and_value(x: Any) -> Any:
    """Return what arrived in a form that JSON can hold."""
    return [type(x).__name__, x.decode("latin-1") if isinstance(x, bytes) else x]


ECHO = http(kind_and_value)
