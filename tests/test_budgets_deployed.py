"""Retries and hedges under load, in replicas: what they add, and what they are good for.

``make chaos`` runs it, as it takes its time and measures.
"""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from ray import serve
from support import pickle_by_value
from support.cluster import FREE

import raycompose as rc

pickle_by_value(__name__)

PLACES, WORK_S = 2, 0.2
LOAD_PER_S = 8 * PLACES / WORK_S


class Full(Exception):
    """The stage has no room."""


@serve.deployment(max_ongoing_requests=1000, **FREE)
class Small:
    """Refuses what is beyond its places, and counts how often it was called."""

    def __init__(self) -> None:
        self.called = self.working = 0

    async def __call__(self, x: Any) -> Any:
        self.called += 1
        if self.working >= PLACES:
            raise Full
        self.working += 1
        try:
            await asyncio.sleep(WORK_S)
        finally:
            self.working -= 1
        return x

    async def counted(self, x: Any) -> int:
        called, self.called = self.called, 0
        return called


@serve.deployment(num_replicas=3, max_ongoing_requests=1000, **FREE)
class Stalling:
    """One of three replicas, the first to say so, stalls in one of twenty calls if it is asked."""

    def __init__(self, notes: str) -> None:
        self.notes = Path(notes)
        self.called = 0
        try:
            (self.notes / "staller").touch(exist_ok=False)
            self.stalls = True
        except FileExistsError:
            self.stalls = False

    async def __call__(self, asked: dict[str, Any]) -> Any:
        self.called += 1
        with (self.notes / asked["label"]).open("a") as calls:
            calls.write(".")
        stalls = asked["stall"] and self.stalls and self.called % 20 == 0
        await asyncio.sleep(2 if stalls else 0.05)
        return asked["n"]


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calls")


@pytest.fixture(scope="module")
def client(deploy: Any, notes: Path) -> Any:
    small = Small.bind()
    stalling = Stalling.bind(str(notes))
    again = rc.Retry(5, on=(Full,), initial_s=0.05)
    hedge = rc.Hedge(after_s=0.15)
    return deploy(
        rc.switch(
            "do",
            {
                "retry": rc.stage(small, retry=again),
                "counted": rc.stage(small, method="counted"),
                "plain": stalling,
                "hedged": rc.stage(stalling, hedge=hedge, name="hedged"),
            },
        )
    )


def test_retries_do_not_multiply_an_overload(client: rc.Client) -> None:
    """Of eight times what the stage takes, with retry=5, it is called 1.2 times per request."""

    async def load(seconds: float) -> list[Any]:
        tasks, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            tasks.append(asyncio.ensure_future(client.acall({"do": "retry"})))
            await asyncio.sleep(1 / LOAD_PER_S)
        return await asyncio.gather(*tasks, return_exceptions=True)

    client.call({"do": "counted"})
    results = asyncio.run(load(20))
    called = client.call({"do": "counted"})
    right = [result for result in results if not isinstance(result, BaseException)]
    refused = [result for result in results if isinstance(result, Full)]
    print(f"{len(results)} requests, {len(right)} right, {called / len(results):.2f} calls each")
    assert len(right) + len(refused) == len(results) > 20 * LOAD_PER_S / 2
    assert any("the retry budget of" in note for e in refused for note in e.__notes__)
    low_load = 3 * 10  # what is allowed in the seconds before there was much, and after the end
    assert called <= 1.2 * len(results) + low_load


def test_a_hedge_hides_a_stall(client: rc.Client, notes: Path) -> None:
    """One replica of three stalls; with the hedge p99 is that of a day without, nearly."""

    def measure(do: str, stall: bool, label: str) -> tuple[float, float]:
        async def one(n: int) -> float:
            began = time.monotonic()
            assert await client.acall({"do": do, "n": n, "stall": stall, "label": label}) == n
            return time.monotonic() - began

        async def some() -> list[float]:
            numbers = iter(range(600))

            async def work() -> list[float]:
                return [await one(n) for n in numbers]

            took_s = await asyncio.gather(*(work() for _ in range(4)))
            return sorted(each for some in took_s for each in some)

        took_s = asyncio.run(some())
        return took_s[int(len(took_s) * 0.99)], (notes / label).stat().st_size / len(took_s)

    calm_s, _ = measure("plain", False, "calm")
    stalling_s, _ = measure("plain", True, "stalling")
    hedged_s, calls = measure("hedged", True, "hedged")
    print(f"p99 {calm_s:.3f} s, stalling {stalling_s:.3f} s, hedged {hedged_s:.3f} s, {calls:.3f}")
    assert stalling_s > 1.9
    assert hedged_s <= 1.5 * calm_s + 0.15  # the time until the second call is made
    assert calls <= 1.05
