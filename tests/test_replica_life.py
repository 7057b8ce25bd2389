"""Starting, configuring and ending a hosted stage mean what they mean in a replica."""

import asyncio
import threading
from typing import Any, ClassVar

import pytest
from ray import serve
from starlette.testclient import TestClient
from support.composing import local
from support.stages import call

import raycompose as rc

# --- Configuration and life -----------------------------------------------------------------------


class Configured:
    """Remembers each configuration, and where it runs."""

    def __init__(self) -> None:
        here = serve.get_replica_context()
        self.seen: list[Any] = [here.deployment, here.rank.rank, here.world_size]
        self.loop = asyncio.get_event_loop()
        self.task = self.loop.create_task(self.note("in the background"))

    async def note(self, what: str) -> None:
        self.seen.append(what)

    async def reconfigure(self, config: Any) -> None:
        if config == "refused":
            raise ValueError(config)
        self.seen.append(config)

    async def __call__(self, x: Any) -> list[Any]:
        await self.task
        return [*self.seen, asyncio.get_running_loop() is self.loop]

    def in_a_thread(self, x: Any) -> str:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return threading.current_thread().name


@pytest.mark.parametrize("config", [{}, {"a": {"b": [1]}}, "text", 0], ids=str)
def test_a_config_is_given_before_the_first_call(config: Any) -> None:
    """Whatever is no ``None`` is given, awaited, once; a constructor has its context and loop."""
    seen = local(Configured, user_config=config, name="Named").call(1)
    assert seen[:3] == ["Named", 0, 1]
    assert sorted(map(str, seen[3:-1])) == sorted(map(str, [config, "in the background"]))
    assert seen[-1] is True


def test_a_def_method_has_a_thread_without_a_loop() -> None:
    """A ``def`` method may block: it runs beside the loop that the constructor saw."""
    assert local(Configured, "in_a_thread").call(1) != threading.current_thread().name


class Mortal:
    ended: ClassVar[list[str]] = []

    def __call__(self, x: Any) -> Any:
        return x

    def __del__(self) -> None:
        self.ended.append("torn down")


class Stillborn:
    def __init__(self) -> None:
        raise ValueError("not born")

    def __call__(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    ("definition", "options", "message"),
    [
        (Stillborn, {}, "not born"),
        (Configured, {"user_config": "refused"}, "refused"),
        (Stillborn.__call__, {"user_config": 1}, "must be a class"),
    ],
)
def test_what_does_not_start_says_why(definition: Any, options: Any, message: str) -> None:
    """A constructor's or ``reconfigure``'s own error is raised where the client is made."""
    with pytest.raises(ValueError, match=message):
        local(definition, **options)


def test_what_has_started_is_torn_down_when_another_does_not() -> None:
    """A deployment beside one that cannot be constructed does not outlive the attempt."""
    Mortal.ended.clear()
    with pytest.raises(ValueError, match="not born"):
        rc.local(rc.pipeline(serve.deployment(Mortal).bind(), serve.deployment(Stillborn).bind()))
    assert Mortal.ended == ["torn down"]


def test_a_function_without_parameters() -> None:
    """It is called with nothing, over HTTP whatever is sent; an argument by handle is an error."""

    def hello() -> str:
        return "hello"

    client = rc.local(serve.deployment(hello).bind())
    http = TestClient(client.asgi)
    assert [client.call(), http.get("/").text, http.post("/", json=1).text] == ["hello"] * 3
    with pytest.raises(TypeError, match="positional argument"):
        client.call(1)


class Child:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> str:
        return self.name


class Parent:
    """Its constructor is given handles inside of objects, and calls one of them."""

    async def __init__(self, by_name: dict[str, Any], *, more: list[Any]) -> None:  # type: ignore[misc]
        self.by_name, self.more = by_name, more
        self.first = await more[0].remote()

    async def __call__(self, name: str) -> list[str]:
        return [self.first, await self.by_name[name].remote(), await self.more[0].remote()]


def test_handles_inside_of_arguments() -> None:
    """Applications in dicts and lists are handles; one that occurs twice is one; they are ready."""
    one, other = (serve.deployment(Child, name=n).bind(n) for n in ("one", "other"))
    parent = serve.deployment(Parent).bind({"one": one, "other": other}, more=[one])
    assert call(parent, "other") == ["one", "other", "one"]
