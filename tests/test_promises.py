"""Promises: what stands for a fused stage's result settles, and is forgotten."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined, untyped-decorator, no-untyped-call"

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest
import ray
from ray import serve
from ray.exceptions import RayActorError
from support import pickle_by_value
from support.cluster import Deploy
from support.waiting import PATIENCE_S, apoll, until

import raycompose as rc
from raycompose.flow import promises
from raycompose.flow.references import Ref

pickle_by_value(__name__)


class Unsendable(Exception):
    """Cannot be pickled: it holds a lock."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Forgetful(Exception):
    """Can be pickled, and not unpickled: its ``__init__`` takes what its ``args`` do not have."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


# Promises


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Maker:
    async def __call__(self, what: str) -> Any:
        if what == "raises":
            raise Unsendable("no luck")
        if what == "forgets":
            return ["fine", Forgetful("lost", "its arguments")]
        return threading.Lock() if what == "returns" else what.upper()


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Taker:
    async def __call__(self, ref: rc.Ref[str]) -> str:
        return f"got {await ref}"


def test_what_cannot_be_sent_settles_its_promise(deploy: Deploy) -> None:
    """A fused stage whose error or result cannot be pickled or unpickled fails its request."""
    client = deploy((Maker.bind() | Taker.bind()).fuse("Maker"))
    assert client.call("fine", timeout_s=PATIENCE_S) == "got FINE"
    for what in ("raises", "returns", "forgets"):
        with pytest.raises(Exception, match=r"no luck|pickle") as caught:
            client.call(what, timeout_s=PATIENCE_S)
        assert not isinstance(caught.value, TimeoutError)
        assert rc.failed_stage(caught.value) == "Maker"


class Fails:
    async def __call__(self, x: int) -> int:
        raise ValueError("no luck")


async def referred(ref: rc.Ref[int]) -> int:
    return await ref


def test_a_failed_reference_is_no_error_that_nobody_saw(caplog: pytest.LogCaptureFixture) -> None:
    """The failure of a stage that is referred to reaches its caller, and not asyncio's log."""
    client = rc.local(rc.pipeline(serve.deployment(Fails).bind(), referred))
    with pytest.raises(ValueError, match="no luck"):
        client.call(1)

    def collected() -> bool:
        gc.collect()
        return not any(type(o) is asyncio.Future and "no luck" in repr(o) for o in gc.get_objects())

    until(collected)
    assert "never retrieved" not in caplog.text


def promised(value: Any) -> Any:
    pending: Future[Any] = Future()
    ref = promises.promise(pending)
    pending.set_result(value)
    return ref


def test_a_promise_of_a_reference_is_kept(cluster: None) -> None:
    """A result that is an ``ObjectRef`` arrives as one, whatever becomes of what it refers to."""
    never = ray.remote(num_cpus=0)(lambda: 1 / 0).remote()
    arrived = ray.get(promised(never), timeout=PATIENCE_S)
    with pytest.raises(ZeroDivisionError):
        ray.get(arrived, timeout=PATIENCE_S)
    again = asyncio.run(Ref.to(never).sendable())
    assert ray.get(again.object_ref, timeout=PATIENCE_S) == never


def test_promises_outlive_their_actor(cluster: None) -> None:
    """Once the actor that keeps promises has died, another keeps those that are made then."""
    context = ray.get_runtime_context()
    ray.kill(promises._actor(context.get_session_name(), context.get_job_id()))

    def is_kept() -> bool:
        try:
            return bool(ray.get(promised(5), timeout=PATIENCE_S) == 5)
        except RayActorError:
            return False

    assert until(is_kept)


def test_a_promise_that_nobody_waits_for_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value of a call whose waiting was cancelled is let go of, not kept for ever."""
    monkeypatch.setattr(promises, "_UNCLAIMED_S", 0.05)

    async def main() -> bool:
        kept = promises._Promises()
        waiting = asyncio.ensure_future(kept.result("key"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        await kept.settle("key", "a large value")
        assert len(kept._outcomes) == 1
        return bool(await apoll(lambda: not kept._outcomes))

    assert asyncio.run(main())


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Freezer:
    async def __call__(self, code: int) -> int:
        raise Frozen(code)

    async def items(self, code: int) -> AsyncIterator[int]:
        yield code
        raise Frozen(code)


def test_a_frozen_exception_of_a_hosted_stage_arrives() -> None:
    """What is on its way does not assign to the exception, which lets nothing be assigned."""
    bound = Freezer.bind()
    for app in (rc.stage(bound), rc.fallback(bound, bound), rc.stage(bound, timeout_s=30)):
        with pytest.raises(Frozen) as caught:
            rc.local(app).call(7, timeout_s=PATIENCE_S)
        assert (caught.value.code, rc.failed_stage(caught.value)) == (7, "Freezer")
    with pytest.raises(Frozen):
        list(rc.local(rc.stage(bound, method="items")).stream(7))
