"""Deadlines that pass while a call is on its way to a replica: none is left running.

A call is looked for a replica, sent, taken and begun in a few milliseconds, by several threads and
processes. Deadlines all around that time find it at each of these moments.
``RAYCOMPOSE_CHAOS=1`` (``make chaos``) makes many more calls, on a machine that is kept busy.
"""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle
from support import pickle_by_value
from support.cluster import HERE, Deploy
from support.journal import Call, count, noted, running
from support.waiting import poll

import raycompose as rc

pickle_by_value(__name__)

CHAOS = os.environ.get("RAYCOMPOSE_CHAOS") == "1"
pytestmark = pytest.mark.timeout(1800 if CHAOS else 180)
ROUNDS = 12 if CHAOS else 2
AT_ONCE = 8
TIMEOUTS_MS = (1, 2, 3, 4, 6, 8, 11, 15, 20, 30, 50)
HANG_S = 1800 if CHAOS else 120
"""Longer than any test: what is not cancelled is still running when the test looks."""

here: dict[str, Any] = {**HERE, "max_ongoing_requests": 100}


@serve.deployment(**here)
class Worker:
    """Hangs, in each of the ways in which it is called, and writes down what becomes of it."""

    async def hang(self, call: Call) -> Call:
        with noted(call, "hang"):
            await asyncio.sleep(HANG_S)
        return call

    async def items(self, call: Call) -> AsyncIterator[Call]:
        with noted(call, "hang"):
            await asyncio.sleep(HANG_S)
            yield call

    async def take(self, ref: rc.Ref[Call]) -> Call:
        return await ref


@serve.deployment(**here)
class Caller:
    """Calls another deployment, as users do by hand.

    Args:
        worker: The other.
        fused: Whether the call is made in the pipeline's replica. In one of its own it is Ray's to
            cancel, and Ray 2.60 may lose one that is being assigned: it is not looked at.
    """

    def __init__(self, worker: DeploymentHandle[Any], fused: bool) -> None:
        self.worker: Any = worker
        self.fused = fused

    async def __call__(self, call: Call) -> Any:
        with noted(call, "caller"):
            return await self.worker.hang.remote(call if self.fused else {**call, "label": "rays"})


def ways() -> dict[str, rc.Pipeline[Any, Any]]:
    """What a deadline is set to."""
    worker = Worker.bind()
    alone = Worker.options(name="Alone", max_ongoing_requests=1).bind()
    hang = rc.stage(worker, method="hang")
    by_hand = Caller.bind(worker, fused=False)
    fused = rc.pipeline(Caller.options(name="Fused").bind(worker, fused=True)).fuse("Fused")
    return {
        "a call": hang,
        "a call that waits for its turn": rc.stage(alone, method="hang"),
        "a call of a call": rc.pipeline(by_hand),
        "a call of a fused stage": fused,
        "a call by reference": rc.pipeline(hang, rc.stage(worker, method="take")),
        "a stream": rc.pipeline(rc.stage(worker, method="items"), rc.collect),
        "a function beside it": rc.parallel(hang, lambda call: call),
    }


WAYS = tuple(ways())


@pytest.fixture(scope="module")
def client(deploy: Deploy) -> rc.Client:
    """Every way with every deadline, in one application."""
    return deploy(
        rc.switch(
            lambda call: (call["way"], call["timeout_ms"]),
            {
                (way, ms): rc.stage(app, name=f"{way}, {ms} ms", timeout_s=ms / 1000)
                for way, app in ways().items()
                for ms in TIMEOUTS_MS
            },
        )
    )


@pytest.fixture(scope="module", autouse=True)
def _starved() -> Iterator[None]:
    """In the long form, keep every core busy with something else."""
    burn = [sys.executable, "-c", "while True: pass"]
    burning = [subprocess.Popen(burn) for _ in range((os.cpu_count() or 1) if CHAOS else 0)]
    yield
    for process in burning:
        process.kill()
        process.wait()


@pytest.mark.parametrize("way", WAYS)
def test_a_call_is_cancelled_whenever_its_deadline_passes(
    client: rc.Client, tmp_path: Path, way: str
) -> None:
    """Whether it is being assigned, sent or begun as time runs out, it is left running nowhere."""
    calls = [
        {"journal": str(tmp_path), "label": str(ms), "way": way, "timeout_ms": ms}
        for ms in TIMEOUTS_MS
    ]

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(
            *(client.acall(call) for call in calls for _ in range(AT_ONCE)), return_exceptions=True
        )

    for _ in range(ROUNDS):
        ended = asyncio.run(all_at_once())
        assert {type(error) for error in ended} == {rc.StageTimeoutError}
    assert any(count(call, "started") for call in calls), "no deadline was long enough"
    poll(lambda: not any(running(call) for call in calls))
    left = {call["timeout_ms"]: running(call) for call in calls if running(call)}
    assert left == {}, {call["timeout_ms"]: count(call, "started") for call in calls}
