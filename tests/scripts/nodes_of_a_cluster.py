"""Run by test_nodes_of_a_cluster.py: a cluster of two nodes, then of three, then of two again.

Prints one JSON object: what came out, by case.
"""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import ObjectRef, serve
from ray._private import utils  # noqa: TID251  # nothing public keeps a cluster to itself
from ray.cluster_utils import Cluster
from support.cluster import start_less, start_serve
from support.gate import build_gate, gate
from support.waiting import until

import raycompose as rc

TIMEOUT_S = 30.0
SIZE = 2_000_000
"""Bytes of a value: it stays in the object store of the node that made it."""
NOTICE_SOON = {"health_check_period_ms": 300, "health_check_failure_threshold": 5}
"""A node that is gone is noticed within seconds."""

Value = dict[str, Any]


def here() -> str:
    """The node that this runs on."""
    found: str = ray.get_runtime_context().get_node_id()
    return found


def made() -> Value:
    return {"way": [here()], "data": bytes(SIZE)}


def passed(value: Value) -> Value:
    return {"way": [*value["way"], here()], "data": value["data"]}


def taken(value: Value) -> Value:
    return {"way": [*value["way"], here()], "size": len(value["data"])}


class Node:
    """The stages, on whichever node they are pinned to."""

    async def make(self, _: Any) -> Value:
        return made()

    async def gated(self, _: Any) -> Value:
        await gate().wait.remote()
        return made()

    async def up_to(self, n: int) -> AsyncIterator[Value]:
        for _ in range(n):
            yield made()

    async def forward(self, value: Value) -> Value:
        return passed(value)

    async def forward_ref(self, ref: rc.Ref[Value]) -> Value:
        return passed(await ref)

    async def take(self, value: Value) -> Value:
        return taken(value)

    async def take_ref(self, ref: rc.Ref[Value]) -> Value:
        await gate().open.remote()
        return taken(await ref)

    async def take_list(self, refs: list[ObjectRef[Value]]) -> Value:
        await gate().open.remote()
        return taken(await refs[0])

    async def take_stream(self, items: rc.Stream[Value]) -> AsyncIterator[Value]:
        async for item in items:
            yield taken(item)

    async def take_late(self, ref: rc.Ref[Value]) -> Value:
        """Take the result only after the gate, at which it arrives when the result is there."""
        await asyncio.to_thread(ray.wait, [ref.object_ref], fetch_local=False)
        await gate().wait.remote()
        return taken(await ref)


def pinned(node: str) -> Any:
    """A deployment on a node."""
    options = {"num_cpus": 0, "resources": {node: 0.01}}
    deployment = serve.deployment(Node, name=f"On_{node}", ray_actor_options=options)
    return deployment.options(graceful_shutdown_timeout_s=0).bind()


def make_on(node: str) -> Any:
    """A task on a node, that Ray does not run again."""
    return ray.remote(num_cpus=0, resources={node: 0.01}, max_retries=0)(lambda _: made())


def to(app: Any, method: str) -> Any:
    return rc.stage(app, method=method)


def ways(first: Any, second: Any, third: Any, task: Any) -> dict[str, Any]:
    """Pipelines between deployments and tasks on different nodes."""
    return {
        "by value": rc.pipeline(to(first, "make"), to(second, "take")),
        "by reference": rc.pipeline(to(first, "gated"), to(second, "take_ref")),
        "in a list": rc.pipeline(to(first, "gated"), to(second, "take_list")),
        "value chain": rc.pipeline(to(first, "make"), to(second, "forward"), to(third, "take")),
        "reference chain": rc.pipeline(
            to(first, "gated"), to(second, "forward_ref"), to(third, "take_ref")
        ),
        "task": rc.pipeline(task, to(second, "take")),
        "task by reference": rc.pipeline(task, to(second, "take_ref")),
        "stream": rc.pipeline(to(first, "up_to"), to(second, "take_stream"), rc.collect),
        "late": rc.pipeline(rc.stage(first, method="make", name="first"), to(second, "take_late")),
    }


def run(name: str, pipelines: dict[str, Any]) -> rc.Client:
    """Deploy pipelines as one application, fronted from the head node."""
    given = {k: rc.pipeline(lambda asked: asked["input"], p) for k, p in pipelines.items()}
    front = {"ray_actor_options": {"resources": {"head": 0.01}}}
    return rc.run(rc.switch("do", given).options(**front), name=name, route_prefix=None)


