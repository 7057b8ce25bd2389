"""What is cancelled, seen by the stages themselves: at every depth, on every engine."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import gc
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import RequestCancelledError
from ray.serve.handle import DeploymentHandle
from support import pickle_by_value
from support.cluster import HERE, Deploy
from support.journal import Call, count, events, noted, running
from support.waiting import apoll

import raycompose as rc

pickle_by_value(__name__)

HANG_S = 90
"""Longer than any test takes: who is not cancelled is still running when the test looks."""
LIMIT_S = 6.0
"""A deadline that leaves every stage the time to start, on a busy machine too."""

here: Any = {**HERE, "max_ongoing_requests": 200}


# --- Stages ---------------------------------------------------------------------------------------


async def hang_inline(call: Call) -> Call:
    with noted(call, "hang"):
        await asyncio.sleep(HANG_S)
    return call


async def hang_over(items: rc.Stream[Call]) -> int:
    async for call in items:
        await hang_inline(call)
    return 0


def hold(call: Call) -> Call:
    """Block a thread, which nothing can cancel, until the request's file is released."""
    with noted(call, "hold"):
        while not released(call).exists():
            time.sleep(0.02)
    return call


def released(call: Call) -> Path:
    return Path(call["journal"], f"{call['label']}-released")


def three(call: Call) -> list[Call]:
    return [call] * 3


async def items(call: Call) -> AsyncIterator[Call]:
    with noted(call, "items"):
        for _ in range(3):
            yield call


async def trigger(call: Call) -> None:
    """Fail once all that the request is to start has started."""
    await apoll(lambda: count(call, "started") >= Counter(call["hangs"]), HANG_S)
    raise Triggered


async def fails(call: Call) -> None:
    raise ValueError(call["label"])


async def census(_: Call) -> dict[str, int]:
    """Count what there is in the process that runs the graph."""
    gc.collect()
    contexts = sum(type(found).__name__ == "Context" for found in gc.get_objects())
    return {"tasks": len(asyncio.all_tasks()), "contexts": contexts}


class Triggered(Exception):
    """The failure of a sibling."""


@serve.deployment(**here)
class Worker:
    """A deployment's methods, each of which writes down what happens to it."""

    def __init__(self, journal: str) -> None:
        self.own: Call = {"journal": journal, "label": "taker"}

    async def quick(self, call: Call) -> Call:
        with noted(call, "quick"):
            return call

    async def hang(self, call: Call) -> Call:
        return await hang_inline(call)

    async def fail(self, call: Call) -> Call:
        raise ValueError("meant to fail")

    async def behind(self, call: Call) -> Call:
        with noted(call, "behind"):
            return call

    async def taker(self, ref: rc.Ref[Call]) -> Call:
        with noted(self.own, "taker"):  # it has no request before the reference is there
            return await ref

    async def mirrored(self, call: Call) -> None:
        with noted(call, "mirrored"):
            await apoll(lambda: count(call, "cancelled"), HANG_S)
            await asyncio.sleep(1)  # what cancelled the request would by now have come here, too

    async def items(self, call: Call) -> AsyncIterator[Call]:
        async for item in items(call):
            yield item

    async def over(self, items: rc.Stream[Call]) -> int:
        return await hang_over(items)

    def hold(self, call: Call) -> Call:
        return hold(call)


@serve.deployment(**here)
class Holder:
    """A deployment that somebody else wrote, with a pipeline bound into it."""

    def __init__(self, inner: DeploymentHandle[Any]) -> None:
        self.inner = inner

    async def __call__(self, call: Call) -> Any:
        with noted(call, "holder"):
            return await self.inner.remote(call)


@serve.deployment(**here)
class Embedding:
    """A deployment with a pipeline inside it."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    async def __call__(self, call: Call) -> Any:
        with noted(call, "holder"):
            return await self.pipeline(call)


api = FastAPI()


@serve.deployment(**here)
@serve.ingress(api)
class Api:
    """A FastAPI ingress with a pipeline inside it."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @api.post("/")
    async def answer(self, call: Call) -> Any:
        return await self.pipeline(call)


def after(call: Call) -> Call:
    with noted(call, "behind"):
        return call


task: Any = ray.remote(num_cpus=0)(hold)
task_behind: Any = ray.remote(num_cpus=0)(after)


@ray.remote(num_cpus=0, max_concurrency=100)
class Actor:
    async def hang(self, call: Call) -> Call:
        return await hang_inline(call)


# --- Graphs ---------------------------------------------------------------------------------------

