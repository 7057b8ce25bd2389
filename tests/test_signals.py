"""Signals: a ``SystemExit`` or a ``KeyboardInterrupt`` of users' code fails one request alone."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined, untyped-decorator, no-untyped-call"

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from ray import serve
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from support.waiting import until

import raycompose as rc
from raycompose.flow import background

TIMEOUT_S = 20
SIGNALS = (SystemExit(3), KeyboardInterrupt(), GeneratorExit())


def raising(raised: BaseException) -> Any:
    def raises(*args: Any) -> Any:
        raise raised

    return raises


async def taker(ref: rc.Ref[int]) -> int:
    return await ref


def same(value: Any) -> Any:
    return value


@serve.deployment
class Raises:
    async def __call__(self, raised: BaseException) -> int:
        raise raised

    async def items(self, raised: BaseException) -> AsyncGenerator[int, None]:
        yield 1
        raise raised


@serve.deployment
class Batched:
    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)
    async def __call__(self, raised: list[BaseException]) -> list[None]:
        raise raised[0]

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)
    async def items(self, raised: list[BaseException]) -> AsyncGenerator[list[int], None]:
        yield [1] * len(raised)
        raise raised[0]


@serve.deployment
class Caller:
    def __init__(self, raises: Any) -> None:
        self.raises = raises

    async def __call__(self, raised: BaseException) -> Any:
        return await self.raises.remote(raised)

    async def streaming(self, raised: BaseException) -> list[int]:
        called = self.raises.options(stream=True, method_name="items").remote(raised)
        return [item async for item in called]


WHERE: dict[str, tuple[Any, str]] = {
    "when": (lambda raised: rc.when(raising(raised), same), "when"),
    "switch": (lambda raised: rc.switch(raising(raised), {1: same}), "switch"),
    "split": (lambda raised: rc.split((same, 50), (same, 50), key=raising(raised)), "split"),
    "affinity": (lambda raised: rc.stage(same, affinity=raising(raised)), "same"),
    "by reference": (lambda raised: rc.pipeline(Raises.bind(), taker), "Raises"),
    "batch": (lambda raised: rc.stage(Batched.bind()), "Batched"),
    "batch of streams": (
        lambda raised: rc.pipeline(rc.stage(Batched.bind(), method="items"), rc.collect),
        "Batched",
    ),
    "handle": (lambda raised: rc.stage(Caller.bind(Raises.bind())), "Caller"),
    "streaming handle": (
        lambda raised: rc.stage(Caller.bind(Raises.bind()), method="streaming"),
        "Caller",
    ),
}


@pytest.mark.parametrize("raised", SIGNALS, ids=repr)
@pytest.mark.parametrize("where", WHERE)
def test_a_signal_is_an_error_of_its_stage(where: str, raised: BaseException) -> None:
    """Wherever users' code raises one, the call fails with a named RuntimeError."""
    app, stage = WHERE[where]
    with pytest.raises(RuntimeError) as failed:
        rc.local(app(raised)).call(raised, timeout_s=TIMEOUT_S)
    assert rc.failed_stage(failed.value) == stage
    assert rc.local(rc.stage(same)).call(1, timeout_s=TIMEOUT_S) == 1


@pytest.mark.parametrize("raised", SIGNALS, ids=repr)
def test_a_loop_s_condition_that_raises_a_signal_fails(raised: BaseException) -> None:
    """So does ``until=``, as an error."""
    with pytest.raises(RuntimeError, match="the function that decides"):
        rc.local(rc.loop(same, until=raising(raised))).call(1, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("raised", SIGNALS, ids=repr)
def test_a_constructor_that_raises_a_signal_has_failed(raised: BaseException) -> None:
    """The line that opens the application says which constructor it was."""

    @serve.deployment
    class Broken:
        def __init__(self) -> None:
            raise raised

        def __call__(self, value: Any) -> None: ...

    with pytest.raises(RuntimeError, match="the constructor of 'Broken'"):
        rc.local(rc.stage(Broken.bind()))


def test_a_background_task_that_exits_leaves_the_loop_running() -> None:
    """What no part of raycompose calls ends its own request, too, and nothing else."""
    task = BackgroundTask(raising(SystemExit(3)))
    client = rc.local(rc.stage(lambda: PlainTextResponse("x", background=task)))
    with pytest.raises(RuntimeError, match="3"):
        TestClient(client.asgi).get("/")
    assert rc.local(rc.stage(same)).call(1, timeout_s=TIMEOUT_S) == 1


def test_the_loop_outlives_what_runs_on_it() -> None:
    """A callback or a task on the background loop that raises a signal does not end it."""
    loop = background.loop()
    loop.call_soon_threadsafe(raising(KeyboardInterrupt()))

    async def exits() -> None:
        sys.exit(3)

    with pytest.raises(RuntimeError, match=r"sys\.exit\(3\)"):
        background.wait(exits())
    assert background.wait(asyncio.sleep(0, 5)) == 5


def test_an_interrupt_of_the_main_thread_ends_a_blocking_call() -> None:
    """Ctrl-C is the caller's own: ``client.call`` raises KeyboardInterrupt, and is cancelled."""
    running, cancelled = threading.Event(), threading.Event()

    async def hangs(value: int) -> None:
        running.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def interrupt() -> None:
        main = threading.main_thread().ident or 0
        running.wait(TIMEOUT_S)
        until(lambda: sys._current_frames()[main].f_code.co_name == "wait")
        signal.pthread_kill(main, signal.SIGINT)

    client = rc.local(rc.stage(hangs))
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        client.call(1, timeout_s=TIMEOUT_S)
    assert cancelled.wait(TIMEOUT_S)


def test_batches_are_collected_in_a_forked_child_too() -> None:
    """A client whose stage has ``@serve.batch`` answers in the child of a fork."""
    program = """
import os, sys
import raycompose as rc
from ray import serve
@serve.deployment
class Batched:
    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)
    async def __call__(self, numbers):
        return [number + 1 for number in numbers]
client = rc.local(rc.stage(Batched.bind()))
assert client.call(1, timeout_s=20) == 2
child = os.fork()
if child == 0:
    print(client.map([2, 3, 4]), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(client.call(5, timeout_s=20), status)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True, text=True, timeout=90, check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[3, 4, 5]", "6 0"]
    assert "pending" not in done.stderr


def test_what_a_batch_runs_has_no_deadline_of_one_of_its_calls() -> None:
    """Batches are collected apart from the call that came first: ``remaining_s`` is None there."""

    @serve.deployment
    class Left:
        @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)
        async def __call__(self, values: list[int]) -> list[Any]:
            return [rc.remaining_s()] * len(values)

    client = rc.local(rc.stage(Left.bind()))
    assert client.call(1, timeout_s=TIMEOUT_S) is None
    assert until(lambda: client.call(1) is None)