def by_hand(name: str, makes: str, takes: str) -> Value:
    """Pass a response inside a list, from this process."""
    first: Any = serve.get_deployment_handle(f"On_{makes}", app_name=name)
    second: Any = serve.get_deployment_handle(f"On_{takes}", app_name=name)
    refs = rc.by_ref_sync([first.make.remote(None)])
    value: Value = rc.resolve_sync(second.take_list.remote(refs))
    return value


def every_way(client: rc.Client, hand: Callable[[], Value]) -> dict[str, Any]:
    """Which nodes the value has been on, in each of the pipelines."""
    label = {
        node["NodeID"]: name
        for node in ray.nodes()
        for name in ("head", "left", "right")
        if name in node["Resources"]
    }

    def seen(value: Value) -> list[Any]:
        return [*(label[node] for node in value["way"]), value["size"]]

    def call(do: str) -> list[Any]:
        ray.get(gate().close.remote())
        result = client.call({"do": do, "input": 2}, timeout_s=TIMEOUT_S)
        return [seen(one) for one in result] if isinstance(result, list) else seen(result)

    names = ("by value", "by reference", "in a list", "value chain", "reference chain", "task",
             "task by reference", "stream")  # fmt: skip
    return {**{name: call(name) for name in names}, "by hand": seen(hand())}


def failure(function: Callable[[], Any]) -> dict[str, Any]:
    """What a call raises, and that it does so in time."""
    started = time.monotonic()
    try:
        value = function()
    except Exception as error:
        return {
            "types": [kind.__name__ for kind in type(error).__mro__],
            "text": "\n".join([str(error), *getattr(error, "__notes__", ())]),
            "stage": rc.failed_stage(error),
            "in time": time.monotonic() - started < TIMEOUT_S,
        }
    return {"value": str(value)[:100]}


def lost(cluster: Any, node: Any, client: rc.Client) -> dict[str, Any]:
    """Remove a node that holds results, of a call, of a task and of a stage, and take them."""
    right: Any = serve.get_deployment_handle("On_right", app_name="three")
    of_call = rc.to_object_ref_sync(right.make.remote(None))
    of_task = make_on("right").remote(None)
    ray.wait([of_call, of_task], num_returns=2, timeout=TIMEOUT_S, fetch_local=False)
    ray.get(gate().close.remote())
    with ThreadPoolExecutor() as pool:
        asked = {"do": "late", "input": None}
        late = pool.submit(failure, lambda: client.call(asked, timeout_s=2 * TIMEOUT_S))
        until(lambda: ray.get(gate().waiting.remote()) == 1)
        cluster.remove_node(node, allow_graceful=False)
        until(lambda: sum(n["Alive"] for n in ray.nodes()) == 2)
        ray.get(gate().open.remote())
        return {
            "of a call": failure(lambda: rc.resolve_sync([of_call])),
            "of a task": failure(lambda: rc.resolve_sync({"x": of_task})),
            "with result()": failure(
                lambda: rc.from_object_ref(of_call).result(timeout_s=TIMEOUT_S)
            ),
            "of a stage": late.result(timeout=2 * TIMEOUT_S),
        }


def main() -> None:
    """Run every case and print what came out."""
    node = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
    head = {**node, "resources": {"head": 1}, "_system_config": NOTICE_SOON}
    start_less()
    # Else every ray.init on this machine that asks for a cluster of its own would join this one.
    utils.write_ray_address = lambda _: None
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    cluster.add_node(**node, resources={"left": 1})
    start_serve()
    held = build_gate(resources={"head": 0.01})
    found = {}
    on_head, on_left = pinned("head"), pinned("left")
    client = run("two", ways(on_left, on_head, on_left, make_on("left")))
    found["two nodes"] = every_way(client, lambda: by_hand("two", "left", "head"))
    client.close()
    third = cluster.add_node(**node, resources={"right": 1})
    on_head, on_left, on_right = (pinned(name) for name in ("head", "left", "right"))
    client = run("three", ways(on_right, on_head, on_left, make_on("right")))
    found["three nodes"] = every_way(client, lambda: by_hand("three", "right", "head"))
    found["lost"] = lost(cluster, third, client)
    print(json.dumps(found), flush=True)
    del held
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