HANGS: dict[str, dict[str, int]] = {
    "a deployment": {"hang": 1},
    "a function": {"hang": 1},
    "parallel": {"hang": 3},
    "each": {"hang": 2},
    "switch": {"hang": 1},
    "when": {"hang": 1},
    "split": {"hang": 1},
    "fallback": {"hang": 1},
    "retry": {"hang": 1},
    "deadlines": {"hang": 1},
    "shadow": {"hang": 1},
    "by reference": {"hang": 1},
    "by reference, twice": {"hang": 1},
    "a task": {"hold": 1},
    "tasks": {"hold": 1},
    "an actor": {"hang": 1},
    "a pipeline in a deployment in a pipeline": {"holder": 2, "hang": 1},
    "embedded": {"holder": 1, "hang": 1},
    "a stream, mapped": {"hang": 3},
    "a stream, taken whole": {"hang": 1},
    "everything": {"hang": 7, "holder": 2, "hold": 1},
}
"""What hangs in each graph, and how often."""
BESIDE: dict[str, dict[str, int]] = {"shadow": {"mirrored": 1}}
"""What starts besides, and is not cancelled."""


def graphs(journal: str, actor: Any) -> dict[str, rc.Pipeline[Any, Any]]:
    worker = Worker.bind(journal)
    # What takes its own deployment's result waits for it without a place, so before it starts.
    taker = rc.stage(Worker.options(name="Taker").bind(journal), method="taker")

    def to(method: str, **options: Any) -> rc.Pipeline[Any, Any]:
        return rc.stage(worker, method=method, **options)

    hang, quick, behind, fail = map(to, ("hang", "quick", "behind", "fail"))
    again = rc.Retry(3, on=(Exception,), initial_s=0)
    at_once = {"graceful_shutdown_timeout_s": 0}
    inner = Holder.bind(rc.pipeline(quick, hang, behind).options(**at_once))
    outer = Holder.options(name="Outer").bind(rc.pipeline(quick, inner).options(**at_once))
    nested = rc.pipeline(outer, behind)
    made: dict[str, Any] = {
        "a deployment": rc.pipeline(quick, hang, behind),
        "a function": rc.pipeline(quick, hang_inline, behind),
        "parallel": rc.pipeline(rc.parallel(hang, hang_inline, rc.pipeline(quick, hang)), len),
        "each": rc.pipeline(three, rc.each(hang, max_concurrency=2), lambda _: {}, behind),
        "switch": rc.switch("case", {"switch": rc.switch("case", {"switch": hang})}),
        "when": rc.when(bool, rc.pipeline(hang, behind), behind),
        "split": rc.split((hang, 50), (hang, 50)),
        "fallback": rc.fallback(fail, hang, behind),
        "retry": rc.stage(rc.pipeline(rc.stage(hang, retry=again), behind), retry=again),
        "deadlines": rc.stage(rc.pipeline(rc.stage(hang, timeout_s=70), behind), timeout_s=80),
        "shadow": rc.pipeline(rc.shadow(to("mirrored")), hang, behind),
        "by reference": rc.pipeline(hang, taker, behind),
        "by reference, twice": rc.pipeline(hang, taker, taker, behind),
        "a task": rc.pipeline(quick, task, behind),
        "tasks": rc.pipeline(task, task_behind, behind),
        "an actor": rc.pipeline(quick, actor.hang, behind),
        "a pipeline in a deployment in a pipeline": nested,
        "embedded": Embedding.bind(rc.pipeline(quick, hang, behind).embed()),
        "a stream, mapped": rc.pipeline(to("items"), hang, rc.collect),
        "a stream, taken whole": rc.pipeline(items, to("over")),
    }
    made["everything"] = rc.pipeline(
        quick,
        rc.shadow(quick),
        {
            "each": rc.pipeline(three, rc.each({"x": hang, "y": rc.passthrough})),
            "switch": rc.when(bool, rc.fallback(fail, rc.stage(hang, retry=again))),
            "reference": rc.pipeline(hang, taker),
            "deadline": rc.stage(rc.pipeline(quick, hang_inline), timeout_s=80),
            "holder": nested,
            "task": task,
        },
        len,
    )
    return made


def application(journal: str, actor: Any) -> rc.Pipeline[Any, Any]:
    others = {"quick": rc.passthrough, "census": census, "fails": fails}
    chosen = rc.switch("case", {**graphs(journal, actor), **others})
    return rc.switch(
        "way",
        {
            "a deadline": rc.stage(chosen, name="limited", timeout_s=LIMIT_S),
            "a sibling fails": rc.parallel(chosen, trigger),
        },
        default=chosen,
    ).options(graceful_shutdown_timeout_s=0)


