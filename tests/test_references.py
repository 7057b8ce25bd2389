"""References to results that may not exist yet: by hand and in pipelines, on every transport."""

# mypy does not see what Ray's decorators add (.bind, .options, .remote), nor their types.
# mypy: disable-error-code="attr-defined, untyped-decorator"

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import ray
from conftest import Deploy
from ray import ObjectRef, serve
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError, TaskCancelledError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

import raycompose as rc

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import this file

SCRIPTS = Path(__file__).parent / "scripts"
NAMESPACE = "references"
TIMEOUT_S = 15.0
LARGE = 300_000
"""Bytes that Ray keeps in the object store rather than in the message."""

here: dict[str, Any] = {
    "ray_actor_options": {"num_cpus": 0},
    "graceful_shutdown_timeout_s": 0,
    "max_ongoing_requests": 100,
}


class Refused(Exception):
    """What the stages of these tests fail with."""


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass(frozen=True)
class Record:
    value: Any
    note: str = "note"


class Traced:
    """A value that knows in which processes it was unpickled."""

    def __init__(self, size: int, unpickled_in: tuple[int, ...] = ()) -> None:
        self.data = bytes(size)
        self.unpickled_in = unpickled_in

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.data, self.unpickled_in)


def _arrived(data: bytes, unpickled_in: tuple[int, ...]) -> Traced:
    traced = Traced(0, (*unpickled_in, os.getpid()))
    traced.data = data
    return traced


