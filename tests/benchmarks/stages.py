"""What the benchmarks deploy, and the best that is written for it in plain Ray Serve."""

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

OPTIONS: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": 100}


class Same:
    """A stage that returns its input."""

    async def __call__(self, value: Any) -> Any:
        return value


First = serve.deployment(**OPTIONS, name="First")(Same)
Second = serve.deployment(**OPTIONS, name="Second")(Same)
Third = serve.deployment(**OPTIONS, name="Third")(Same)


@serve.deployment(**OPTIONS)
class PassedOn:
    """The idiomatic chain: each response is passed on to the next call, the last is awaited."""

    def __init__(self, *stages: DeploymentHandle[Any]) -> None:
        self._stages = stages

    async def __call__(self, value: Any) -> Any:
        if isinstance(value, Request):
            value = await value.json()
        for stage in self._stages:
            value = stage.remote(value)
        return await value


@serve.deployment(**OPTIONS)
class EachAwaited:
    """The chain for those who have read Ray's source: gRPC (or not), each response awaited."""

    def __init__(self, *stages: DeploymentHandle[Any], by_reference: bool) -> None:
        self._stages = [stage.options(_by_reference=by_reference) for stage in stages]

    async def __call__(self, value: Any) -> Any:
        if isinstance(value, Request):
            value = await value.json()
        for stage in self._stages:
            value = await stage.remote(value)
        return value
