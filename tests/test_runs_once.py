"""What is called runs once: tasks of several results, methods that are not there, failed inputs."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined, untyped-decorator, no-untyped-call"

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.testclient import TestClient
from support import pickle_by_value
from support.cluster import Deploy
from support.journal import write
from support.waiting import PATIENCE_S

import raycompose as rc

pickle_by_value(__name__)


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Taker:
    async def __call__(self, ref: rc.Ref[str]) -> str:
        return f"got {await ref}"


# Tasks with several results


@ray.remote(num_cpus=0, num_returns=2)
def two(path: str) -> tuple[str, str]:
    write(path, "ran")
    if path.endswith("hangs"):
        time.sleep(60)
    return "one", "two"


@serve.deployment(ray_actor_options={"num_cpus": 0})
def joined(both: tuple[str, str]) -> str:
    return f"{type(both).__name__}: {'+'.join(both)}"


@pytest.mark.parametrize("engine", ["distributed", "local"])
def test_a_task_of_two_results_runs_once(deploy: Deploy, tmp_path: Any, engine: str) -> None:
    """``num_returns=2`` gives a tuple of two results to what is behind, from one run."""
    app = rc.pipeline(two, joined.bind())
    client = rc.local(app) if engine == "local" else deploy(app)
    ran = tmp_path / "once"
    assert client.call(str(ran), timeout_s=PATIENCE_S) == "tuple: one+two"
    assert ran.read_text() == "ran\n"


def test_a_task_of_two_results_is_cancelled(deploy: Deploy, tmp_path: Any) -> None:
    """Past its deadline such a task is cancelled, too, and its worker goes on to the next."""
    client = deploy(rc.stage(two, name="two", timeout_s=1.0))
    with pytest.raises(rc.StageTimeoutError):
        client.call(str(tmp_path / "hangs"), timeout_s=PATIENCE_S)


# Calls of methods that are not there


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Mistaken:
    def __init__(self, callee: Any) -> None:
        self._callee = callee

    async def __call__(self, path: str) -> Any:
        write(path, "ran")
        return await self._callee.misspelt.remote(path)


def test_a_stage_that_calls_a_method_that_is_not_there_runs_once(
    deploy: Deploy, tmp_path: Any
) -> None:
    """Its error is not taken for that of a call to an application that is no pipeline."""
    client = deploy(rc.pipeline(Mistaken.bind(Taker.bind())))
    ran = tmp_path / "once"
    for _ in range(2):
        with pytest.raises(RayServeException, match="misspelt") as caught:
            client.call(str(ran), timeout_s=PATIENCE_S)
        assert rc.failed_stage(caught.value) == "Mistaken"
    assert ran.read_text() == "ran\nran\n"


async def _hangs(x: int) -> int:
    await asyncio.Event().wait()
    return x


async def _broken(x: int) -> int:
    raise ValueError("meant to fail")


async def _takes(ref: rc.Ref[int]) -> int:
    return await ref


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "limited": lambda stage: rc.stage(stage, timeout_s=PATIENCE_S),
    "hedged": lambda stage: rc.stage(stage, retry=2, hedge=rc.Hedge(after_s=PATIENCE_S)),
    "named": lambda stage: rc.stage(rc.pipeline(lambda x: x, stage), name="outer"),
    "chosen": lambda stage: rc.when(lambda x: True, stage),
    "through another": lambda stage: rc.pipeline(rc.stage(stage, retry=2), _takes),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("again", ["fallback", "retry"])
def test_what_failed_by_its_input_is_not_called_again(wrapped: str, again: str) -> None:
    """A reference knows the failure of what is behind it, whatever stands around that."""
    called = []

    async def takes(ref: rc.Ref[int]) -> int:
        called.append(ref)
        return await ref

    consumer = (
        rc.fallback(takes, takes)
        if again == "fallback"
        else rc.stage(takes, retry=rc.Retry(3, on=(ValueError,), initial_s=0.0))
    )
    client = rc.local(rc.pipeline(WRAPPED[wrapped](_broken), consumer))
    with pytest.raises(ValueError, match="meant to fail") as raised:
        client.call(1, timeout_s=PATIENCE_S)
    assert rc.failed_stage(raised.value) == "_broken"
    assert len(called) == 1


@pytest.mark.parametrize(
    ("wrapped", "stage"),
    [("limited", "_hangs"), ("hedged", "_hangs"), ("named", "outer"), ("chosen", "when")],
)
def test_a_deadline_names_what_is_waited_for_by_reference(wrapped: str, stage: str) -> None:
    """The request's answer says which stage was running, as without the reference."""
    client = rc.local(rc.pipeline(WRAPPED[wrapped](_hangs), _takes).options(timeout_s=0.2))
    answer = TestClient(client.asgi).post("/", json=1)
    assert (answer.status_code, answer.json()["stage"]) == (504, stage)


def test_a_fallback_does_not_repeat_what_its_input_failed() -> None:
    """When the stage behind the reference failed, no other branch can make it good."""
    tried: list[str] = []

    async def broken(x: int) -> int:
        raise ValueError("upstream")

    async def first(ref: rc.Ref[int]) -> int:
        tried.append("first")
        return await ref

    async def second(ref: rc.Ref[int]) -> int:
        tried.append("second")
        return await ref

    with pytest.raises(ValueError, match="upstream") as caught:
        rc.local(rc.pipeline(broken, rc.fallback(first, second))).call(1, timeout_s=PATIENCE_S)
    assert rc.failed_stage(caught.value) == "broken"
    assert tried == ["first"]