class _Gate:
    """Whoever waits at it goes on when somebody else has opened it."""

    def __init__(self) -> None:
        self._open = asyncio.Event()

    async def close(self) -> None:
        self._open = asyncio.Event()

    async def open(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        await self._open.wait()


def gate() -> Any:
    """The gate, from any process."""
    return ray.get_actor("gate", namespace=NAMESPACE)


@pytest.fixture(scope="module")
def _gate(cluster: None) -> Iterator[Any]:
    actor = ray.remote(num_cpus=0)(_Gate).options(name="gate", namespace=NAMESPACE).remote()
    yield actor
    ray.kill(actor)


@pytest.fixture
def closed(_gate: Any) -> Any:
    """The gate, closed."""
    ray.get(_gate.close.remote())
    return _gate


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, which must come soon."""
    return asyncio.run(asyncio.wait_for(coroutine, TIMEOUT_S))


def noted(error: BaseException) -> str:
    """An error's message with its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, or fail."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- By hand: a response, on each of Ray Serve's transports ---------------------------------------


class Echo:
    """Gives back what it gets, now or later."""

    async def __call__(self, value: Any) -> Any:
        return value

    async def gated(self, value: Any) -> Any:
        await gate().wait.remote()
        return value

    async def fail(self, value: Any) -> Any:
        raise Refused(value)

    async def die(self) -> None:
        os._exit(1)

    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def first(self, refs: list[Any]) -> Any:
        return ["first", await refs[0]]

    async def nested(self, structure: Any) -> Any:
        return await rc.resolve(structure)

    async def eager(self, refs: list[Any]) -> Any:
        await gate().open.remote()
        return ["eager", await refs[0]]


ECHO = serve.deployment(Echo, **here)


class Ingress:
    """What users write by hand, inside a replica."""

    def __init__(self, echo: DeploymentHandle[Any], mortal: DeploymentHandle[Any]) -> None:
        self.echo: Any = echo
        self.mortal = mortal

    def handle(self, mode: str) -> Any:
        return self.echo.options(_by_reference=False) if mode == "grpc" else self.echo

    async def eagerly(self, mode: str) -> Any:
        echo = self.handle(mode)
        response = echo.gated.remote("x")
        return await echo.eager.remote(await rc.by_ref([response]))

    def eagerly_now(self, mode: str) -> Any:
        echo = self.handle(mode)
        response = echo.gated.remote("x")
        return rc.resolve_sync(echo.eager.remote(rc.by_ref_sync([response])))

    async def caught(self, mode: str) -> Any:
        refs = await rc.by_ref([self.handle(mode).fail.remote("x")])
        try:
            await rc.resolve(refs)
        except Refused as error:
            return [type(error).__name__, *error.args]

    async def to_task(self, mode: str) -> Any:
        return await upper.remote(await rc.to_object_ref(self.handle(mode).remote("x")))

    def to_task_now(self, mode: str) -> Any:
        return ray.get(upper.remote(rc.to_object_ref_sync(self.handle(mode).remote("x"))))

    async def streamed(self, mode: str) -> Any:
        response = self.handle(mode).options(stream=True).count.remote(3)
        return [await ref async for ref in await rc.to_object_ref_gen(response)]

    def streamed_now(self, mode: str) -> Any:
        response = self.handle(mode).options(stream=True).count.remote(3)
        return [rc.resolve_sync(ref) for ref in rc.to_object_ref_gen_sync(response)]


@ray.remote(num_cpus=0)
def upper(text: str) -> str:
    return text.upper()


MODES = ("default", "grpc", "local")


class Handles(NamedTuple):
    mode: str
    echo: Any
    ingress: Any


@pytest.fixture(scope="module")
def by_hand(deploy: Deploy, _gate: Any) -> dict[str, Handles]:
    """The same two deployments on Ray's default transport, on gRPC, and in local testing mode."""
    app = serve.deployment(Ingress, **here).bind(ECHO.bind(), ECHO.options(name="Mortal").bind())
    there = deploy(app).handle
    echo: Any = serve.get_deployment_handle("Echo", app_name=there.app_name)
    local = serve.run(app, name="here", _local_testing_mode=True)
    echo_here = serve.run(ECHO.bind(), name="echo here", _local_testing_mode=True)
    return {
        "default": Handles("default", echo, there),
        "grpc": Handles("grpc", echo.options(_by_reference=False), there),
        "local": Handles("local", echo_here, local),
    }


@pytest.fixture(params=MODES)
def handles(request: pytest.FixtureRequest, by_hand: dict[str, Handles]) -> Handles:
    """Handles in one of the modes."""
    return by_hand[request.param]


def test_the_modes_are_what_they_say(by_hand: dict[str, Handles]) -> None:
    """Ray's own conversion works by default, and raises on gRPC and in local testing mode."""

    async def converted(mode: str) -> Any:
        response = by_hand[mode].echo.remote("x")
        try:
            return await response._to_object_ref()
        finally:
            await response

    assert isinstance(run(converted("default")), ObjectRef)
    for mode in ("grpc", "local"):
        with pytest.raises(RuntimeError):
            run(converted(mode))


def test_by_ref_does_not_wait_for_the_results(handles: Handles, closed: Any) -> None:
    """``by_ref`` returns while the call still runs, which here goes on only afterwards."""

    async def flow() -> Any:
        response = handles.echo.gated.remote("x")
        refs = await rc.by_ref([response])
        assert isinstance(refs[0], ObjectRef)
        await closed.open.remote()
        return await refs[0], await rc.resolve(refs)

    assert run(flow()) == ("x", ["x"])


def test_by_ref_sync_does_not_wait_for_the_results(handles: Handles, closed: Any) -> None:
    """``by_ref_sync`` does as ``by_ref`` for code without an event loop."""
    refs = rc.by_ref_sync({"x": handles.echo.gated.remote("x")})
    ray.get(closed.open.remote())
    assert rc.resolve_sync(refs) == {"x": "x"}
    assert ray.get(refs["x"], timeout=TIMEOUT_S) == "x"


def test_by_ref_keeps_the_structure(handles: Handles) -> None:
    """Every response in nested containers becomes a reference, and resolving gives the values."""
    call = handles.echo.remote
    shared = call("s")
    responses = [call(0), (call(1), Pair(call(2), "b")), {"c": {call(3)}}, Record(call(4)), shared]
    other = object()

    async def flow() -> Any:
        refs = await rc.by_ref([*responses, shared, other, "text"])
        values = await rc.resolve(refs)
        return refs, values

    refs, values = run(flow())
    assert values == [0, (1, Pair(2, "b")), {"c": {3}}, Record(4), "s", "s", other, "text"]
    assert values[6] is other
    assert type(refs[1][1]) is Pair
    assert isinstance(refs[3].value, ObjectRef)
    assert refs[4] is refs[5]
    assert isinstance(responses[0], DeploymentResponse)


def test_resolve_takes_responses_and_references_together(handles: Handles) -> None:
    """``resolve`` fetches responses, ObjectRefs, ``rc.Ref``s and their wrappers alike."""

    async def flow() -> Any:
        response = handles.echo.remote("a")
        ref = await rc.to_object_ref(handles.echo.remote("b"))
        put = ray.put("e")
        return await rc.resolve([response, ref, rc.Ref.to("c"), rc.Ref(put), "d",
                                 {"f": rc.from_object_ref(put)}])  # fmt: skip

    assert run(flow()) == ["a", "b", "c", "e", "d", {"f": "e"}]


def test_a_bare_response_is_a_structure(handles: Handles) -> None:
    """``by_ref`` and ``resolve`` take a response that is in no container, too."""

    async def flow() -> Any:
        ref = await rc.by_ref(handles.echo.remote("x"))
        return isinstance(ref, ObjectRef), await rc.resolve(ref)

    assert run(flow()) == (True, "x")


def test_one_response_has_one_reference(handles: Handles) -> None:
    """Converted twice, a response gives the same reference, whichever function converts."""

    async def flow() -> Any:
        response = handles.echo.remote("x")
        refs = [(await rc.by_ref([response]))[0], await rc.by_ref(response)]
        refs.append(await rc.to_object_ref(response))
        return refs, await asyncio.gather(*refs), await response

    refs, values, value = run(flow())
    assert refs[0] == refs[1] == refs[2]
    assert [*values, value] == ["x"] * 4


def test_a_reference_outlives_the_loop_that_made_it(handles: Handles, closed: Any) -> None:
    """A reference made in one ``asyncio.run`` has its value after it."""

    async def flow() -> Any:
        return await rc.by_ref([handles.echo.gated.remote("x")])

    refs = run(flow())
    ray.get(closed.open.remote())
    assert ray.get(refs[0], timeout=TIMEOUT_S) == "x"


def test_a_reference_goes_on_inside_a_container(handles: Handles) -> None:
    """What Ray Serve removed: a response inside a list goes to another call, as a reference."""

    async def flow() -> Any:
        refs = await rc.by_ref([handles.echo.remote("x")])
        return await handles.echo.first.remote(refs)

    assert run(flow()) == ["first", "x"]


def test_references_deep_in_an_argument_are_resolved_by_the_callee(handles: Handles) -> None:
    """A nested structure of references is resolved where it arrives."""

    async def flow() -> Any:
        call = handles.echo.remote
        structure = await rc.by_ref({"a": [call(1), (call(2),)], "b": Pair(call(3), "b")})
        return await handles.echo.nested.remote(structure)

    assert run(flow()) == {"a": [1, (2,)], "b": Pair(3, "b")}


@pytest.mark.parametrize("method", ["eagerly", "eagerly_now"])
def test_the_callee_starts_before_the_response_is_there(
    handles: Handles, closed: Any, method: str
) -> None:
    """In a replica, the callee of ``by_ref`` starts first: its start lets the upstream finish."""
    response = getattr(handles.ingress, method).remote(handles.mode)
    assert response.result(timeout_s=TIMEOUT_S) == ["eager", "x"]


def test_a_failed_call_raises_the_users_own_error(handles: Handles) -> None:
    """Awaiting the reference of a failed call raises what the callee raised."""

    async def flow(fetch: Any) -> None:
        refs = await rc.by_ref([handles.echo.fail.remote("why")])
        with pytest.raises(Refused, match="why"):
            await fetch(refs)

    run(flow(rc.resolve))
    response = handles.ingress.caught.remote(handles.mode)
    assert response.result(timeout_s=TIMEOUT_S) == ["Refused", "x"]
    with pytest.raises(Refused, match="why"):
        rc.resolve_sync(rc.by_ref_sync([handles.echo.fail.remote("why")]))


def test_to_object_ref_feeds_a_task(handles: Handles) -> None:
    """A response becomes an ObjectRef that a Ray task takes, from a driver and in a replica."""

    async def flow() -> Any:
        ref = await rc.to_object_ref(handles.echo.remote("x"))
        assert isinstance(ref, ObjectRef)
        return await upper.remote(ref)

    assert run(flow()) == "X"
    now = rc.to_object_ref_sync(handles.echo.remote("x"))
    assert ray.get(upper.remote(now), timeout=TIMEOUT_S) == "X"
    for method in (handles.ingress.to_task, handles.ingress.to_task_now):
        assert method.remote(handles.mode).result(timeout_s=TIMEOUT_S) == "X"


def test_to_object_ref_takes_what_is_a_reference_already(handles: Handles) -> None:
    """An ObjectRef, an ``rc.Ref`` of one and what ``from_object_ref`` gives are that reference."""
    ref = ray.put("x")

    async def flow() -> Any:
        given = [ref, rc.Ref(ref), rc.from_object_ref(ref)]
        return [await rc.to_object_ref(one) for one in given]

    assert run(flow()) == [ref, ref, ref]


def test_to_object_ref_gen_gives_a_reference_for_each_item(handles: Handles) -> None:
    """A streaming response becomes an iterator of references, for both kinds of loop."""

    def response() -> Any:
        return handles.echo.options(stream=True).count.remote(3)

    async def flow() -> Any:
        refs = [ref async for ref in await rc.to_object_ref_gen(response())]
        assert all(isinstance(ref, ObjectRef) for ref in refs)
        return await rc.resolve(refs)

    assert run(flow()) == [0, 1, 2]
    refs = list(rc.to_object_ref_gen_sync(response()))
    assert ray.get(refs, timeout=TIMEOUT_S) == [0, 1, 2]
    for method in (handles.ingress.streamed, handles.ingress.streamed_now):
        assert method.remote(handles.mode).result(timeout_s=TIMEOUT_S) == [0, 1, 2]


# --- By hand: from an ObjectRef -------------------------------------------------------------------


@ray.remote(num_cpus=0)
def gated(value: Any) -> Any:
    ray.get(gate().wait.remote())
    return value


@ray.remote(num_cpus=0)
def failing(value: Any) -> Any:
    raise Refused(value)


def test_from_object_ref_is_used_as_a_response_is(cluster: None) -> None:
    """It is awaited, as often as one likes, or blocked for with ``.result()``."""
    response: Any = rc.from_object_ref(upper.remote("x"))

    async def flow() -> Any:
        return await response, await response

    assert run(flow()) == ("X", "X")
    assert response.result() == "X"
    assert response.result(timeout_s=TIMEOUT_S) == "X"


def test_from_object_ref_stops_waiting_in_time(closed: Any) -> None:
    """``result(timeout_s=)`` raises a TimeoutError where the result is not there in time."""
    response: Any = rc.from_object_ref(gated.remote("x"))
    with pytest.raises(TimeoutError):
        response.result(timeout_s=0.1)
    ray.get(closed.open.remote())
    assert response.result(timeout_s=TIMEOUT_S) == "x"


def test_from_object_ref_raises_the_users_own_error(cluster: None) -> None:
    """A failed task raises what it raised, awaited or blocked for."""
    response: Any = rc.from_object_ref(failing.remote("why"))

    async def flow() -> Any:
        await response

    with pytest.raises(Refused, match="why"):
        run(flow())
    with pytest.raises(Refused, match="why"):
        response.result(timeout_s=TIMEOUT_S)


def test_from_object_ref_cancels_the_task(closed: Any) -> None:
    """``cancel()`` stops the task, and who waits for it learns that it was cancelled."""
    response: Any = rc.from_object_ref(gated.remote("x"))
    response.cancel()
    with pytest.raises(TaskCancelledError):
        response.result(timeout_s=TIMEOUT_S)


# --- Bad input ------------------------------------------------------------------------------------


def refused(call: Callable[[Any], Any], value: Any, kind: type[Exception] = TypeError) -> str:
    """The message with which an ``async`` function refuses a value."""

    async def flow() -> str:
        with pytest.raises(kind) as caught:
            await call(value)
        return noted(caught.value)

    message: str = run(flow())
    return message


@pytest.mark.parametrize("call", [rc.by_ref, rc.resolve], ids=["by_ref", "resolve"])
@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: [r], lambda r: {"a": (r,)}])
def test_a_streaming_response_has_no_one_reference(handles: Handles, call: Any, wrap: Any) -> None:
    """A streaming response is refused, at any depth: iterate it, or convert it as a stream."""

    async def flow() -> str:
        response = handles.echo.options(stream=True).count.remote(3)
        with pytest.raises(TypeError) as caught:
            await call(wrap(response))
        assert [item async for item in response] == [0, 1, 2]
        return str(caught.value)

    message = run(flow())
    assert f"rc.{call.__name__}" in message
    assert "DeploymentResponseGenerator" in message
    assert "iterated" in message
    assert "rc.to_object_ref_gen" in message


