"""`@serve.multiplexed` in a pipeline's process means what it means in a replica."""

import asyncio
from typing import Any

import pytest
from ray import serve
from starlette.testclient import TestClient
from support.composing import local
from support.stages import call

import raycompose as rc

# --- Models ---------------------------------------------------------------------------------------


class Models:
    """Keeps two models, and remembers what it loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    @serve.multiplexed(max_num_models_per_replica=2)  # type: ignore[untyped-decorator]
    async def model(self, model_id: str) -> str:
        self.loaded.append(model_id)
        await asyncio.sleep(0.01)
        if self.loaded == ["broken"]:
            raise OSError("not yet")
        return model_id.upper()

    async def one_by_one(self, ids: list[Any]) -> Any:
        return [await self.model(i) for i in ids], self.loaded

    async def at_once(self, ids: list[str]) -> Any:
        return await asyncio.gather(*map(self.model, ids)), self.loaded

    def current(self, x: Any) -> str:
        return str(serve.get_multiplexed_model_id())


def test_the_model_not_used_for_longest_goes() -> None:
    """A third model takes the place of the one that was used least recently."""
    models, loaded = local(Models, "one_by_one").call(["a", "b", "a", "c", "a", "b"])
    assert models == ["A", "B", "A", "C", "A", "B"]
    assert loaded == ["a", "b", "c", "b"]


def test_a_model_is_loaded_once_for_all_who_want_it() -> None:
    """Calls at once for one model wait for one loading."""
    assert local(Models, "at_once").call(["a", "a", "b", "a"]) == (["A", "A", "B", "A"], ["a", "b"])


def test_a_model_that_did_not_load_is_loaded_again() -> None:
    """A failed loading raises the loader's error, and is not kept."""
    client = local(Models, "one_by_one")
    with pytest.raises(OSError, match="not yet"):
        client.call(["broken"])
    assert client.call(["broken"]) == (["BROKEN"], ["broken", "broken"])
    with pytest.raises(TypeError, match="string"):
        client.call([7])


def test_the_model_id_is_there_in_every_kind_of_stage() -> None:
    """A ``def`` method, in its thread, and a function have the request's id; else it is empty."""

    async def current(x: Any) -> str:
        return str(serve.get_multiplexed_model_id())

    model = rc.stage(serve.deployment(Models).bind(), method="current")
    http = TestClient(rc.local(rc.parallel(model, current)).asgi)
    asked = http.post("/", json=1, headers={"serve_multiplexed_model_id": "m"})
    assert (asked.json(), http.post("/", json=1).json()) == (["m", "m"], ["", ""])


@serve.multiplexed  # type: ignore[untyped-decorator]
async def model_of_nobody(model_id: str) -> str:
    return model_id


def test_models_of_a_function_that_a_stage_calls_need_a_replica() -> None:
    """Ray would keep them, for the process, and tell a controller: it says that there is none."""

    async def asks(model_id: str) -> str:
        return str(await model_of_nobody(model_id))

    with pytest.raises(RuntimeError, match="within a deployment") as caught:
        call(rc.stage(asks, name="asks"), "m")
    assert rc.failed_stage(caught.value) == "asks"
