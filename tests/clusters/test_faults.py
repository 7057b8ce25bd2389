"""Faults under load: replicas, fronts, a node and the controller are lost, or there is too much.

Every request of a steady load gets the right answer or an error that says what happened; none is
lost. ``RAYCOMPOSE_CHAOS=1`` (``make chaos``) has each fault more often, longer loads, and a table.
"""

# mypy does not see what Ray's decorators add: .bind.
# mypy: disable-error-code="attr-defined"

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from ray import serve
from support import load
from support.cluster import FREE
from support.load import (
    Asked,
    Load,
    Square,
    Taker,
    begun,
    by_handle,
    fronted,
    median_s,
    over_http,
)
from support.scripts import found_by, start
from support.waiting import until

import raycompose as rc

CHAOS = os.environ.get("RAYCOMPOSE_CHAOS") == "1"
TIMES = 5 if CHAOS else 1
"""How often a fault happens in one test."""
OVERLOAD_S = 20 if CHAOS else 3

QUICK: dict[str, Any] = {**FREE, "health_check_period_s": 0.5}
"""A replica that died is replaced within a second or two, rather than ten."""

AT_ONCE: dict[str, Any] = {"graceful_shutdown_timeout_s": 0}

Table = dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """What became of the requests, by fault; shown at the end of the long form."""
    rows: Table = {}
    yield rows
    if CHAOS:
        capture: Any = request.config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print()
            for fault, row in rows.items():
                cells = "".join(f"{name} {number}".rjust(22) for name, number in row.items())
                print(f"{fault:62}{cells}")


@pytest.fixture(scope="module")
def other_cluster() -> Iterator[subprocess.Popen[str]]:
    """The script that breaks a cluster of its own, beside the tests that come before."""
    script = start("faults_of_a_cluster.py", TIMES)
    yield script
    script.kill()
    script.communicate()


# --- Replicas -------------------------------------------------------------------------------------

WAYS = ("once", "again", "once by reference", "again by reference")


def faulty(notes: Path, version: int = 1) -> rc.Pipeline[Any, Any]:
    """A deployment behind stages that try again and that do not; two replicas, and two fronts."""
    square = serve.deployment(
        Square, name="Square", num_replicas=2, max_ongoing_requests=16, **QUICK
    ).bind(str(notes), version=version)
    taker = serve.deployment(Taker, max_ongoing_requests=100, **QUICK).bind()
    once, again = rc.stage(square, name="Once"), rc.stage(square, name="Again", retry=5)
    ways: tuple[Any, ...] = (once, again, rc.pipeline(once, taker), rc.pipeline(again, taker))
    switch = rc.switch("way", dict(zip(WAYS, ways, strict=True)))
    return rc.pipeline(switch, fronted).options(num_replicas=2, health_check_period_s=0.5)


def in_turn(n: int) -> Asked:
    return {"way": WAYS[n % len(WAYS)]}


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def client(cluster: None, notes: Path, other_cluster: subprocess.Popen[str]) -> Iterator[rc.Client]:
    with rc.run(faulty(notes), name="faulty", route_prefix="/faulty") as client:
        yield client


def kill_while_busy(pid: int, traffic: Load, notes: Path) -> None:
    """End a replica that has several requests."""

    def busy() -> bool:
        answered = {request.asked["n"] for request in traffic.of("right")}
        mine = {request.asked["n"] for request in traffic.requests}
        return len((begun(notes)[pid] & mine) - answered) >= 2

    def busy_when_held() -> bool:
        """Hold it until what it had answered has arrived, and look again."""
        if not busy():
            return False
        os.kill(pid, signal.SIGSTOP)
        sleep(0.3)
        if not busy():
            os.kill(pid, signal.SIGCONT)
            return False
        return True

    until(busy_when_held)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["os._exit in a call", "kill -9"])