@pytest.mark.parametrize("value", [5, "text", None, object()], ids=lambda v: type(v).__name__)
def test_an_awaited_value_has_no_reference(cluster: None, value: Any) -> None:
    """``by_ref`` of what is no response says to give the response before it is awaited."""
    message = refused(rc.by_ref, value)
    assert f"rc.by_ref got {type(value).__name__}" in message
    assert "before it is awaited" in message


def test_resolve_of_what_is_no_reference_says_what_it_takes(cluster: None) -> None:
    """``resolve`` of a plain value names its type and what to give instead."""
    message = refused(rc.resolve, 5)
    assert "rc.resolve got int" in message
    assert "response" in message


def test_a_coroutine_is_not_a_response(cluster: None) -> None:
    """``by_ref`` of a coroutine names the type that it got."""

    async def coroutine() -> None:
        return None

    never = coroutine()
    assert "rc.by_ref got coroutine" in refused(rc.by_ref, never)
    never.close()


@pytest.mark.parametrize("value", [5, ["a list"]], ids=lambda value: type(value).__name__)
def test_to_object_ref_takes_a_response(cluster: None, value: Any) -> None:
    """Anything else is refused, saying what to give."""
    message = refused(rc.to_object_ref, value)
    assert f"rc.to_object_ref got {type(value).__name__}" in message
    assert "the response itself" in message


