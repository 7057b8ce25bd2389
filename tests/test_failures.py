"""What a stage raises, at its caller: across processes and levels, on every engine."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import itertools
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from typing import Any, NoReturn

import pytest
import ray
import requests
from fastapi import HTTPException as FastAPIHTTPException
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient
from support import pickle_by_value
from support.cluster import ENGINES, HERE, Deploy, open_on

import raycompose as rc
from raycompose.errors import StageError

pickle_by_value(__name__)

here: Any = {**HERE, "max_ongoing_requests": 100}


# --- Exceptions -----------------------------------------------------------------------------------


class Mine(Exception):
    pass


class Child(Mine, LookupError):
    pass


class Slots(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Reduced(Exception):
    def __init__(self, a: int, *, b: int) -> None:
        super().__init__(f"a={a}, b={b}")
        self.a, self.b = a, b

    def __reduce__(self) -> Any:
        return _reduced, (self.a, self.b, self.__dict__)


def _reduced(a: int, b: int, state: dict[str, Any]) -> Reduced:
    error = Reduced(a, b=b)
    error.__dict__.update(state)
    return error


class Forgetful(Exception):
    """Passes on fewer arguments than it takes, so Python itself cannot unpickle it."""

    def __init__(self, account: str, missing: int) -> None:
        super().__init__(f"{account} lacks {missing}")


class KeywordsOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code


class Holding(Exception):
    """Has what no other process can have."""

    def __init__(self, held: Any) -> None:
        super().__init__("held")
        self.held = held


class Base(BaseException):
    """No Exception: what a framework may use for its own control flow."""


def chained() -> NoReturn:
    try:
        raise KeyError("the cause")
    except KeyError as error:
        raise Mine("the effect") from error


def in_context() -> NoReturn:
    try:
        raise KeyError("the context")
    except KeyError:
        raise Mine("the effect")  # noqa: B904  # meant so


def recursive(depth: int = 0) -> Any:
    return recursive(depth + 1) + 1


def grouped() -> NoReturn:
    raise ExceptionGroup("several", [Mine(1), Child(2)])  # type: ignore[name-defined]  # noqa: F821


def kind_raised(make: Callable[[], BaseException]) -> Callable[[], NoReturn]:
    def raising() -> NoReturn:
        raise make()

    return raising


RAISING: dict[str, Any] = {
    "mine": kind_raised(lambda: Mine("text", 2)),
    "child": kind_raised(lambda: Child("text")),
    "slots": kind_raised(lambda: Slots(7)),
    "reduced": kind_raised(lambda: Reduced(1, b=2)),
    "forgetful": kind_raised(lambda: Forgetful("savings", 5)),
    "keywords": kind_raised(lambda: KeywordsOnly(code=5)),
    "lock": kind_raised(lambda: Holding(threading.Lock())),
    "socket": kind_raised(lambda: Holding(socket.socket())),
    "chained": chained,
    "in context": in_context,
    "key": kind_raised(lambda: KeyError((1, "two"))),
    "stop": kind_raised(lambda: StopIteration(5)),
    "stop async": kind_raised(lambda: StopAsyncIteration(5)),
    "generator exit": kind_raised(GeneratorExit),
    "interrupt": kind_raised(KeyboardInterrupt),
    "exit": kind_raised(lambda: SystemExit(3)),
    "base": kind_raised(lambda: Base("text")),
    "recursion": recursive,
    "memory": kind_raised(lambda: MemoryError("no room")),
    "huge": kind_raised(lambda: Mine("x" * 10_000_000)),
    "cancelled": kind_raised(asyncio.CancelledError),
    "starlette": kind_raised(lambda: HTTPException(409, "taken", {"X-Kind": "1"})),
    "starlette, keywords": kind_raised(
        lambda: HTTPException(status_code=409, detail="taken", headers={"X-Kind": "1"})
    ),
    "fastapi": kind_raised(lambda: FastAPIHTTPException(409, {"why": "taken"}, {"X-Kind": "1"})),
    "fastapi, keywords": kind_raised(
        lambda: FastAPIHTTPException(
            status_code=409, detail={"why": "taken"}, headers={"X-Kind": "1"}
        )
    ),
    "ours": kind_raised(lambda: rc.HTTPError(409, {"why": "taken"}, {"X-Kind": "1"})),
    "gives a lock": threading.Lock,
    "gives a socket": socket.socket,
    "gives a generator": lambda: (x for x in range(3)),
}
if sys.version_info >= (3, 11):
    RAISING["group"] = grouped


def call_by_name(call: dict[str, Any]) -> Any:
    return RAISING[call["what"]]()


async def call_by_name_async(call: dict[str, Any]) -> Any:
    return RAISING[call["what"]]()


@serve.deployment(**here)
class Worker:
    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()

    async def count(self, call: dict[str, Any]) -> int:
        """Fail as often as the call says, then tell how often this was tried."""
        self.counted[call["label"]] += 1
        if self.counted[call["label"]] <= call["failures"]:
            call_by_name(call)
        return self.counted[call["label"]]

    async def items(self, call: dict[str, Any]) -> AsyncIterator[int]:
        """Fail as often as the call says, before the first item or behind it."""
        self.counted[call["label"]] += 1
        failing = self.counted[call["label"]] <= call["failures"]
        if failing and not call["behind"]:
            call_by_name(call)
        yield self.counted[call["label"]]
        if failing:
            call_by_name(call)

    def slow(self, call: dict[str, Any]) -> None:
        time.sleep(1)

    async def attempts(self, call: dict[str, Any]) -> int:
        return self.counted[call["label"]]

    def sync(self, call: dict[str, Any]) -> Any:
        return call_by_name(call)

    async def on_loop(self, call: dict[str, Any]) -> Any:
        return call_by_name(call)


@serve.deployment(**here)
class Holder:
    def __init__(self, inner: DeploymentHandle[Any]) -> None:
        self.inner = inner

    async def __call__(self, call: dict[str, Any]) -> Any:
        return await self.inner.remote(call)


task: Any = ray.remote(num_cpus=0)(call_by_name)


@ray.remote(num_cpus=0)
class Actor:
    def sync(self, call: dict[str, Any]) -> Any:
        return call_by_name(call)


NEVER = 10**6
FAST: Any = {"initial_s": 0.01, "max_s": 0.02, "min_per_s": 1e6}
POLICIES: dict[str, dict[str, Any]] = {
    "not listed": {"retry": 3},
    "listed": {"retry": rc.Retry(3, on=(Mine,), **FAST)},
    "a subclass": {"retry": rc.Retry(3, on=(LookupError,), **FAST)},
    "bounded": {"retry": rc.Retry(NEVER, on=(Mine,), **FAST), "timeout_s": 2},
    "client error": {"retry": rc.Retry(3, on=(Mine,), **FAST)},
    "client error, listed": {"retry": rc.Retry(3, on=(rc.HTTPError,), **FAST)},
}


def _retried(worker: Any, name: str, options: dict[str, Any]) -> rc.Pipeline[Any, Any]:
    return rc.stage(worker, method="count", name=f"retry {name}", **options)


def application(actor: Any) -> rc.Pipeline[Any, Any]:
    worker = Worker.bind()
    on_loop = rc.stage(worker, method="on_loop", name="culprit")
    two = Holder.bind(rc.pipeline(on_loop, rc.passthrough))
    three = Holder.options(name="Outer").bind(rc.pipeline(rc.passthrough, two))
    return rc.switch(
        "where",
        {
            "inline": rc.stage(call_by_name, name="culprit"),
            "inline async": rc.stage(call_by_name_async, name="culprit"),
            "a def method": rc.stage(worker, method="sync", name="culprit"),
            "an async method": on_loop,
            "a task": rc.stage(task, name="culprit"),
            "an actor": rc.stage(actor.sync, name="culprit"),
            "two levels": two,
            "three levels": three,
            **{name: _retried(worker, name, policy) for name, policy in POLICIES.items()},
            "items": rc.stage(
                worker, method="items", name="items", retry=POLICIES["listed"]["retry"]
            ),
            "slow": rc.stage(worker, method="slow", name="slow", timeout_s=0.2),
            "attempts": rc.stage(worker, method="attempts"),
            "fine": rc.passthrough,
        },
    ).options(graceful_shutdown_timeout_s=0)


WHERE = ["inline", "inline async", "a def method", "an async method", "a task", "an actor",
         "two levels", "three levels"]  # fmt: skip


@pytest.fixture(scope="module")
def actor(cluster: None) -> Iterator[Any]:
    made = Actor.remote()
    yield made
    ray.kill(made)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def client(engine: str, deploy: Deploy, actor: Any) -> rc.Client:
    opened: rc.Client = open_on(engine, application(actor), lambda: deploy)
    return opened


def post(client: rc.Client, call: dict[str, Any]) -> Any:
    if client.url is None:
        return TestClient(client.asgi).post("/", json=call)
    return requests.post(client.url, json=call, timeout=60)


def raised(client: rc.Client, what: str, where: str) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the caller looks closer
        client.call({"what": what, "where": where}, timeout_s=60)
    error: Exception = caught.value
    assert (rc.failed_stage(error) or "").startswith("culprit"), repr(error)
    notes = [note for note in getattr(error, "__notes__", ()) if "raised in stage" in note]
    assert notes == [f"raised in stage {rc.failed_stage(error)!r}"]
    return error


KEPT: dict[str, tuple[type[Exception], Any]] = {
    "mine": (Mine, ("text", 2)),
    "child": (Child, ("text",)),
    "slots": (Slots, (7,)),
    "reduced": (Reduced, ("a=1, b=2",)),
    "chained": (Mine, ("the effect",)),
    "in context": (Mine, ("the effect",)),
    "key": (KeyError, ((1, "two"),)),
    "memory": (MemoryError, ("no room",)),
}


@pytest.mark.parametrize("where", WHERE)
def test_the_users_own_exception_arrives(client: rc.Client, where: str) -> None:
    """Type and arguments, the stage and one note of it arrive from every place and depth."""
    for what, (kind, args) in KEPT.items():
        error = raised(client, what, where)
        assert isinstance(error, kind), what
        assert error.args == args
    assert isinstance(raised(client, "child", where), Mine)
    assert isinstance(raised(client, "recursion", where), RecursionError)


@pytest.mark.parametrize("where", WHERE)
def test_fields_arrive(client: rc.Client, where: str) -> None:
    """What ``__slots__`` and ``__reduce__`` hold arrives with the exception."""
    assert vars_of(raised(client, "slots", where), "code") == [7]
    assert vars_of(raised(client, "reduced", where), "a", "b") == [1, 2]


def vars_of(error: Exception, *names: str) -> list[Any]:
    return [getattr(error, name) for name in names]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are new in 3.11")
def test_an_exception_group_arrives_whole(client: rc.Client, where: str) -> None:
    """A group arrives with all its exceptions."""
    error: Any = raised(client, "group", where)
    assert [type(one) for one in error.exceptions] == [Mine, Child]


@pytest.mark.parametrize("where", WHERE[:4])
def test_the_cause_is_kept_where_nothing_is_sent(
    client: rc.Client, engine: str, where: str
) -> None:
    """On the local engine ``raise ... from ...`` arrives as it is; pickling does not keep it."""
    error = raised(client, "chained", where)
    if engine != "local":
        pytest.skip("the exception is sent")
    assert repr(error.__cause__) == repr(KeyError("the cause"))


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("what", ["forgetful", "keywords", "lock", "socket"])
def test_what_cannot_be_sent_has_a_stand_in(
    client: rc.Client, engine: str, what: str, where: str
) -> None:
    """An exception that Ray cannot send arrives as itself or with its type's name and text."""
    kind, text = {"forgetful": (Forgetful, "savings lacks 5"), "keywords": (KeywordsOnly, "")}.get(
        what, (Holding, "held")
    )
    error = raised(client, what, where)
    if isinstance(error, kind):  # where nothing is sent, or a pipeline's own replica sends it
        assert str(error) == text
        return
    assert isinstance(error, StageError)
    assert error.type_name.endswith(kind.__name__)
    assert error.message == text


