"""Run as ``python -m benchmarks.serving TOPIC SETTINGS``: deploys a topic's apps, and measures.

It reads a line of JSON for each measurement and answers with one; it ends with its input.
"""

import asyncio
import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

from benchmarks import load
from benchmarks.samples import Sample
from benchmarks.sites import Settings, free_port


@contextmanager
def deployed(topic: ModuleType, settings: Settings) -> Iterator[dict[str, Any]]:
    """Run a topic's applications on a Ray of their own; give a client of each, by name."""
    import ray
    from ray import serve

    import raycompose as rc
    from raycompose.client import fast

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with fast.environment() if settings == "fast" else nullcontext():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **getattr(topic, "RAY_OPTIONS", {}),
        )
    try:
        serve.start(http_options={"port": free_port()})
        apps = topic.apps()
        serve.run_many([serve.RunTarget(app, name, f"/{name}") for name, app in apps.items()])
        yield {name: rc.connect(name) for name in apps}
    finally:
        serve.shutdown()
        ray.shutdown()


def measured(topic: ModuleType, clients: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Measure what was asked for."""
    measure = getattr(topic, asked["measure"], None) or getattr(load, asked["measure"])
    given = [clients[asked["way"]]] if clients else [asked["way"]]
    try:
        sample: Sample = asyncio.run(measure(*given, **asked["arguments"]))
    except Exception:
        return {"error": traceback.format_exc()}
    return sample.to_dict()


def main(topic_name: str, settings: Settings) -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Ray's processes write to stdout at any time
    topic = importlib.import_module(f"benchmarks.{topic_name}")
    alone: AbstractContextManager[dict[str, Any]] = nullcontext({})
    with deployed(topic, settings) if settings != "no ray" else alone as clients:
        urls = {name: client.url for name, client in clients.items()}
        print(json.dumps({"urls": urls}), file=answers)
        for line in sys.stdin:
            print(json.dumps(measured(topic, clients, json.loads(line))), file=answers)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])  # type: ignore[arg-type]  # what sites.py passes