def test_to_object_ref_of_a_stream_says_how_to_convert_it(handles: Handles) -> None:
    """A streaming response given to ``to_object_ref`` is for ``to_object_ref_gen``."""

    async def flow() -> str:
        response = handles.echo.options(stream=True).count.remote(1)
        with pytest.raises(TypeError) as caught:
            await rc.to_object_ref(response)
        assert [item async for item in response] == [0]
        return str(caught.value)

    assert "rc.to_object_ref_gen" in run(flow())


def test_to_object_ref_gen_takes_a_streaming_response(handles: Handles) -> None:
    """A unary response is refused: make the call with stream=True, or use ``to_object_ref``."""

    async def flow() -> str:
        response = handles.echo.remote("x")
        with pytest.raises(TypeError) as caught:
            await rc.to_object_ref_gen(response)
        await response
        return str(caught.value)

    message = run(flow())
    assert "DeploymentResponse" in message
    assert "stream=True" in message
    assert "rc.to_object_ref" in message


def test_from_object_ref_takes_an_object_ref(by_hand: dict[str, Handles]) -> None:
    """Anything else is refused, naming what it got and what to do; a response needs no wrapper."""
    with pytest.raises(TypeError, match="got int") as caught:
        rc.from_object_ref(5)
    assert "ray.ObjectRef" in str(caught.value)
    response = by_hand["default"].echo.remote("x")
    with pytest.raises(TypeError, match="got DeploymentResponse") as caught:
        rc.from_object_ref(response)
    response.result(timeout_s=TIMEOUT_S)
    assert "rc.to_object_ref" in str(caught.value)


@pytest.mark.parametrize("name", ["by_ref", "resolve", "to_object_ref", "to_object_ref_gen"])
def test_sync_twins_are_refused_on_an_event_loop(handles: Handles, name: str) -> None:
    """The blocking twins say to await the other form, where they would block the loop."""

    async def flow() -> str:
        stream = name == "to_object_ref_gen"
        response = handles.echo.options(stream=stream, method_name="count").remote(1) if stream \
            else handles.echo.remote("x")  # fmt: skip
        with pytest.raises(rc.RayComposeError) as caught:
            getattr(rc, f"{name}_sync")(response)
        if stream:
            assert [item async for item in response] == [0]
        else:
            assert await response == "x"
        return str(caught.value)

    message = run(flow())
    assert f"rc.{name}_sync()" in message
    assert f"await rc.{name}(...)" in message


def test_ref_get_is_refused_on_an_event_loop(cluster: None) -> None:
    """``Ref.get()`` and ``.result()`` on an event loop say to await instead."""

    async def flow() -> list[str]:
        messages = []
        ref = ray.put("x")
        refs: list[Any] = [rc.Ref(ref), rc.Ref.to("x")]
        for blocking in (*(one.get for one in refs), rc.from_object_ref(ref).result):
            with pytest.raises(rc.RayComposeError) as caught:
                blocking()
            messages.append(str(caught.value))
        return messages

    for message in run(flow()):
        assert "event loop" in message
        assert "await" in message


