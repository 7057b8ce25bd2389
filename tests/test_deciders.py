"""What decides in branches and loops: coroutines, deployments, and what cannot."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined, untyped-decorator, no-untyped-call"

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from ray import serve
from support import pickle_by_value
from support.cluster import Deploy
from support.waiting import PATIENCE_S

import raycompose as rc

pickle_by_value(__name__)


# Deciders


async def is_odd(x: int) -> bool:
    await asyncio.sleep(0)
    return x % 2 == 1


async def parity(x: int) -> str:
    return "odd" if x % 2 else "even"


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Language:
    async def __call__(self, text: str) -> str:
        return "es" if "hola" in text else "fr"


def test_an_async_decider_is_awaited() -> None:
    """``async def`` predicates, keys of a switch and keys of a split decide by their result."""
    call = rc.local(
        rc.parallel(
            when=rc.when(is_odd, lambda x: "odd", lambda x: "even"),
            switch=rc.switch(parity, {"odd": lambda x: "odd", "even": lambda x: "even"}),
            split=rc.split((lambda x: "a", 50), (lambda x: "b", 50), key=parity),
        )
    ).call
    one, two = call(1), call(2)
    assert (one["when"], one["switch"]) == ("odd", "odd")
    assert (two["when"], two["switch"]) == ("even", "even")
    assert [call(n)["split"] for n in (1, 3, 5)] == [one["split"]] * 3


@pytest.mark.parametrize("engine", ["local", "fused", "distributed"])
def test_a_deployment_decides(deploy: Deploy, engine: str) -> None:
    """A stage's result for the value chooses the branch, which gets the value itself."""
    app = rc.switch(
        Language.bind(),
        {"es": lambda text: f"es: {text}", "fr": rc.when(Language.bind(), lambda t: f"fr: {t}")},
    )
    client = {
        "local": lambda: rc.local(app),
        "fused": lambda: deploy(app.fuse()),
        "distributed": lambda: deploy(app),
    }[engine]()
    assert client.call("hola", timeout_s=PATIENCE_S) == "es: hola"
    assert client.call("salut", timeout_s=PATIENCE_S) == "fr: salut"


def _numbers(x: int) -> Iterator[int]:
    yield x


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda: rc.when(_numbers, is_odd), "must return one value"),
        (lambda: rc.switch(lambda: 1, {1: is_odd}), "takes no argument"),
        (lambda: rc.split((is_odd, 100), key=lambda a, b: a), "also requires b"),
        (lambda: rc.switch(rc.stage(_numbers), {1: is_odd}), "streams"),
        (lambda: rc.when(3, is_odd), "a function of the value, or a target that decides"),
        (lambda: rc.when("kind", is_odd), r"by a key of the value: lambda value: value\['kind'\]"),
        (lambda: rc.loop(is_odd, until="done"), r"lambda value: value\['done'\]"),
        (lambda: rc.when(True, is_odd), "decides: not a stage: got True"),
    ],
)
def test_what_cannot_decide_is_refused(compose: Any, message: str) -> None:
    """It is refused where it is composed, with what was got."""
    with pytest.raises(rc.CompositionError, match=message):
        compose()
