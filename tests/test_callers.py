"""Which deployments may call others through Ray: told by what their code mentions."""

import asyncio
import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve
from ray.serve import Deployment
from ray.serve.handle import DeploymentHandle
from support import cluster

import raycompose as rc
from raycompose import _serve
from raycompose.compose.callers import may_call


@ray.remote  # type: ignore[untyped-decorator]  # Ray's
def task(x: Any) -> Any:
    return x


def helper(x: Any) -> Any:
    return task.remote(x)


def doubled(x: int) -> int:
    return x * 2


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class Settings:
    """A constructor's argument of the user's."""

    def __init__(self, found: Callable[[Any], Any]) -> None:
        self.found = found


class Quiet:
    """Calls nobody: NumPy, the standard library, own functions, Serve's decorators, our errors."""

    def __init__(self, settings: Any = None) -> None:
        self.settings = settings

    @serve.batch  # type: ignore[untyped-decorator]  # Ray's
    async def batched(self, xs: list[Any]) -> list[Any]:
        return [np.asarray(x).sum() for x in xs]

    @serve.multiplexed  # type: ignore[untyped-decorator]  # Ray's
    async def model(self, name: str) -> str:
        return name

    async def __call__(self, x: Any) -> Any:
        if x is None:
            raise rc.HTTPError(422, "no value")
        task = await self.model(serve.get_multiplexed_model_id())  # another name than the task's
        await asyncio.sleep(0)
        return [json.dumps(doubled(x)), task, ray.get(ray.put(x))]


class Calls:
    def __call__(self, x: Any) -> Any:
        return task.remote(x)


class Helped:
    def __call__(self, x: Any) -> Any:
        return helper(x)


class Derived(Helped):
    pass


class Inside:
    def __call__(self, xs: Any) -> Any:
        return [(lambda x: helper(x))(x) for x in xs]


class Imports:
    def __call__(self, x: Any) -> Any:
        import ray as another_name

        return another_name.get_actor(x)


class Looks:
    def __call__(self, x: Any) -> Any:
        return serve.get_app_handle("other").remote(x)


class Hidden:
    def __call__(self, x: str) -> Any:
        return eval(x)


class Takes:
    def __init__(self, other: DeploymentHandle[Any]) -> None:
        self.other = other

    def __call__(self, x: Any) -> Any:
        return x


class Decorated:
    @decorated
    def __call__(self, x: Any) -> Any:
        return helper(x)


class Elsewhere:
    def __call__(self, x: Any) -> Any:
        return cluster.start_serve(port=x)


def bound(definition: Any, *args: Any) -> Deployment:
    return _serve.deployment_of(serve.deployment(definition).bind(*args))


@pytest.mark.parametrize(
    "definition", [Quiet, doubled, decorated(doubled)], ids=["class", "def", "wrapped"]
)
def test_what_mentions_nothing_of_rays_calls_nobody(definition: Any) -> None:
    """Names of attributes and Serve's own decorators say nothing."""
    assert not may_call(bound(definition))


@pytest.mark.parametrize("argument", [3, {"a": [1.5, np.zeros(3)]}, Settings(doubled), doubled])
def test_arguments_that_call_nobody(argument: Any) -> None:
    """What a constructor is given is looked at, too."""
    assert not may_call(bound(Quiet, argument))


@pytest.mark.parametrize(
    "definition",
    [Calls, Helped, Derived, Inside, Imports, Looks, Hidden, Decorated, Elsewhere, helper],
)
def test_what_mentions_rays_calls_may_call(definition: Any) -> None:
    """A task, in a helper, a base, a lambda, behind a decorator; a handle; code not to be seen."""
    assert may_call(bound(definition))


@pytest.mark.parametrize(
    "argument",
    [task, helper, Settings(helper), [functools.partial(helper, 1)], rc.pipeline(doubled).embed()],
    ids=["a task", "a function", "in an object", "a partial", "a pipeline"],
)
def test_arguments_that_may_call(argument: Any) -> None:
    """So may what a constructor is given."""
    assert may_call(bound(Quiet, argument))


def test_a_deployment_that_is_given_another_may_call_it() -> None:
    """A bound application becomes a handle."""
    assert may_call(bound(Takes, serve.deployment(Quiet).bind()))


def test_an_argument_that_holds_too_much_may_call() -> None:
    """Nobody waits for millions of objects to be looked at."""
    assert may_call(bound(Quiet, [[n] for n in range(10_000)]))