def test_ref_get_stops_waiting_in_time(closed: Any) -> None:
    """``Ref.get(timeout_s=)`` raises a plain TimeoutError that gives the limit."""
    task = gated.remote("x")
    with pytest.raises(TimeoutError, match=r"timeout_s=0\.05") as caught:
        rc.Ref(task).get(timeout_s=0.05)
    assert not isinstance(caught.value, GetTimeoutError)
    ray.get(closed.open.remote())
    assert rc.Ref(task).get(timeout_s=TIMEOUT_S) == "x"


def test_a_reference_without_an_object_ref_says_so() -> None:
    """The result of a stage in this process has no ObjectRef: await the reference."""
    with pytest.raises(rc.RayComposeError, match="'await' the reference"):
        _ = rc.Ref.to(5).object_ref


class Owner:
    """Owns an object, and goes."""

    async def own(self) -> list[Any]:
        return [ray.put(bytes(LARGE))]


def is_lost(ref: Any) -> bool:
    """Whether Ray has noticed that an object is gone."""
    try:
        ray.get(ref, timeout=TIMEOUT_S)
    except ObjectLostError:
        return True
    return False


def test_a_lost_result_says_to_run_the_stage_again(cluster: None) -> None:
    """``resolve`` of an object whose owner is gone raises ObjectLostError, with advice."""
    owner = ray.remote(num_cpus=0)(Owner).remote()
    (ref,) = ray.get(owner.own.remote())
    ray.kill(owner)
    until(lambda: is_lost(ref))
    message = refused(rc.resolve, [ref], ObjectLostError)
    assert "run the stage again" in message
    assert "run the stage again" in refused(lambda ref: rc.Ref(ref), ref, ObjectLostError)
    with pytest.raises(ObjectLostError) as caught:
        rc.from_object_ref(ref).result(timeout_s=TIMEOUT_S)
    assert "run the stage again" in noted(caught.value)


def test_a_cancelled_task_says_that_it_was_cancelled(closed: Any) -> None:
    """``resolve`` of a cancelled task raises TaskCancelledError and says why there is no result."""
    task = gated.remote("x")
    ray.cancel(task)
    message = refused(rc.resolve, {"x": task}, TaskCancelledError)
    assert "was cancelled, so it has no result" in message


@pytest.mark.parametrize("mode", ["default", "grpc"])
@pytest.mark.parametrize("convert", [False, True], ids=["response", "reference"])
def test_a_cancelled_call_says_that_it_was_cancelled(
    by_hand: dict[str, Handles], closed: Any, mode: str, convert: bool
) -> None:
    """``resolve`` of a cancelled response, or of its reference, raises and says why."""

    async def flow() -> str:
        response = by_hand[mode].echo.gated.remote("x")
        found = await rc.by_ref([response]) if convert else [response]
        response.cancel()
        with pytest.raises(TaskCancelledError) as caught:
            await rc.resolve(found)
        return noted(caught.value)

    assert "was cancelled, so it has no result" in run(flow())


@pytest.mark.parametrize("mode", ["default", "grpc"])
def test_a_replica_that_dies_is_an_error(by_hand: dict[str, Handles], mode: str) -> None:
    """The reference to a call whose replica dies raises, rather than wait for ever."""
    mortal = serve.get_deployment_handle("Mortal", app_name=by_hand[mode].ingress.app_name)
    mortal = mortal.options(method_name="die", _by_reference=mode == "default")

    async def flow() -> None:
        refs = await rc.by_ref([mortal.remote()])
        with pytest.raises(RayError):
            await rc.resolve(refs)

    run(flow())


# --- By reference in pipelines --------------------------------------------------------------------


def slow(request: Any) -> Any:
    ray.get(gate().wait.remote())
    if request["fail"]:
        raise Refused("upstream")
    return "value"


async def slow_async(request: Any) -> Any:
    await gate().wait.remote()
    if request["fail"]:
        raise Refused("upstream")
    return "value"


class Slow:
    """Finishes only once somebody else has started."""

    async def __call__(self, request: Any) -> Any:
        return await slow_async(request)

    def now(self, request: Any) -> Any:
        return slow(request)


async def eager(ref: rc.Ref[Any]) -> Any:
    await gate().open.remote()
    return f"got {await ref}"


def eager_now(ref: rc.Ref[Any]) -> Any:
    ray.get(gate().open.remote())
    return f"got {ref.get(timeout_s=TIMEOUT_S)}"


async def eager_listed(refs: list[ObjectRef[Any]]) -> Any:
    await gate().open.remote()
    (ref,) = refs
    return f"got {await ref}"


async def eager_plain(ref: Any) -> Any:
    return await eager(ref)


async def catching(ref: rc.Ref[Any]) -> Any:
    await gate().open.remote()
    try:
        return await ref
    except Refused as error:
        return ["caught", rc.failed_stage(error), await again(ref)]


async def again(ref: rc.Ref[Any]) -> Any:
    """What awaiting the reference a second time raises."""
    try:
        return await ref
    except Refused as error:
        return str(error)


class Eager:
    """Lets its upstream finish, and then waits for it."""

    async def __call__(self, ref: rc.Ref[Any]) -> Any:
        return await eager(ref)

    def now(self, ref: rc.Ref[Any]) -> Any:
        return eager_now(ref)

    async def listed(self, refs: list[ObjectRef[Any]]) -> Any:
        return await eager_listed(refs)

    async def plain(self, ref: Any) -> Any:
        return await eager(ref)

    async def catching(self, ref: rc.Ref[Any]) -> Any:
        return await catching(ref)