# --- Engines, and the ways to end a request -------------------------------------------------------


@dataclass
class Engine:
    name: str
    client: rc.Client
    journal: Path
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    def new(self, case: str, way: str = "") -> Call:
        label = f"{next(self.numbers)}-{self.name}"
        hangs = {**HANGS.get(case, {}), **BESIDE.get(case, {})}
        return {"journal": str(self.journal), "label": label, "case": case, "way": way,
                "hangs": hangs}  # fmt: skip


@pytest.fixture(scope="module")
def actor(cluster: None) -> Iterator[Any]:
    made = Actor.remote()
    yield made
    ray.kill(made)


Engines = Callable[[str], Engine]


@pytest.fixture(scope="module")
def engines(
    deploy: Deploy, actor: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engines]:
    started: dict[str, Engine] = {}

    def start(name: str) -> Engine:
        if name not in started:
            journal = tmp_path_factory.mktemp(name)
            app = application(str(journal), actor)
            starts: dict[str, Callable[[], rc.Client]] = {
                "local": lambda: rc.local(app),
                "fused": lambda: deploy(app.fuse()),
                "distributed": lambda: deploy(app),
                "embedded": lambda: deploy(Api.bind(app.embed())),
            }
            client = starts[name]()
            started[name] = Engine(name, client, journal)
        return started[name]

    yield start
    started.clear()
    gc.collect()  # tasks of Ray's local mode, which say as they go that nobody took their errors


async def starts(call: Call) -> None:
    """Wait until all that hangs in a request's graph has started."""
    await apoll(lambda: count(call, "started") >= Counter(call["hangs"]), 20)


