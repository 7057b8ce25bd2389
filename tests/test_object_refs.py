"""ObjectRefs of tasks, as responses and as references: awaited, refused, lost and cancelled."""

# mypy does not see what Ray's decorators add (.bind, .options, .remote), nor their types.
# mypy: disable-error-code="attr-defined, untyped-decorator"

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, TaskCancelledError
from support import pickle_by_value
from support.gate import gate
from support.waiting import until

import raycompose as rc

pickle_by_value(__name__)

TIMEOUT_S = 15.0
LARGE = 300_000
"""Bytes that Ray keeps in the object store rather than in the message."""


class Refused(Exception):
    """What the stages of these tests fail with."""


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, which must come soon."""
    return asyncio.run(asyncio.wait_for(coroutine, TIMEOUT_S))


def noted(error: BaseException) -> str:
    """An error's message with its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


@ray.remote(num_cpus=0)
def upper(text: str) -> str:
    return text.upper()


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

    def ended() -> bool:
        ray.cancel(task)  # again: Ray may lose what comes while the task is about to start
        return bool(ray.wait([task], timeout=0.2)[0])

    until(ended)
    message = refused(rc.resolve, {"x": task}, TaskCancelledError)
    assert "was cancelled, so it has no result" in message