class Both:
    """A Ray actor with methods of both kinds."""

    async def slow(self, request: Any) -> Any:
        return await slow_async(request)

    async def eager(self, ref: Any) -> Any:
        return await eager(ref)


UPSTREAMS = ("deployment", "def method", "def", "async def", "task", "actor",
             "pipeline", "branch", "limited")  # fmt: skip
DOWNSTREAMS = ("deployment", "def method", "listed", "pass_by", "def", "async def",
               "inline listed", "inline pass_by", "task", "actor", "named pipeline")  # fmt: skip
PATHS = [*((up, "deployment") for up in UPSTREAMS), *(("deployment", down) for down in DOWNSTREAMS),
         *((up, "async def") for up in UPSTREAMS if up != "deployment"),
         ("task", "task"), ("actor", "task"), ("task", "actor")]  # fmt: skip


@pytest.fixture(scope="module")
def both(_gate: Any) -> Iterator[Any]:
    """The Ray actor, looked up by its name as a user would."""
    actor = ray.remote(num_cpus=0, max_concurrency=100)(Both)
    actor.options(name="both", namespace=NAMESPACE, lifetime="detached").remote()
    found = ray.get_actor("both", namespace=NAMESPACE)
    yield found
    ray.kill(found)


def pipelines(both: Any) -> dict[str, Any]:
    """Every kind of upstream and of downstream, as ``"up > down"``."""
    slow_app = serve.deployment(Slow, **here).bind()
    eager_app = serve.deployment(Eager, **here).bind()
    slow_task, eager_task = ray.remote(num_cpus=0)(slow), ray.remote(num_cpus=0)(eager_now)

    def upstream(kind: str, name: str) -> Any:
        def first(target: Any, **options: Any) -> Any:
            return rc.stage(target, name=name, **options)

        makers: dict[str, Callable[[], Any]] = {
            "deployment": lambda: first(slow_app),
            "def method": lambda: first(slow_app, method="now"),
            "def": lambda: first(slow),
            "async def": lambda: first(slow_async),
            "task": lambda: first(slow_task),
            "actor": lambda: first(both.slow),
            "pipeline": lambda: rc.pipeline(lambda x: x, first(slow_app)),
            "branch": lambda: rc.when(lambda r: True, first(slow_app)),
            "limited": lambda: first(slow_app, timeout_s=TIMEOUT_S),
        }
        return makers[kind]()

    makers: dict[str, Callable[[], Any]] = {
        "deployment": lambda: eager_app,
        "def method": lambda: rc.stage(eager_app, method="now"),
        "listed": lambda: rc.stage(eager_app, method="listed"),
        "pass_by": lambda: rc.stage(eager_app, method="plain", pass_by="reference"),
        "catching": lambda: rc.stage(eager_app, method="catching"),
        "def": lambda: eager_now,
        "async def": lambda: eager,
        "inline listed": lambda: eager_listed,
        "inline pass_by": lambda: rc.stage(eager_plain, pass_by="reference"),
        "inline catching": lambda: catching,
        "task": lambda: eager_task,
        "actor": lambda: rc.stage(both.eager, pass_by="reference"),
        "named pipeline": lambda: rc.stage(rc.pipeline(eager_app, lambda x: x), name="part"),
    }
    paths = [*PATHS, ("deployment", "catching"), ("task", "inline catching")]
    return {
        f"{up} > {down}": rc.pipeline(upstream(up, f"first of {up} > {down}"), makers[down]())
        for up, down in paths
    }


@pytest.fixture(scope="module")
def engines(deploy: Deploy, both: Any) -> dict[str, rc.Client]:
    """One application with all of them, in replicas of their own, fused, and here."""
    app = rc.switch("path", pipelines(both))
    return {"deployed": deploy(app), "fused": deploy(app.fuse()), "local": rc.local(app)}


ENGINES = pytest.mark.parametrize("engine", ["deployed", "fused", "local"])
EVERY_PATH = pytest.mark.parametrize(
    "path", dict.fromkeys(f"{up} > {down}" for up, down in PATHS), ids=lambda p: p.replace(" ", "")
)


@ENGINES
@EVERY_PATH
def test_a_stage_starts_before_its_upstream_has_finished(
    engines: dict[str, rc.Client], closed: Any, engine: str, path: str
) -> None:
    """The downstream starts first: its start is what lets the upstream finish."""
    request = {"path": path, "fail": False}
    assert engines[engine].call(request, timeout_s=TIMEOUT_S) == "got value"


@ENGINES
@EVERY_PATH
def test_a_failed_upstream_raises_its_own_error(
    engines: dict[str, rc.Client], closed: Any, engine: str, path: str
) -> None:
    """What the upstream raised reaches the caller as it is, and names the upstream stage."""
    with pytest.raises(Refused, match="upstream") as caught:
        engines[engine].call({"path": path, "fail": True}, timeout_s=TIMEOUT_S)
    assert rc.failed_stage(caught.value) == f"first of {path}"
    assert noted(caught.value).count("raised in stage") == 1


@ENGINES
@pytest.mark.parametrize("path", ["deployment > catching", "task > inline catching"])
def test_a_failed_upstream_raises_at_the_await(
    engines: dict[str, rc.Client], closed: Any, engine: str, path: str
) -> None:
    """The stage itself can catch the upstream's own error where it awaits the reference."""
    result = engines[engine].call({"path": path, "fail": True}, timeout_s=TIMEOUT_S)
    assert result == ["caught", f"first of {path}", "upstream"]