@pytest.mark.parametrize("where", ["an async method", "a task", "three levels"])
def test_an_enormous_message_arrives(client: rc.Client, where: str) -> None:
    """A message of 10 MB arrives like any other."""
    error = raised(client, "huge", where)
    assert isinstance(error, Mine)
    assert len(str(error)) >= 10_000_000


HTTP = ["starlette", "starlette, keywords", "fastapi", "fastapi, keywords", "ours"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("what", HTTP)
def test_an_http_exception_keeps_status_and_detail(
    client: rc.Client, what: str, where: str
) -> None:
    """HTTPExceptions of Starlette, FastAPI and our own answer, however deep they are raised."""
    response = post(client, {"what": what, "where": where})
    assert response.status_code == 409
    said = response.json()
    assert said["detail"] == "taken" if "starlette" in what else said["data"] == {"why": "taken"}
    assert response.json()["stage"].startswith("culprit")


@pytest.mark.parametrize("where", WHERE)
def test_an_http_error_keeps_its_headers(client: rc.Client, where: str) -> None:
    """The headers of an ``rc.HTTPError`` reach the client of whichever stage raised it."""
    assert post(client, {"what": "ours", "where": where}).headers["x-kind"] == "1"


@pytest.mark.parametrize("where", WHERE)
def test_an_internal_error_is_a_500_with_its_stage(client: rc.Client, where: str) -> None:
    """Over HTTP the user's exception is a 500 that names the stage and not the message."""
    response = post(client, {"what": "mine", "where": where})
    assert response.status_code == 500
    assert response.json()["stage"].startswith("culprit")
    assert "text" not in response.text


@pytest.mark.parametrize("where", ["inline", "inline async", "a def method", "an async method"])
@pytest.mark.parametrize("what", ["interrupt", "exit", "base"])
def test_what_is_no_exception_ends_no_more_than_its_request(
    client: rc.Client, engine: str, what: str, where: str
) -> None:
    """KeyboardInterrupt, SystemExit and their like fail one request, not the process."""
    if engine == "distributed" and "inline" not in where:
        pytest.skip("the stage's own replica is Ray's")
    error = raised(client, what, where)
    assert isinstance(error, RuntimeError)
    assert post(client, {"what": what, "where": where}).status_code == 500
    assert client.call({"where": "fine"}, timeout_s=10) == {"where": "fine"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python cannot tell who cancels")
@pytest.mark.parametrize("where", ["inline", "inline async", "a def method", "an async method"])
def test_a_stage_that_cancels_itself_has_failed(client: rc.Client, where: str) -> None:
    """A CancelledError that nobody asked for is an error of the stage that raised it."""
    raised(client, "cancelled", where)
    response = post(client, {"what": "cancelled", "where": where})
    assert (response.status_code, response.json()["stage"][:7]) == (500, "culprit")


@pytest.mark.parametrize("where", ["inline", "inline async", "a def method", "an async method",
                                   "a task", "an actor"])  # fmt: skip
@pytest.mark.parametrize("what", ["stop", "stop async"])
def test_stop_iteration_is_an_error(client: rc.Client, what: str, where: str) -> None:
    """An iterator's signal that leaks out of a stage is an error and not an end."""
    error = raised(client, what, where)
    assert isinstance(error, RuntimeError)


@pytest.mark.parametrize("where", ["an async method", "a def method", "a task", "an actor"])
@pytest.mark.parametrize("what", ["gives a lock", "gives a socket", "gives a generator"])
def test_a_result_that_cannot_be_sent_is_an_error(
    client: rc.Client, engine: str, what: str, where: str
) -> None:
    """A result that no other process can have is an error that names the stage, and no hang."""
    if engine != "distributed":
        pytest.skip("nothing is sent between stages that share a process")
    if "generator" in what and "method" not in where:
        pytest.skip("what Ray makes of a generator that a task returns is Ray's")
    raised(client, what, where)
    assert post(client, {"what": what, "where": where}).status_code == 500


# --- Attempts, counted by the replica -------------------------------------------------------------

_labels = map(str, itertools.count())


def tried(client: rc.Client, policy: str, what: str, failures: int) -> tuple[Any, int]:
    """Return the result or the error, and how often the replica was called."""
    call = {"where": policy, "what": what, "failures": failures, "label": next(_labels)}
    try:
        result = client.call(call, timeout_s=60)
    except Exception as error:
        result = error
    return result, client.call({**call, "where": "attempts"})


@pytest.mark.parametrize(
    ("policy", "what", "failures", "result", "attempts"),
    [
        ("not listed", "mine", NEVER, Mine, 1),
        ("listed", "mine", 2, 3, 3),
        ("listed", "mine", NEVER, Mine, 3),
        ("listed", "child", 1, 2, 2),
        ("listed", "key", NEVER, KeyError, 1),
        ("a subclass", "child", 2, 3, 3),
        ("client error", "ours", NEVER, rc.HTTPError, 1),
        ("client error, listed", "ours", 2, 3, 3),
    ],
)
def test_a_stage_is_tried_as_often_as_its_policy_says(
    client: rc.Client, policy: str, what: str, failures: int, result: Any, attempts: int
) -> None:
    """Only what is listed is tried again, up to ``attempts``; the last error is raised."""
    got, counted = tried(client, policy, what, failures)
    assert got == result if isinstance(result, int) else isinstance(got, result)
    assert counted == attempts


@pytest.mark.parametrize(
    ("behind", "failures", "items", "fails"),
    [(False, 0, [1], False), (False, 2, [3], False), (False, NEVER, [], True),
     (True, 1, [1], True)],
    ids=["fine", "fails at first", "fails always", "fails behind"],
)  # fmt: skip
def test_a_stream_is_tried_again_until_its_first_item(
    client: rc.Client, behind: bool, failures: int, items: list[int], fails: bool
) -> None:
    """What fails before the first item is tried again; what was sent is never sent twice."""
    call = {"where": "items", "what": "mine", "behind": behind, "failures": failures,
            "label": next(_labels)}  # fmt: skip
    got: list[int] = []
    with pytest.raises(Mine) if fails else nullcontext():
        for item in client.stream(call):
            got.append(item)  # those before an error, too
    assert got == items
    assert client.call({**call, "where": "attempts"}) == min(failures + 1, 1 if behind else 3)


def test_the_wait_for_a_def_method_ends_at_its_deadline(client: rc.Client) -> None:
    """Its thread goes on, which nothing can stop; over HTTP the answer is a 504."""
    response = post(client, {"where": "slow"})
    assert (response.status_code, response.json()["stage"]) == (504, "slow")
    with pytest.raises(rc.StageTimeoutError):
        client.call({"where": "slow"})


def test_a_deadline_bounds_all_attempts(client: rc.Client) -> None:
    """With ``timeout_s`` the attempts end at the deadline, and none is made afterwards."""
    started = time.monotonic()
    error, counted = tried(client, "bounded", "mine", NEVER)
    assert time.monotonic() - started < 10
    assert isinstance(error, rc.StageTimeoutError)
    assert rc.failed_stage(error) == "retry bounded"
    assert counted > 1
    again = {"where": "attempts", "label": str(int(next(_labels)) - 1)}
    time.sleep(0.2)  # ten times the wait between two attempts
    assert client.call(again) == counted
