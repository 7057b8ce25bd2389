"""The same graph means the same on every engine: local, fused and distributed."""

import json
import re
from typing import Any

import numpy as np
import pytest
import requests
from starlette.testclient import TestClient
from support.cluster import ENGINES, open_on

import raycompose as rc
from conformance.cases import SAME, STREAMING, UNARY, Case, app

SSE = {"Accept": "text/event-stream"}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def unary(engine: str, request: pytest.FixtureRequest) -> Any:
    return _start(UNARY, engine, request)


@pytest.fixture(scope="module")
def streaming(engine: str, request: pytest.FixtureRequest) -> Any:
    return _start(STREAMING, engine, request)


def _start(cases: list[Case], engine: str, request: pytest.FixtureRequest) -> Any:
    return open_on(engine, app(cases), lambda: request.getfixturevalue("deploy"))


def _by_name(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def _call(case: Case) -> dict[str, Any]:
    return {"case": case.name, "input": case.input}


def _post(client: Any, case: Case, headers: dict[str, str] | None = None) -> Any:
    if client.url is None:
        return TestClient(client.asgi).post("/", json=_call(case), headers=headers)
    return requests.post(client.url, json=_call(case), headers=headers, timeout=60)


def _body(response: Any) -> Any:
    kind = response.headers["content-type"]
    if "ndjson" in kind:
        return [json.loads(line) for line in response.text.splitlines()]
    return response.json() if "json" in kind else response.text


def _without_number(stage: str | None) -> str:
    """``fail`` for ``fail_7``: all cases are in one pipeline, which makes its names unique."""
    return re.sub(r"_\d+$", "", stage or "")


def _plain(value: Any) -> Any:
    """A value whose ``==`` is of its type too, for tuples and lists and for NumPy."""
    if isinstance(value, np.ndarray):
        return ("ndarray", value.dtype, value.tolist())
    if isinstance(value, list | tuple):
        return type(value), [_plain(item) for item in value]
    if isinstance(value, dict):
        return [(key, _plain(item)) for key, item in value.items()]  # a dict's order counts
    return type(value), value


def _check_problem(problem: dict[str, Any], case: Case, status: int) -> None:
    assert problem["status"] == status
    assert _without_number(problem["stage"]) == case.failed_stage
    if isinstance(case.detail, str):
        assert case.detail in problem["detail"]
    elif case.detail is None:
        assert "detail" not in problem
    else:
        assert problem["data"] == case.detail
        assert isinstance(problem["detail"], str)


@_by_name(UNARY)
def test_gives_the_result(unary: rc.Client, case: Case) -> None:
    """A call gives the case's result, or raises the user's own exception from the right stage."""
    if case.error is None:
        assert _plain(unary.call(_call(case))) == _plain(case.result)
        return
    with pytest.raises(case.error) as caught:
        unary.call(_call(case))
    assert _without_number(rc.failed_stage(caught.value)) == case.failed_stage


@_by_name(UNARY)
def test_answers_over_http(unary: rc.Client, case: Case) -> None:
    """An HTTP request gives the case's result as JSON or text, or its error as problem details."""
    response = _post(unary, case)
    assert response.status_code == case.status
    if case.error is not None:
        assert response.headers["content-type"] == "application/problem+json"
        _check_problem(response.json(), case, case.status)
    else:
        body = json.loads(json.dumps(case.result)) if case.body is SAME else case.body
        assert _body(response) == body


@_by_name(STREAMING)
def test_gives_the_items(streaming: rc.Client, case: Case) -> None:
    """A streaming call gives the case's items in order, and then the error if there is one."""
    items = []
    caught: Exception | None = None
    try:
        for item in streaming.stream(_call(case)):
            items.append(item)  # those before an error count
    except Exception as error:
        caught = error
    assert _plain(items) == _plain(case.items)
    if case.error is None:
        assert caught is None
    else:
        assert isinstance(caught, case.error)
        assert _without_number(rc.failed_stage(caught)) == case.failed_stage


@_by_name(STREAMING)
def test_streams_over_http(streaming: rc.Client, case: Case) -> None:
    """Over HTTP items are lines of JSON, or text; an error is a problem, or the last line."""
    response = _post(streaming, case)
    assert response.status_code == case.status
    if case.status != 200:
        _check_problem(response.json(), case, case.status)
        return
    items = _body(response)
    if case.error is not None:
        _check_problem(items.pop()["error"], case, 500)
    assert items == (case.items if case.body is SAME else case.body)


@_by_name(STREAMING)
def test_streams_server_sent_events(streaming: rc.Client, case: Case) -> None:
    """A client that accepts text/event-stream gets an event for each item, and for an error."""
    response = _post(streaming, case, SSE)
    assert response.status_code == case.status
    if case.status != 200:
        _check_problem(response.json(), case, case.status)
        return
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [event for event in response.text.split("\n\n") if event]
    if case.error is not None:
        kind, data = events.pop().split("\n")
        assert kind == "event: error"
        _check_problem(json.loads(data.removeprefix("data: ")), case, 500)
    assert len(events) == len(case.items or [])
    assert all(event.startswith("data: ") for event in events)
