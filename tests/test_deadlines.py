"""One deadline for a request: by header, by option, by call, on every engine."""

# mypy does not see what Ray's decorators add: .bind.
# mypy: disable-error-code="attr-defined"

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from ray import serve
from starlette.requests import Request
from starlette.testclient import TestClient
from support import journal, pickle_by_value
from support.cluster import ENGINES, HERE, open_on
from support.waiting import poll

import raycompose as rc

pickle_by_value(__name__)

HEADER = "x-request-timeout-seconds"
LIMIT_S = 25.0


@serve.deployment(**HERE)
class Model:
    async def __call__(self, call: dict[str, Any]) -> Any:
        with journal.noted(call, "model"):
            await asyncio.sleep(call["s"])
        return "done"


@serve.deployment(max_ongoing_requests=1, **HERE)
class Narrow:
    async def __call__(self, call: dict[str, Any]) -> Any:
        with journal.noted(call, "narrow"):
            await asyncio.sleep(call["s"])
        return "done"


@serve.deployment(**HERE)
class Asked:
    async def __call__(self, request: Request) -> Any:
        return request.headers.get(HEADER)


@serve.deployment(**HERE)
class Tokens:
    async def __call__(self, call: dict[str, Any]) -> AsyncIterator[int]:
        with journal.noted(call, "tokens"):
            yield 1
            await asyncio.sleep(call["s"])
            yield 2


async def left(call: dict[str, Any]) -> float | None:
    return rc.remaining_s()


def left_in_a_thread(call: dict[str, Any]) -> float | None:
    return rc.remaining_s()


async def faulty(call: dict[str, Any]) -> Any:
    raise ConnectionError("try again")


def graph() -> Any:
    model = Model.bind()
    tried = rc.stage(faulty, retry=rc.Retry(9, on=(ConnectionError,), initial_s=30, jitter=False))
    return rc.switch(
        "do",
        {
            "sleep": rc.pipeline(lambda call: call, model),
            "own": rc.stage(model, name="own", timeout_s=0.2),
            "wait": Narrow.bind(),
            "left": left,
            "thread": left_in_a_thread,
            "less": rc.stage(left, timeout_s=5),
            "asked": Asked.bind(),
            "retry": tried,
        },
    ).options(timeout_s=LIMIT_S)


@pytest.fixture(scope="module", params=ENGINES)
def client(request: pytest.FixtureRequest) -> Any:
    return open_on(request.param, graph(), lambda: request.getfixturevalue("deploy"))


@pytest.fixture(scope="module", params=ENGINES)
def tokens(request: pytest.FixtureRequest) -> Any:
    return open_on(request.param, rc.pipeline(Tokens), lambda: request.getfixturevalue("deploy"))


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(do: str, s: float = 30) -> dict[str, Any]:
        return {"do": do, "s": s, "journal": str(tmp_path), "label": do}

    return make


def post(client: Any, body: Any, timeout: str | None = None) -> Any:
    headers = {} if timeout is None else {HEADER: timeout}
    if client.url is None:
        return TestClient(client.asgi).post("/", json=body, headers=headers)
    return requests.post(client.url, json=body, headers=headers, timeout=60)


def test_the_header_is_a_deadline(client: Any, call: Any) -> None:
    """Past it everything stops, and the answer is 504 with the stage: never Ray's own 408."""
    body, began = call("sleep"), time.monotonic()
    response = post(client, body, "10")  # of a shorter one, a busy machine leaves us too little
    assert (response.status_code, response.json()["stage"]) == (504, "Model")
    assert "10 s: stage 'Model' was running" in response.json()["detail"]
    assert time.monotonic() - began < 15
    poll(lambda: journal.running(body) == {} or None)


def test_a_call_has_a_deadline(client: Any, call: Any) -> None:
    """``client.call(timeout_s=)`` is one, too, and the error names what was running."""
    body, began = call("sleep"), time.monotonic()
    with pytest.raises(rc.StageTimeoutError) as caught:
        client.call(body, timeout_s=0.5)
    assert rc.failed_stage(caught.value) == "Model"
    assert "within its 0.5 s" in str(caught.value)
    assert time.monotonic() - began < 6
    poll(lambda: journal.running(body) == {} or None)


def test_an_awaited_call_has_a_deadline(client: Any, call: Any) -> None:
    """``client.acall(timeout_s=)`` as well."""
    with pytest.raises(TimeoutError) as caught:
        asyncio.run(client.acall(call("sleep"), timeout_s=0.3))
    assert rc.failed_stage(caught.value) == "Model"


def test_what_is_in_time_is_untouched(client: Any, call: Any) -> None:
    """A result that comes before the deadline is the result."""
    body = call("sleep", 0.01)
    assert post(client, body, "20").text == client.call(body, timeout_s=20) == "done"


def test_the_stages_own_deadline_comes_first(client: Any, call: Any) -> None:
    """``timeout_s`` of the stage passes before the request's, and says so."""
    with pytest.raises(rc.StageTimeoutError, match=r"'own' did not finish within timeout_s=0.2"):
        client.call(call("own"), timeout_s=20)


def test_waiting_for_a_replica_counts(client: Any, call: Any) -> None:
    """A request that waits for a place in a stage runs out of time there."""
    busy, waiting = call("wait", 4), call("wait") | {"label": "waiting"}
    answer = client.acall(busy)
    loop = asyncio.new_event_loop()
    task = loop.create_task(answer)
    loop.run_until_complete(asyncio.sleep(0.1))
    poll(lambda: journal.count(busy, "started") or None)
    with pytest.raises(rc.StageTimeoutError) as caught:
        client.call(waiting, timeout_s=0.5)
    assert rc.failed_stage(caught.value) == "Narrow"
    assert loop.run_until_complete(task) == "done"
    assert not journal.count(waiting, "started")
    loop.close()


