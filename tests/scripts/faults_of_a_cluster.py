"""Run by test_faults.py: a cluster that loses Serve's controller, and then a node, under load.

Prints one JSON object: how many requests had which fate, by fault and way.
"""

# mypy does not see what Ray's decorators add: .bind.
# mypy: disable-error-code="attr-defined"

import json
import logging
import sys
import tempfile
from functools import partial
from typing import Any

import ray
from ray import serve
from ray._private import utils  # noqa: TID251  # nothing public keeps a cluster to itself
from ray.cluster_utils import Cluster
from support import load
from support.cluster import start_less, start_serve
from support.load import Asked, Load, Square, fronted
from support.waiting import until

import raycompose as rc

SOON = {"health_check_period_ms": 300, "health_check_failure_threshold": 5}
"""A node that is gone is noticed within seconds."""
SIZE = 300_000
"""Bytes of some results: too many to be sent along, they stay in their node's object store."""
WAYS = ("once", "again")


def pipeline(notes: str) -> rc.Pipeline[Any, Any]:
    """A stage with a replica on each of two nodes; the front is on the head node."""
    on_each: dict[str, Any] = {"num_cpus": 0, "resources": {"stage": 1}}
    options: dict[str, Any] = {"max_ongoing_requests": 16, "health_check_period_s": 0.5}
    square = serve.deployment(
        Square, name="Square", num_replicas=2, ray_actor_options=on_each, **options
    ).bind(notes)
    ways = {"once": rc.stage(square, name="Once"), "again": rc.stage(square, retry=5)}
    front = {"ray_actor_options": {"resources": {"head": 0.01}}}
    return rc.pipeline(rc.switch("way", ways), fronted).options(**front)


def ask(n: int) -> Asked:
    return {"way": WAYS[n % 2], "size": SIZE * (n // 2 % 2)}


def found(traffic: Load) -> dict[str, Any]:
    """What became of the requests, by way, and what the callers of those that failed saw."""
    failed = [r.answer for fate in ("honest", "bare", "lost") for r in traffic.of(fate)]
    return {"counts": {way: traffic.counts(way=way) for way in WAYS}, "failed": failed}


def is_another(controller: Any, pid: int) -> bool:
    """Whether the actor has another process by now."""
    try:
        return bool(ray.get(controller.get_pid.remote()) != pid)
    except ray.exceptions.RayActorError:  # between the two
        return False


def controller_dies(client: rc.Client, times: int) -> dict[str, Any]:
    """Kill Serve's controller while requests go on; Ray starts it again."""
    controller: Any = serve.context._global_client._controller
    traffic = Load(ask)
    with traffic.from_clients(*load.clients(client)):
        for _ in range(times):
            traffic.until_two("pid", set())
            restarted = partial(is_another, controller, ray.get(controller.get_pid.remote()))
            ray.kill(controller, no_restart=False)
            until(restarted)
        traffic.until_two("pid", set())
    return found(traffic)


def node_dies(client: rc.Client, cluster: Any, node: dict[str, Any], times: int) -> dict[str, Any]:
    """Remove the node that has one of the replicas while requests go on, and add another."""
    second = cluster.worker_nodes.copy().pop()
    traffic = Load(ask)
    with traffic.from_clients(*load.clients(client)):
        for _ in range(times):
            traffic.until_two("pid", set())
            cluster.remove_node(second, allow_graceful=False)
            until(lambda: sum(n["Alive"] for n in ray.nodes()) == 1)
            until(lambda: len(traffic.now("pid")) == 1)
            second = cluster.add_node(**node)
        traffic.until_two("pid", set())
    return found(traffic)


def main(times: int) -> None:
    """Let every fault happen so many times and print what came out."""
    node = {
        "num_cpus": 2,
        "object_store_memory": 200_000_000,
        "include_dashboard": False,
        "resources": {"stage": 1},
    }
    head = {**node, "resources": {"stage": 1, "head": 1}, "_system_config": SOON}
    start_less()
    # Else every ray.init on this machine that asks for a cluster of its own would join this one.
    utils.write_ray_address = lambda _: None
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    cluster.add_node(**node)
    # On one machine the nodes' proxies share the port, and a removed node's would take connections.
    start_serve(proxy_location="HeadOnly")
    with tempfile.TemporaryDirectory() as notes:
        client = rc.run(pipeline(notes))
        result = {"the controller dies": controller_dies(client, times)}
        result["a node is removed"] = node_dies(client, cluster, node, times)
        print(json.dumps(result), flush=True)
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