async def disconnect(engine: Engine, call: Call) -> None:
    """Send a request by a socket, and close that while the request is under way."""
    url = urlsplit(engine.client.url or "")
    _reader, writer = await asyncio.open_connection(url.hostname, url.port)
    body = json.dumps(call)
    writer.write(
        f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    await starts(call)
    writer.close()
    await writer.wait_closed()


async def cancel_response(engine: Engine, call: Call) -> None:
    response: Any = engine.client.handle.remote(call)
    await starts(call)
    response.cancel()
    await response


async def cancel_task(engine: Engine, call: Call) -> None:
    waiting = asyncio.ensure_future(engine.client.acall(call))
    await starts(call)
    waiting.cancel()
    await waiting


async def give_up(engine: Engine, call: Call) -> None:
    patient = partial(engine.client.call, call, timeout_s=LIMIT_S)
    await asyncio.get_running_loop().run_in_executor(THREADS, patient)


async def result_of(engine: Engine, call: Call) -> Any:
    return await engine.client.acall(call)


THREADS = ThreadPoolExecutor(64)
WAYS: dict[str, tuple[Callable[[Engine, Call], Any], tuple[type[BaseException], ...]]] = {
    "the client disconnects": (disconnect, ()),
    "response.cancel()": (cancel_response, (RequestCancelledError, asyncio.CancelledError)),
    "the awaiting task is cancelled": (cancel_task, (asyncio.CancelledError,)),
    "call(timeout_s=)": (give_up, (TimeoutError,)),
    "a sibling fails": (result_of, (Triggered,)),
    "a deadline": (result_of, (rc.StageTimeoutError,)),
}
"""How a request ends, and what its caller then gets."""

INSIDE = ["a sibling fails", "a deadline"]  # what ends a request in the process that runs its graph
BOTH = [
    *(("local", way) for way in ("the awaiting task is cancelled", *INSIDE)),
    *(("fused", way) for way in ("the client disconnects", *INSIDE)),
    *(("distributed", way) for way in WAYS),
    ("embedded", "the client disconnects"),
]


@dataclass
class Ended:
    """A request that was ended: what it began with, what its caller got, and when it ended."""

    call: Call
    error: BaseException | None
    at: float


async def ended(engine: Engine, way: str, case: str) -> Ended:
    call = engine.new(case, way)
    error: BaseException | None = None
    try:
        await WAYS[way][0](engine, call)
    except (Exception, asyncio.CancelledError) as raised:
        error = raised
    at = time.time()
    if engine.name == "local":  # a Ray task is a function there, which runs in a thread
        await apoll(lambda: set(running(call)) <= {"hold"}, 5)
        released(call).touch()
    await apoll(lambda: not running(call), 15)
    return Ended(call, error, at)


@pytest.fixture(scope="module", params=BOTH, ids=[" - ".join(both) for both in BOTH])
def requests(request: pytest.FixtureRequest, engines: Engines) -> dict[str, Ended]:
    """One request of every case, all at once on one application, ended in one way."""
    engine, way = engines(request.param[0]), request.param[1]

    async def all_at_once() -> list[Ended]:
        return await asyncio.gather(*(ended(engine, way, case) for case in HANGS))

    return dict(zip(HANGS, asyncio.run(all_at_once()), strict=True))


@pytest.mark.parametrize("case", HANGS)
def test_what_is_in_flight_is_cancelled(requests: dict[str, Ended], case: str) -> None:
    """Every stage under way is cancelled where it runs, and none behind it ever starts."""
    one = requests[case]
    started, cancelled = count(one.call, "started"), count(one.call, "cancelled")
    hangs = Counter(HANGS[case])
    if one.call["label"].endswith("local"):  # no thread can be cancelled: it ends by itself
        hangs -= Counter({"hold": 1})
    assert {stage: started[stage] for stage in hangs} == dict(hangs)
    assert cancelled == hangs, events(one.call)
    assert not started["behind"]
    assert not running(one.call)


def test_its_caller_learns_how_it_ended(requests: dict[str, Ended]) -> None:
    """However deep the stage, the caller gets the error of what ended the request."""
    one_way = requests["parallel"].call["way"]
    expected = WAYS[one_way][1]
    wrong = {case: one.error for case, one in requests.items()
             if not isinstance(one.error, expected or type(None))}  # fmt: skip
    assert wrong == {}
    late = [one.error for one in requests.values() if isinstance(one.error, rc.StageTimeoutError)]
    named = {rc.failed_stage(error) for error in late}
    if one_way == "call(timeout_s=)":  # the request's own deadline names what was running
        assert None not in named
        assert "limited" not in named
    else:
        assert named <= {"limited"}


def test_what_takes_a_reference_is_cancelled(requests: dict[str, Ended]) -> None:
    """Stages that wait for a reference have started, and have ended with the request."""
    call = {**requests["by reference"].call, "label": "taker"}
    assert count(call, "started")["taker"] >= 1
    assert asyncio.run(apoll(lambda: not running(call), 15)), running(call)


def test_the_next_request_works(requests: dict[str, Ended], engines: Engines) -> None:
    """After all were cancelled at once, the same replicas answer as before."""
    engine = engines(requests["each"].call["label"].split("-")[1])
    if engine.name != "embedded":
        call = engine.new("quick")
        assert engine.client.call(call) == call


# --- All kinds of request at once -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["local", "fused", "distributed"])
def test_a_mix_of_requests_leaves_nothing(engines: Engines, name: str) -> None:
    """Thirty at once that succeed, fail, pass a deadline or are cancelled do not mix, nor stay."""
    engine = engines(name)

    async def one(number: int) -> tuple[type, bool]:
        """Return what came, and whether it was this request's own."""
        kind = number % 5
        case = ["quick", "each", "parallel", "fails", "by reference"][kind]
        way = {1: "a deadline", 2: "a sibling fails"}.get(kind, "")
        call = engine.new(case, way)
        try:
            got: Any = await (cancel_task if case == "by reference" else result_of)(engine, call)
        except (Exception, asyncio.CancelledError) as error:  # its frames go with it
            return type(error), case != "fails" or str(error) == call["label"]
        finally:
            assert await apoll(lambda: not running(call), 15)
        return type(got), got == call

    async def census_of(most: dict[str, int] | None = None) -> dict[str, int]:
        """Count, again and again until there are no more than there were."""
        for _ in range(25):
            now: dict[str, int] = await engine.client.acall(engine.new("census"))
            if most is None or all(now[what] <= most[what] + 5 for what in now):
                break
            await asyncio.sleep(0.2)
        return now

    async def at_once(requests: int) -> list[tuple[type, bool]]:
        return await asyncio.gather(*map(one, range(requests)))

    async def twice() -> tuple[list[tuple[type, bool]], dict[str, int], dict[str, int]]:
        await at_once(10)  # what is made once, and kept, is made now
        before = await census_of()
        results = await at_once(30)
        return results, before, await census_of(before)

    results, before, after = asyncio.run(twice())
    kinds = [dict, rc.StageTimeoutError, Triggered, ValueError, asyncio.CancelledError]
    assert results == [(kind, True) for kind in kinds] * 6
    assert {what: n for what, n in after.items() if n > before[what] + 5} == {}