# --- Tasks and actors as stages -------------------------------------------------------------------


def make(size: int) -> Traced:
    return Traced(size)


def measure(traced: Traced) -> dict[str, Any]:
    return {"unpickled_in": traced.unpickled_in, "pid": os.getpid(), "size": len(traced.data)}


def count(n: int) -> Iterator[int]:
    for i in range(n):  # noqa: UP028  # Ray sends values into it, which range(n) cannot take
        yield i


def count_gated(n: int) -> Iterator[int]:
    for i in range(n):
        if i == 1:
            ray.get(gate().wait.remote())
        yield i


class Tracer:
    """The same as deployment and as Ray actor."""

    def make(self, size: int) -> Traced:
        return make(size)

    def measure(self, traced: Traced) -> dict[str, Any]:
        return measure(traced)

    def forward(self, traced: Traced) -> Traced:
        return traced

    def count(self, n: int) -> Iterator[int]:
        yield from count(n)

    async def total(self, items: rc.Stream[int]) -> int:
        return sum([item async for item in items])

    async def each(self, item: int) -> int:
        return item * 10

    async def whole(self, items: rc.Stream[int]) -> AsyncIterator[int]:
        async for item in items:
            yield item * 100

    def fail(self, value: Any) -> Any:
        raise Refused(value)


BETWEEN = (("task", "deployment"), ("deployment", "task"), ("task", "task"),
           ("actor", "deployment"), ("deployment", "actor"), ("actor", "task"))  # fmt: skip


@pytest.fixture(scope="module")
def tracer(cluster: None) -> Iterator[Any]:
    """A Ray actor with no name."""
    actor = ray.remote(num_cpus=0)(Tracer).remote()
    yield actor
    ray.kill(actor)


@pytest.fixture(scope="module")
def mixed(deploy: Deploy, _gate: Any, tracer: Any) -> rc.Client:
    """One application for tasks and actors as stages, before and behind deployments."""
    app = serve.deployment(Tracer, **here).bind()
    task = ray.remote(num_cpus=0)

    def of(kind: str, method: str, function: Any) -> Any:
        if kind == "deployment":
            return rc.stage(app, method=method)
        return task(function) if kind == "task" else getattr(tracer, method)

    def method(name: str) -> Any:
        return rc.stage(app, method=name)

    between = {
        f"{a} > {b}": rc.pipeline(of(a, "make", make), of(b, "measure", measure))
        for a, b in BETWEEN
    }
    chains = {
        "chain": rc.pipeline(task(make), method("forward"), tracer.forward, task(measure)),
        "fail task": rc.pipeline(lambda x: x, task(failing._function), lambda x: x),
        "fail actor": rc.pipeline(lambda x: x, tracer.fail, lambda x: x),
    }
    streams = {
        "count": task(count),
        "deployment > count": rc.pipeline(lambda n: n + 1, task(count), method("each")),
        "count > whole": rc.pipeline(task(count), method("whole")),
        "gated": rc.pipeline(task(count_gated), method("each")),
        "actor count": rc.stage(tracer.count, stream=True),
        "collected": rc.pipeline(task(count), rc.collect),
        "total": rc.pipeline(task(count), method("total")),
    }

    def given(target: Any) -> Any:
        return rc.pipeline(lambda asked: asked["input"], target)

    return deploy(
        rc.switch("do", {k: given(v) for k, v in {**between, **chains, **streams}.items()})
    )


