"""Branches in replicas: one deployment in several places, and what is given up is cancelled."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray import serve
from ray.serve.config import RequestRouterConfig
from support import pickle_by_value
from support.cluster import HERE, Deploy
from support.stages import (
    call,
)
from support.waiting import until

import raycompose as rc
from raycompose import _serve

pickle_by_value(__name__)


# --- One deployment in several places -------------------------------------------------------------

# How long a caller waits before it asks a busy replica again; by default up to half a second.
SOON = RequestRouterConfig(initial_backoff_s=0.005, max_backoff_s=0.01)


class One:
    """One call at a time; knows if there were ever two."""

    def __init__(self) -> None:
        self.running = 0

    async def __call__(self, x: Any) -> int:
        assert self.running == 0
        self.running += 1
        await asyncio.sleep(0.001)
        self.running -= 1
        return (sum(x) if isinstance(x, list | tuple) else int(x)) + 1

    async def awaited(self, ref: rc.Ref[int]) -> int:
        return await ref + 1000

    async def up_to(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i


def one(name: str) -> Any:
    deployment = serve.deployment(One, name=name, max_ongoing_requests=1, **HERE)
    return deployment.options(request_router_config=SOON).bind()


def test_an_application_used_in_several_places_is_one_deployment() -> None:
    """The same bound deployment in several branches is started once; two bindings are two."""
    shared = one("Shared")
    app = rc.pipeline(shared, rc.parallel(shared, rc.when(bool, shared, one("Shared"))), shared)
    names = sorted(d.name for d in _serve.build(app, "app").deployments)
    assert names == ["Pipeline", "Shared", "Shared_1"]


def diamonds() -> rc.Pipeline[Any, Any]:
    """Diamonds over deployments that take one call at a time, one of them at several corners."""
    top, bottom = one("Top"), one("Bottom")
    return rc.when(
        lambda x: x % 2,
        rc.pipeline(top, rc.parallel(top, lambda x: x * 10), bottom),
        rc.pipeline(top, rc.parallel(bottom, rc.passthrough), top),
    )


def through_a_diamond(x: int) -> int:
    """What ``diamonds()`` gives, in plain Python."""
    top = x + 1
    return (top + 1) + top * 10 + 1 if x % 2 else (top + 1) + top + 1


def under_load(client: rc.Client, calls: int, timeout_s: float) -> list[Any]:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(client.acall(x, timeout_s=timeout_s) for x in range(calls)))

    return asyncio.run(all_at_once())


def test_diamonds_do_not_deadlock_here() -> None:
    """Fifty calls at once through diamonds of stages that take one call at a time all come back."""
    results = under_load(rc.local(diamonds()), 50, timeout_s=20)
    assert results == [through_a_diamond(x) for x in range(50)]


def test_diamonds_do_not_deadlock_in_replicas(deploy: Deploy) -> None:
    """The same where the stages are in replicas of their own."""
    results = under_load(deploy(diamonds()), 50, timeout_s=100)
    assert results == [through_a_diamond(x) for x in range(50)]


def by_reference() -> rc.Pipeline[Any, Any]:
    shared = one("Both")
    return rc.pipeline(shared, rc.stage(shared, method="awaited"))


def test_a_deployment_that_awaits_itself_does_not_deadlock() -> None:
    """A stage that takes a reference never keeps its own deployment from producing the result."""
    assert under_load(rc.local(by_reference()), 5, timeout_s=5) == [x + 1001 for x in range(5)]


def test_a_deployment_that_maps_its_own_stream_does_not_deadlock() -> None:
    """A deployment that takes one call at a time can produce a stream and map it."""
    shared = one("Both")
    app = rc.pipeline(rc.stage(shared, method="up_to"), shared, rc.collect)
    assert call(app, 20, timeout_s=5) == list(range(1, 21))


# --- In replicas ----------------------------------------------------------------------------------


class Witness:
    """Sees what becomes of its calls."""

    def __init__(self) -> None:
        self.hanging = 0
        self.cancelled = 0
        self.met = 0
        self.all_there = asyncio.Event()
        self.one_more = asyncio.Condition()

    async def hang(self, x: Any) -> None:
        async with self.one_more:
            self.hanging += 1
            self.one_more.notify_all()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def fail_beside(self, hanging: int) -> None:
        async with self.one_more:
            await self.one_more.wait_for(lambda: self.hanging >= hanging)
        raise ValueError("the others hang")

    async def counts(self, x: Any) -> tuple[int, int]:
        return self.hanging, self.cancelled

    async def meet(self, x: Any) -> int:
        self.met += 1
        if self.met == 3:
            self.all_there.set()
        await asyncio.wait_for(self.all_there.wait(), 20)
        return self.met

    async def die(self, x: Any) -> None:
        os._exit(1)

    async def fail(self, x: Any) -> None:
        raise ValueError(x)


@pytest.fixture(scope="module")
def replicas(deploy: Deploy) -> rc.Client:
    """One application for what has to be seen in replicas: ``{"do": which, ...}``."""
    witness = serve.deployment(Witness, max_ongoing_requests=50, **HERE).bind()
    mortal = serve.deployment(Witness, name="Mortal", **HERE).bind()

    def to(method: str, app: Any = witness) -> Any:
        return rc.stage(app, method=method)

    hangs = rc.switch(
        "is", {"hang": to("hang"), "fail": rc.pipeline(lambda v: v["n"], to("fail_beside"))}
    )
    return deploy(
        rc.switch("do", {
            "counts": to("counts"),
            "meet": rc.parallel(to("meet"), to("meet"), to("meet")),
            "parallel": rc.pipeline(
                lambda v: v["n"], rc.parallel(to("hang"), to("fail_beside"), to("hang"))),
            "each": rc.pipeline(lambda v: v["items"], rc.each(hangs)),
            "timeout": rc.stage(rc.parallel(to("hang"), to("hang")), timeout_s=0.3),
            "fallback": rc.fallback(rc.stage(to("hang"), timeout_s=0.3), lambda v: "second"),
            "shadow": rc.pipeline(
                rc.shadow(to("hang")), rc.shadow(to("fail", mortal)), rc.shadow(to("die", mortal)),
                lambda v: "unharmed"),
        })
    )  # fmt: skip


def test_parallel_runs_at_once_in_replicas(replicas: rc.Client) -> None:
    """Three calls of one replica are under way together: each waits for the others."""
    assert replicas.call({"do": "meet"}) == (3, 3, 3)


@pytest.mark.parametrize(
    ("request_", "raises", "hangs"),
    [
        ({"do": "parallel"}, ValueError, 2),
        ({"do": "each", "items": ["hang", "fail", "hang"]}, ValueError, 2),
        ({"do": "timeout"}, rc.StageTimeoutError, 2),
        ({"do": "fallback"}, None, 1),
    ],
    ids=["parallel", "each", "timeout", "fallback"],
)
def test_what_is_given_up_is_cancelled_in_its_replica(
    replicas: rc.Client, request_: dict[str, Any], raises: Any, hangs: int
) -> None:
    """Calls whose result nobody wants any more see a CancelledError in their replicas."""
    before, cancelled = replicas.call({"do": "counts"})
    request_ = {**request_, "n": before + hangs}
    if "items" in request_:
        request_["items"] = [{"is": what, "n": before + hangs} for what in request_["items"]]
    if raises is None:
        assert replicas.call(request_, timeout_s=30) == "second"
    else:
        with pytest.raises(raises):
            replicas.call(request_, timeout_s=30)
    until(lambda: replicas.call({"do": "counts"}) == (before + hangs, cancelled + hangs))


def test_shadow_of_a_replica_that_hangs_fails_or_dies(replicas: rc.Client) -> None:
    """Targets that hang, fail and take their replica down change nothing for the caller."""
    for _ in range(5):
        assert replicas.call({"do": "shadow"}, timeout_s=10) == "unharmed"