def test_waiting_for_another_attempt_counts(client: Any, call: Any) -> None:
    """A request that waits for a retry of a stage runs out of time there."""
    with pytest.raises(rc.StageTimeoutError) as caught:
        client.call(call("retry"), timeout_s=2)
    assert rc.failed_stage(caught.value) == "faulty"


@pytest.mark.parametrize("do", ["left", "thread"])
def test_what_is_left_can_be_asked(client: Any, call: Any, do: str) -> None:
    """``rc.remaining_s()`` is the time to the nearest deadline, in coroutines and in threads."""
    assert LIMIT_S - 20 < post(client, call(do)).json() <= LIMIT_S
    assert 0 < post(client, call(do), "5").json() <= 5
    assert 0 < client.call(call(do), timeout_s=10) <= 10
    assert LIMIT_S - 20 < post(client, call(do), "600").json() <= LIMIT_S


def test_a_stages_own_deadline_is_what_is_left(client: Any, call: Any) -> None:
    """A nearer ``timeout_s`` counts; a later one does not outlive the request's."""
    assert 3 < client.call(call("less")) <= 5
    assert 0 < client.call(call("less"), timeout_s=2) <= 2


def test_a_request_that_is_passed_on_carries_it(client: Any, call: Any) -> None:
    """A stage that takes a request finds what is left in the same header."""
    assert 0 < float(post(client, call("asked"), "9").json()) <= 9
    assert 10 < float(client.call(call("asked"))) <= LIMIT_S


@pytest.mark.parametrize("timeout", ["-1", "soon", "nan", "inf", ""])
def test_a_wrong_header_is_refused(client: Any, call: Any, timeout: str) -> None:
    """It must be a number of seconds: 400 says so."""
    response = post(client, call("left"), timeout)
    assert response.status_code == 400
    assert response.json()["detail"].startswith(f"{HEADER} must be a number of seconds, 0 or more")


def test_zero_is_no_deadline(client: Any, call: Any) -> None:
    """As for Ray Serve; the pipeline's own stays."""
    assert post(client, call("left"), "0").json() > LIMIT_S - 20


def test_a_stream_has_the_deadline_to_its_end(tokens: Any, call: Any) -> None:
    """Items that came stay; the stream ends with the problem, and its producer stops."""
    body = call("tokens")
    # Ray ends the connection a tenth later, however busy the replica is.
    lines = post(tokens, body, "2" if tokens.url is None else "10").text.splitlines()
    problem = json.loads(lines.pop())["error"]
    assert [json.loads(line) for line in lines] == [1]
    assert (problem["status"], problem["stage"]) == (504, "Tokens")
    poll(lambda: journal.running(body) == {} or None)


def test_a_streamed_call_has_a_deadline(tokens: Any, call: Any) -> None:
    """``client.stream(timeout_s=)``, to the last item; what comes in time is untouched."""
    body = call("tokens")
    items = tokens.stream(body, timeout_s=2)
    assert next(items) == 1
    with pytest.raises(rc.StageTimeoutError, match=r"within its 2 s") as caught:
        next(items)
    assert rc.failed_stage(caught.value) == "Tokens"
    poll(lambda: journal.running(body) == {} or None)
    assert list(tokens.stream(call("tokens", 0.01), timeout_s=20)) == [1, 2]


def test_without_a_deadline_nothing_is_left_to_say() -> None:
    """``rc.remaining_s()`` is ``None`` where there is no deadline, and outside of a pipeline."""
    assert rc.remaining_s() is None
    with rc.local(rc.pipeline(left)) as client:
        assert client.call({}) is None


@pytest.mark.parametrize("wrong", [0, -1, "5", float("inf"), float("nan"), True])
def test_a_wrong_option_is_refused(wrong: Any) -> None:
    """``app.options(timeout_s=)`` must be a number of seconds above 0."""
    with pytest.raises(rc.CompositionError, match=r"timeout_s=.* must be a number of seconds"):
        rc.pipeline(left).options(timeout_s=wrong)


def test_an_embedded_pipeline_has_its_deadline() -> None:
    """``app.options(timeout_s=).embed()`` keeps it, in the deployment that it is bound to."""

    class Api:
        def __init__(self, pipeline: Any) -> None:
            self.pipeline = pipeline

        async def __call__(self, x: Any) -> Any:
            return await self.pipeline(x)

    app = rc.pipeline(left).options(timeout_s=7).embed()
    with rc.local(serve.deployment(Api).bind(app)) as client:
        assert 0 < client.call({}) <= 7


def test_parallel_branches_stop_together(tmp_path: Path) -> None:
    """All that is in flight is cancelled; the error names one that was running."""
    bodies = [{"s": 30, "journal": str(tmp_path), "label": name} for name in ("a", "b")]
    stages = [rc.stage(lambda _, body=body: body) | Model.bind() for body in bodies]
    with rc.local(rc.parallel(*stages)) as client:
        with pytest.raises(rc.StageTimeoutError) as caught:
            client.call(0, timeout_s=0.3)
        assert rc.failed_stage(caught.value) in ("Model", "Model_2")
        for body in bodies:
            assert journal.count(body, "cancelled") == {"model": 1}