@pytest.mark.parametrize("size", [10, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("between", [f"{a} > {b}" for a, b in BETWEEN])
def test_values_pass_the_pipelines_replica_by(mixed: rc.Client, between: str, size: int) -> None:
    """A value from or for a task or actor is unpickled where it is used, and nowhere else."""
    seen = mixed.call({"do": between, "input": size}, timeout_s=TIMEOUT_S)
    assert seen["size"] == size
    assert seen["unpickled_in"] == (seen["pid"],)


def test_values_pass_the_pipelines_replica_by_in_a_chain(mixed: rc.Client) -> None:
    """Through task, deployment, actor and task a value is unpickled once in each that takes it."""
    seen = mixed.call({"do": "chain", "input": LARGE}, timeout_s=TIMEOUT_S)
    assert seen["size"] == LARGE
    assert len(seen["unpickled_in"]) == 3
    assert seen["unpickled_in"][-1] == seen["pid"]


@pytest.mark.parametrize(("do", "stage"), [("fail task", "failing"), ("fail actor", "fail")])
def test_a_failed_task_or_actor_call_names_its_stage(mixed: rc.Client, do: str, stage: str) -> None:
    """A stage that is a task or an actor's method raises the user's own error, naming itself."""
    with pytest.raises(Refused, match="why") as caught:
        mixed.call({"do": do, "input": "why"}, timeout_s=TIMEOUT_S)
    assert rc.failed_stage(caught.value) == stage


@pytest.mark.parametrize(
    ("do", "items"),
    [
        ("count", [0, 1, 2]),
        ("deployment > count", [0, 10, 20, 30]),
        ("count > whole", [0, 100, 200]),
        ("actor count", [0, 1, 2]),
    ],
)
def test_generators_of_tasks_stream(mixed: rc.Client, do: str, items: list[int]) -> None:
    """A task or actor method that is a generator is a stream, before and behind deployments."""
    assert list(mixed.stream({"do": do, "input": 3})) == items


@pytest.mark.parametrize(("do", "result"), [("collected", [0, 1, 2]), ("total", 3)])
def test_a_stream_of_a_task_can_be_taken_whole(mixed: rc.Client, do: str, result: Any) -> None:
    """``rc.collect`` and stages that take a stream take that of a task, too."""
    assert mixed.call({"do": do, "input": 3}, timeout_s=TIMEOUT_S) == result


def test_items_of_a_task_come_as_they_are_made(mixed: rc.Client, closed: Any) -> None:
    """The first item arrives before the task ends, which goes on only afterwards."""
    items = mixed.stream({"do": "gated", "input": 3})
    assert next(items) == 0
    ray.get(closed.open.remote())
    assert list(items) == [10, 20]


def test_a_generator_method_of_an_actor_is_a_stream(tracer: Any) -> None:
    """An actor's generator method streams without being told to, as every generator does."""
    app = rc.pipeline(lambda n: n, tracer.count)
    assert app.root.streams
    assert list(rc.local(app).stream(3)) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["task", "actor"])
def test_a_stage_may_be_a_task_with_options(tracer: Any, kind: str) -> None:
    """``task.options(...)`` and ``actor.method.options(...)`` are stages as they are."""
    task = ray.remote(make)
    target: Any = task.options(num_cpus=0) if kind == "task" else tracer.make.options(name="made")
    app = rc.pipeline(target, measure)
    assert rc.local(app).call(10, timeout_s=TIMEOUT_S)["size"] == 10


def test_options_of_a_task_are_kept(deploy: Deploy) -> None:
    """What ``.options(...)`` asks for is what the task gets."""

    @ray.remote
    def asked(_: Any) -> Any:
        return ray.get_runtime_context().get_assigned_resources()

    app: Any = rc.pipeline(asked.options(num_cpus=0, resources={"left": 1}))
    assert deploy(app).call(0, timeout_s=TIMEOUT_S) == {"left": 1}


# --- Large values ---------------------------------------------------------------------------------

ARRAY = 20_000_000  # bytes


def written_bytes() -> int:
    """Return how many bytes were ever written to the object store."""
    from ray._private.internal_api import node_stats  # noqa: TID251  # nothing public sees the store

    (node,) = ray.nodes()
    stats: Any = node_stats(
        node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
    )
    return int(stats.store_stats.cumulative_created_bytes)


class Arrays:
    def make(self, size: int) -> Any:
        return np.zeros(size, np.uint8)

    async def forward(self, ref: rc.Ref[Any]) -> Any:
        return await ref

    async def forward_listed(self, refs: list[ObjectRef[Any]]) -> Any:
        return await refs[0]

    async def look(self, ref: rc.Ref[Any]) -> tuple[int, bool, bool]:
        array = await ref
        return len(array), array.flags.writeable, array.flags.owndata


@pytest.mark.parametrize("forward", ["forward", "forward_listed"])
def test_a_large_array_is_written_once_for_each_stage_that_gives_it(
    deploy: Deploy, forward: str
) -> None:
    """Three stages by reference write it twice, as the best by hand do; the last sees a view."""
    arrays = serve.deployment(Arrays, **here).bind()
    methods = ("make", forward, "look")
    client = deploy(rc.pipeline(*(rc.stage(arrays, method=method) for method in methods)))
    before = written_bytes()
    length, writeable, owns = client.call(ARRAY, timeout_s=TIMEOUT_S)
    assert (length, writeable, owns) == (ARRAY, False, False)
    assert 2 * ARRAY <= written_bytes() - before < 2.5 * ARRAY


# --- Other clusters -------------------------------------------------------------------------------


def script(name: str, **environment: str) -> dict[str, Any]:
    """Run a script in a process of its own and return what it found, by case."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]  # others are Ray's
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def test_everything_works_where_grpc_is_the_default() -> None:
    """With RAY_SERVE_USE_GRPC_BY_DEFAULT=1 for the whole cluster everything gives the same."""
    found = script("references_by_grpc.py", RAY_SERVE_USE_GRPC_BY_DEFAULT="1")
    assert found == {
        "Ray's own conversion": "RuntimeError",
        "by_ref": ["ObjectRef", "x"],
        "by_ref_sync": ["x"],
        "structure": {"a": [1, [2]], "b": 3},
        "to_object_ref": "X",
        "to_object_ref_sync": "X",
        "to_object_ref_gen": [0, 1, 2],
        "to_object_ref_gen_sync": [0, 1, 2],
        "inside a replica": "got value",
        "pipeline": "got value",
        "pipeline, listed": "got value",
        "pipeline, task first": "got value",
        "failed upstream": ["Refused", "Slow"],
        "task between": "VALUE!",
        "stream": [0, 1, 2],
    }


def test_references_work_without_ray() -> None:
    """In local testing mode, without Ray, references are ``rc.Ref``s that are awaited the same."""
    found = script("references_without_ray.py")
    assert found == {
        "by_ref": ["Ref", "x"],
        "before it is there": "x",
        "by_ref_sync": {"a": "x"},
        "passed on": ["first", "x"],
        "twice": True,
        "to_object_ref": ["Ref", "x"],
        "to_object_ref_gen": [0, 1, 2],
        "to_object_ref_gen_sync": [0, 1, 2],
        "failed": ["Refused", "why"],
        "cancelled": True,
        "started Ray": False,
    }
