"""Converting responses: ``by_ref``, ``resolve`` and the ObjectRefs, on every transport."""

# mypy does not see what Ray's decorators add (.bind, .options, .remote), nor their types.
# mypy: disable-error-code="attr-defined, untyped-decorator"

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Coroutine
from typing import Any, NamedTuple

import pytest
import ray
from ray import ObjectRef, serve
from ray.exceptions import RayError, TaskCancelledError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from support import pickle_by_value
from support.cluster import HERE, Deploy
from support.gate import gate
from support.scripts import found_by, start

import raycompose as rc

pickle_by_value(__name__)

TIMEOUT_S = 15.0
here: dict[str, Any] = {**HERE, "max_ongoing_requests": 100}


class Refused(Exception):
    """What the stages of these tests fail with."""


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass(frozen=True)
class Record:
    value: Any
    note: str = "note"


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, which must come soon."""
    return asyncio.run(asyncio.wait_for(coroutine, TIMEOUT_S))


def noted(error: BaseException) -> str:
    """An error's message with its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


# --- A response, on each of Ray Serve's transports ------------------------------------------------


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
        await asyncio.sleep(0.3)  # so that the router hears that the call was taken
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


# --- What is refused, what is cancelled, what dies ------------------------------------------------


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


def test_references_work_without_ray() -> None:
    """In local testing mode, without Ray, references are ``rc.Ref``s that are awaited the same."""
    found = found_by(start("references_without_ray.py"))
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