def test_a_stages_replica_dies(client: rc.Client, notes: Path, table: Table, how: str) -> None:
    """Only calls on that replica fail, as 503 or the stage's honest error; with retry, none."""
    traffic = Load(in_turn)
    dead: set[int] = set()
    with traffic.from_clients(*load.clients(client)):
        for time in range(TIMES):
            pids = traffic.until_two("pid", dead)
            if how == "kill -9":
                kill_while_busy(pid := min(pids), traffic, notes)
            else:
                poisoned = traffic.send(over_http(client.url), way=WAYS[time % 2], poison=True)
                pid = int((notes / f"poison-{poisoned.asked['n']}").read_text())
            dead.add(pid)
        traffic.until_two("pid", dead)
    for way in WAYS:
        table[f"a stage's replica dies ({how}), {way}"] = traffic.counts(way=way)
    counts = traffic.counts()
    assert (counts["lost"], counts["bare"]) == (0, 0)
    on_dead = {n for pid in dead for n in begun(notes)[pid]}
    on_living = {n for pid, seen in begun(notes).items() if pid not in dead for n in seen}
    failed = traffic.of("honest")
    assert len(failed) <= TIMES * len(load.clients(client))  # no more than were under way
    assert not {request.asked["n"] for request in failed} & on_living
    for request in failed:
        assert request.asked["way"].startswith("once")
        assert request.answer["stage"].startswith("Once")
        assert (request.answer.get("status"), request.answer.get("error")) in [
            (503, None),
            (None, "ActorDiedError"),
            (None, "ActorUnavailableError"),  # of a call by gRPC
        ]
    again = {request.asked["n"] for way in WAYS[1::2] for request in traffic.of("right", way=way)}
    assert failed or again & on_dead & on_living  # the fault has hit requests


def test_a_front_dies(client: rc.Client, table: Table) -> None:
    """What was on it gets Ray's own answer: 500 without details, or ActorDiedError; else right.

    The pipeline is not there to answer, so no stage is named.
    """
    traffic = Load(in_turn)
    dead: set[int] = set()
    with traffic.from_clients(*load.clients(client)):
        for _ in range(TIMES):
            dead.add(pid := min(traffic.until_two("front", dead)))
            os.kill(pid, signal.SIGKILL)
        traffic.until_two("front", dead)
    table["one of two fronts dies"] = counts = traffic.counts()
    assert (counts["lost"], counts["honest"]) == (0, 0)
    assert counts["bare"] <= TIMES * len(load.clients(client))  # no more than were under way
    for request in traffic.of("bare"):
        assert request.answer in (
            {"status": 500, "text": "Internal Server Error"},
            {"error": "ActorDiedError", "stage": None},
        )


def test_a_redeployment_fails_no_request(client: rc.Client, notes: Path, table: Table) -> None:
    """While a changed stage is deployed, the old version answers, then the new one."""
    traffic = Load(in_turn)
    with traffic.from_clients(*load.clients(client)):
        for version in range(2, 2 + TIMES):
            rc.run(faulty(notes, version), name="faulty", route_prefix="/faulty")
            until(lambda version=version: traffic.now("version") == {version})  # type: ignore[misc]
    table["a redeployment"] = counts = traffic.counts()
    assert counts["right"] == counts["sent"]
    seen = {request.answer["version"] for request in traffic.of("right")}
    assert seen == set(range(1, 2 + TIMES))


# --- Nodes and the controller ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(other_cluster: subprocess.Popen[str], table: Table) -> dict[str, Any]:
    """What came out of the script, by fault."""
    result: dict[str, Any] = found_by(other_cluster)
    for fault, what in result.items():
        for way, counts in what["counts"].items():
            table[f"{fault}, {way}"] = counts
    return result


@pytest.mark.cluster
def test_the_controller_dies(found: dict[str, Any]) -> None:
    """Serve's controller is no part of a request: all are answered while it is away."""
    what = found["the controller dies"]
    assert what["failed"] == []
    assert all(counts["right"] == counts["sent"] > 0 for counts in what["counts"].values())


@pytest.mark.cluster
def test_a_node_is_removed(found: dict[str, Any]) -> None:
    """Calls on its replicas fail, naming the stage; with retry, none: the other node has them."""
    once, again = found["a node is removed"]["counts"].values()
    assert again["right"] == again["sent"] > 0
    assert once["right"] + once["honest"] == once["sent"] > 0
    for answer in found["a node is removed"]["failed"]:
        assert answer["stage"] == "Once"
        assert answer.get("status", 503) == 503


# --- Too much -------------------------------------------------------------------------------------

WORK_S, PLACES, QUEUE, RETRY_AFTER_S = 0.2, 2, 8, 1.2
PER_S = PLACES / WORK_S
"""What the stage can do."""
QUEUEING_S = QUEUE / PER_S
"""What the last one in the queue waits."""

