"""Run by test_references.py, on a cluster of its own where Ray Serve's default is gRPC."""

# mypy does not see what Ray's decorators add (.bind, .options, .remote), nor their types.
# mypy: disable-error-code="attr-defined, untyped-decorator"

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import ray
from ray import ObjectRef, serve
from ray.serve.handle import DeploymentHandle
from support.cluster import HERE, start_ray
from support.gate import build_gate, gate

import raycompose as rc

TIMEOUT_S = 30.0
here: dict[str, Any] = {**HERE, "max_ongoing_requests": 100}


class Refused(Exception):
    """What the stages here fail with."""


class Slow:
    async def __call__(self, value: Any) -> Any:
        await gate().wait.remote()
        if value == "fail":
            raise Refused(value)
        return value

    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i


class Eager:
    async def __call__(self, ref: rc.Ref[Any]) -> str:
        await gate().open.remote()
        return f"got {await ref}"

    async def listed(self, refs: list[ObjectRef[Any]]) -> str:
        await gate().open.remote()
        return f"got {await refs[0]}"

    async def shout(self, value: str) -> str:
        return f"{value}!"


class Ingress:
    def __init__(self, slow: DeploymentHandle[Any], eager: DeploymentHandle[Any]) -> None:
        self.slow: Any = slow
        self.eager: Any = eager

    async def __call__(self, value: Any) -> Any:
        refs = await rc.by_ref([self.slow.remote(value)])
        return await self.eager.listed.remote(refs)


@ray.remote(num_cpus=0)
def upper(text: str) -> str:
    return text.upper()


@ray.remote(num_cpus=0)
def slow_task(value: Any) -> Any:
    ray.get(gate().wait.remote())
    return value


@ray.remote(num_cpus=0)
def count_task(n: int) -> Iterator[int]:
    for i in range(n):  # noqa: UP028  # Ray sends values into it, which range(n) cannot take
        yield i


async def by_hand(slow: Any) -> dict[str, Any]:
    """Convert responses in this process."""
    found: dict[str, Any] = {}
    response = slow.remote("x")
    try:
        await response._to_object_ref()
    except RuntimeError as error:
        found["Ray's own conversion"] = type(error).__name__
    (ref,) = await rc.by_ref([response])
    await gate().open.remote()
    found["by_ref"] = [type(ref).__name__, await ref]
    call = slow.remote
    refs = await rc.by_ref({"a": [call(1), (call(2),)], "b": call(3)})
    found["structure"] = await rc.resolve(refs)
    found["to_object_ref"] = await upper.remote(await rc.to_object_ref(call("x")))
    items = await rc.to_object_ref_gen(slow.options(stream=True).count.remote(3))
    found["to_object_ref_gen"] = [await item async for item in items]
    return found


def by_hand_sync(slow: Any) -> dict[str, Any]:
    """Do the same without an event loop."""
    items = rc.to_object_ref_gen_sync(slow.options(stream=True).count.remote(3))
    return {
        "by_ref_sync": rc.resolve_sync(rc.by_ref_sync([slow.remote("x")])),
        "to_object_ref_sync": ray.get(upper.remote(rc.to_object_ref_sync(slow.remote("x")))),
        "to_object_ref_gen_sync": ray.get(list(items)),
    }


def piped(client: rc.Client) -> dict[str, Any]:
    """Call pipelines, with the gate closed before each."""

    def call(do: str, value: str = "value") -> Any:
        ray.get(gate().close.remote())
        return client.call({"do": do, "input": value}, timeout_s=TIMEOUT_S)

    names = ("inside a replica", "pipeline", "pipeline, listed", "pipeline, task first")
    found = {name: call(name) for name in names}
    try:
        call("pipeline", "fail")
    except Refused as error:
        found["failed upstream"] = [type(error).__name__, rc.failed_stage(error)]
    ray.get(gate().open.remote())
    found["task between"] = client.call({"do": "task between", "input": "value"})
    found["stream"] = list(client.stream({"do": "stream", "input": 3}))
    return found


def main() -> None:
    """Start a cluster, run every case and print what came out."""
    start_ray(num_cpus=4)
    held = build_gate()
    slow, eager = (serve.deployment(d, **here).bind() for d in (Slow, Eager))
    ingress = serve.deployment(Ingress, **here).bind(slow, eager)

    def given(*targets: Any) -> Any:
        return rc.pipeline(lambda asked: asked["input"], *targets)

    pipelines = {
        "inside a replica": given(ingress),
        "pipeline, listed": given(rc.stage(slow, name="listed"), rc.stage(eager, method="listed")),
        "pipeline, task first": given(slow_task, eager),
        "task between": given(
            rc.stage(slow, name="before"), upper, rc.stage(eager, method="shout")
        ),
        "stream": given(count_task, rc.stage(lambda x: x, name="same")),
        "pipeline": given(slow, eager),
    }
    client = rc.run(rc.switch("do", pipelines), name="app")
    handle: Any = serve.get_deployment_handle("Slow", app_name="app")
    found = {**asyncio.run(by_hand(handle)), **by_hand_sync(handle), **piped(client)}
    print(json.dumps(found), flush=True)
    del held
    ray.shutdown()


if __name__ == "__main__":
    main()
