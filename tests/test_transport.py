"""How values travel between replicas: by gRPC when they are small, by Ray's object store else.

A NumPy array tells the way it came: from the object store it is read-only.
"""

# mypy does not see what Ray's decorators add: .bind.
# mypy: disable-error-code="attr-defined"

import asyncio
import contextlib
import os
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from fastapi import HTTPException
from ray import serve
from support import pickle_by_value
from support.cluster import HERE, Deploy
from support.waiting import until

import raycompose as rc

pickle_by_value(__name__)

here: dict[str, Any] = {**HERE, "max_ongoing_requests": 100}


class Held(Exception):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


class Keywords(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


def touch(file: str) -> None:
    with Path(file).open("a") as log:
        log.write("ran\n")


@serve.deployment(**here)
class First:
    """Makes what it is told to, and counts what it was asked for."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()

    async def __call__(self, call: dict[str, Any]) -> Any:
        self.ran[call["id"]] += 1
        return await getattr(self, call.get("make", "array"))(call)

    async def array(self, call: dict[str, Any]) -> Any:
        return np.full(call["size"] // 8, 1.0)

    async def text(self, call: dict[str, Any]) -> Any:
        return "x" * call["size"]

    async def number(self, call: dict[str, Any]) -> Any:
        return 1 << call["size"] * 8  # looks light, and is not

    async def reference(self, call: dict[str, Any]) -> Any:
        return {"ref": ray.put(call["size"])}

    async def keywords(self, call: dict[str, Any]) -> Any:
        raise Keywords(code=call["size"])

    async def http(self, call: dict[str, Any]) -> Any:
        raise HTTPException(status_code=409, detail={"size": call["size"]})

    async def held(self, call: dict[str, Any]) -> Any:
        raise Held

    async def cancelled(self, call: dict[str, Any]) -> Any:
        raise asyncio.CancelledError

    async def lock(self, call: dict[str, Any]) -> Any:
        return threading.Lock()

    async def sleep(self, call: dict[str, Any]) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            touch(call["file"])

    async def die(self, call: dict[str, Any]) -> Any:
        touch(call["file"])
        os._exit(1)

    async def times(self, ids: list[str]) -> list[int]:
        return [self.ran[one] for one in ids]


@serve.deployment(**here)
class Second:
    """Tells the size of what came, and how it came."""

    async def __call__(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return {"size": value.nbytes, "by grpc": value.flags.writeable}
        if isinstance(value, dict):
            return {"size": await value["ref"]}
        if isinstance(value, int):
            return {"size": value.bit_length() // 8}
        return {"size": len(value)}


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]  # Ray's
def task(x: Any) -> Any:
    return x


@serve.deployment(**here)
class Asks:
    """Tells how its input came, and may call a task."""

    async def __call__(self, value: Any) -> Any:
        if value is None:
            return await task.remote(value)
        return {"by grpc": value.flags.writeable}


@serve.deployment(**here)
class Mirror:
    """Gives back what it gets, which makes requests as large as responses."""

    async def __call__(self, call: dict[str, Any]) -> dict[str, Any]:
        return call


@pytest.fixture(scope="module")
def client(deploy: Deploy) -> rc.Client:
    first = First.bind()
    return deploy(
        rc.switch(
            "do",
            {
                "chain": rc.pipeline(first, Second.bind()),
                "asks": rc.pipeline(first, Asks.bind()),
                "back": rc.pipeline(Mirror.bind(), Mirror.options(name="Further").bind()),
                "times": rc.pipeline(lambda call: call["ids"], rc.stage(first, method="times")),
            },
        ).options(max_ongoing_requests=100)
    )


_ids = iter(range(10**9))


def chain(client: rc.Client, size: int, make: str = "array", **more: Any) -> Any:
    call = {"do": "chain", "id": f"{make} {next(_ids)}", "size": size, "make": make, **more}
    return client.call(call, timeout_s=60)


def learned(client: rc.Client) -> None:
    """Have the pipeline know that what the first stage returns is small."""
    until(lambda: chain(client, 800)["by grpc"])


def test_small_values_go_by_grpc_and_large_ones_do_not(client: rc.Client) -> None:
    """From the second request of a size on each value travels the way that is best for it."""
    for size in (8_000, 80_000, 8_000_000, 80_000, 2_000_000, 8_000):
        chain(client, size)
        assert chain(client, size) == {"size": size, "by grpc": size < 500_000}


def test_what_may_call_others_is_not_called_by_grpc(client: rc.Client) -> None:
    """Ray cancels what a task of its own has called, and what a call by gRPC has called runs on."""
    learned(client)
    for _ in range(3):
        call = {"do": "asks", "id": f"asks {next(_ids)}", "size": 800}
        assert client.call(call, timeout_s=60) == {"by grpc": False}


@pytest.mark.parametrize("make", ["array", "text", "number"])
def test_any_size_arrives_and_no_stage_runs_twice(client: rc.Client, make: str) -> None:
    """Sizes that grow and shrink from one request to the next, sixteen at once."""
    seeded = random.Random(make)
    sizes = [1000, 5_000_000, 20_000_000, 4_200_000, 4_190_000, 3_000_000, 1000, 600_000, 400_000]
    sizes = seeded.sample(sizes * 5, 45)
    calls = [
        {"do": "chain", "id": f"{make} {next(_ids)}", "size": size, "make": make} for size in sizes
    ]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda call: client.call(call, timeout_s=60), calls))
    assert all(abs(r["size"] - size) < 8 for r, size in zip(results, sizes, strict=True))
    times = client.call({"do": "times", "ids": [call["id"] for call in calls]})
    assert times == [1] * len(calls)


def test_requests_of_any_size_arrive(client: rc.Client) -> None:
    """What a replica refuses as too large for gRPC is sent again, through the object store."""
    for size in (10, 5_000_000, 10, 4_194_304, 10, 30_000_000, 10):
        number = 1 << size * 8
        assert client.call({"do": "back", "value": number}, timeout_s=60)["value"] == number
        text = "é" * size  # two bytes each
        assert client.call({"do": "back", "value": text}, timeout_s=60)["value"] == text


def test_results_that_hold_references_keep_to_ray(client: rc.Client) -> None:
    """A result with an ObjectRef inside arrives whole, also behind small ones; then Ray keeps it.

    Pickled into a message of gRPC, an ObjectRef pins what it refers to for good.
    """
    learned(client)
    for n in range(5):
        assert chain(client, n, "reference") == {"size": n}
    assert not chain(client, 80_000)["by grpc"]  # what it returned once it may return again


@pytest.fixture
def known(deploy: Deploy) -> rc.Client:
    """A pipeline of its own: what it learns is its own."""
    made = deploy(
        rc.pipeline(rc.stage(First.bind(), name="first")).options(max_ongoing_requests=100)
    )
    for _ in range(2):
        made.call({"id": "learn", "size": 10, "make": "text"})
    return made


def test_exceptions_by_grpc_are_the_users_own(known: rc.Client) -> None:
    """Exceptions arrive as through the object store, whatever their constructors ask for."""

    def raised(make: str) -> Any:
        with pytest.raises(Exception) as caught:  # noqa: PT011  # looked at below
            known.call({"id": make, "size": 7, "make": make}, timeout_s=30)
        assert rc.failed_stage(caught.value) == "first", caught.value
        return caught.value

    keywords = raised("keywords")
    assert isinstance(keywords, Keywords)
    assert keywords.code == 7
    http = raised("http")
    assert (http.status_code, http.detail) == (409, {"size": 7})
    assert "lock" in str(raised("lock"))
    held = raised("held")
    assert "the log of the stage's replica has its traceback" in str(held)
    assert "held" in str(raised("held"))  # from then on as Ray itself sends it
    raised("cancelled")


def test_a_call_by_grpc_is_cancelled(known: rc.Client, tmp_path: Path) -> None:
    """A deadline that passes cancels the method that runs, wherever the call is on its way."""
    file = tmp_path / "cancelled"
    with pytest.raises(TimeoutError):
        known.call({"id": "s", "size": 0, "make": "sleep", "file": str(file)}, timeout_s=0.5)
    until(file.exists)


def test_a_replica_that_dies_in_a_call_by_grpc(known: rc.Client, tmp_path: Path) -> None:
    """It is an error that says so and names the stage; the method ran once; then all is well."""
    file = tmp_path / "ran"
    with pytest.raises(Exception, match=r"unavailable|died|no answer") as caught:
        known.call({"id": "d", "size": 0, "make": "die", "file": str(file)}, timeout_s=60)
    assert rc.failed_stage(caught.value) == "first"
    assert file.read_text() == "ran\n"

    def again() -> bool:
        with contextlib.suppress(Exception):  # while Ray Serve starts another replica
            call = {"id": "again", "size": 10, "make": "text"}
            return bool(known.call(call, timeout_s=10) == "x" * 10)
        return False

    until(again, within_s=60)