ENGINES = ("distributed", "fused")


@pytest.fixture(scope="module")
def busy_notes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {engine: tmp_path_factory.mktemp(engine) for engine in ENGINES}


@pytest.fixture(scope="module")
def busy(cluster: None, busy_notes: dict[str, Path]) -> Iterator[rc.Client]:
    """A slow stage with a short queue, in replicas of its own and fused into the front's."""
    limits: dict[str, Any] = {"max_ongoing_requests": PLACES, "max_queued_requests": QUEUE}
    config = {"retry_after_s": RETRY_AFTER_S}
    ways: dict[str, Any] = {}
    for engine in ENGINES:
        slow = serve.deployment(
            Square, name=engine, backpressure_config=config, **limits, **QUICK, **AT_ONCE
        ).bind(str(busy_notes[engine]), WORK_S)
        ways[engine] = slow
        # Its own waits would be over long before there is a place.
        policy = rc.Retry(attempts=30, initial_s=0.001, max_s=0.001, budget=1, min_per_s=1e6)
        ways[f"{engine}, retry"] = rc.stage(slow, name=f"{engine}, retry", retry=policy)
    app = rc.pipeline(rc.switch("way", ways), fronted).fuse("fused").options(**AT_ONCE)
    with rc.run(app, name="busy", route_prefix="/busy") as client:
        yield client


@pytest.mark.parametrize("engine", ENGINES)
def test_overload_is_refused_at_once(
    busy: rc.Client, busy_notes: dict[str, Path], table: Table, engine: str
) -> None:
    """Of eight times what a stage can do it does its part; the rest hears 503 without queueing."""
    traffic = Load(lambda n: {"way": engine}, pace_s=0.25)
    # Ten of the clients wait for an answer at any time.
    clients = PLACES + QUEUE + round(8 * PER_S * traffic.pace_s)
    full = Load(lambda n: {"way": engine})
    with full.from_clients(*(by_handle(busy) for _ in range(QUEUE))):  # none is refused
        full.now("pid", OVERLOAD_S / 2)
    full_per_s = full.counts()["right"] / full.took_s
    already = set().union(*begun(busy_notes[engine]).values())
    sends = [by_handle(busy) if i % 8 == 0 else over_http(busy.url) for i in range(clients)]
    with traffic.from_clients(*sends):
        traffic.now("pid", OVERLOAD_S)
    counts = traffic.counts()
    right, refused = traffic.of("right"), traffic.of("honest")
    table[f"overload, {engine}"] = counts
    done_per_s = counts["right"] / traffic.took_s
    numbers = {
        "asked per s": round(counts["sent"] / traffic.took_s),
        "done per s": round(done_per_s),
        "without overload": round(full_per_s),
        "refused after ms": round(1000 * median_s(refused)),
        "done after ms": round(1000 * median_s(right)),
    }
    table[f"overload, {engine}: rates"] = numbers
    assert counts["right"] + counts["honest"] == counts["sent"]
    ran = set().union(*begun(busy_notes[engine]).values()) - already
    assert ran == {request.asked["n"] for request in right}
    assert full.counts()["right"] == full.counts()["sent"]
    for request in refused:
        if "error" in request.answer:
            assert request.answer == {"error": "BackPressureError", "stage": engine}
        else:
            found = {key: request.answer[key] for key in ("status", "stage", "retry_after")}
            assert found == {"status": 503, "stage": engine, "retry_after": "2"}
    assert numbers["asked per s"] >= 3 * PER_S  # or it was no overload
    # Ray's router pauses before it asks a full replica again, so that even a queue that is never
    # empty leaves the places of a distributed stage free for a part of the time.
    assert done_per_s >= full_per_s / 2
    assert done_per_s >= PER_S / (2 if engine == "fused" else 4)
    assert median_s(refused) < QUEUEING_S / (2 if CHAOS else 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_retry_waits_as_long_as_back_pressure_asks(busy: rc.Client, engine: str) -> None:
    """Twice what there is room for at once is all answered rightly, some of it later."""
    traffic = Load(lambda n: {"way": f"{engine}, retry"})
    asked = 2 * (PLACES + QUEUE)
    with ThreadPoolExecutor(asked) as pool:
        for _ in range(asked):
            pool.submit(traffic.send, over_http(busy.url))
    assert traffic.counts()["right"] == asked
