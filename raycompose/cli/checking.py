"""``raycompose check``: the graph, what it asks for, and what there is, without starting it."""

import logging
import os
from collections import Counter
from pathlib import Path

import typer
from ray.serve import Application

from raycompose import Pipeline, _serve
from raycompose.client import cluster
from raycompose.show.wording import resources, scale

from .announcing import requests
from .building import build, hush_serve
from .loading import Problem


def check(path: str, arguments: tuple[str, ...], app_dir: str, address: str | None) -> None:
    """Build an application, and print what it is.

    Raises:
        Problem: It cannot be built, or the cluster does not answer.
    """
    hush_serve()
    app = build(path, arguments, app_dir)
    lines = compared(asked_for(app), *_available(address))
    typer.echo(f"{_tree(app)}\n")
    for line in lines:
        typer.secho(line, fg="yellow" if "too few" in line else None)
    typer.echo("\nA request:")
    for line in requests(app, "http://127.0.0.1:8000/"):
        typer.echo(f"  {line}")


def _tree(app: Application) -> str:
    if isinstance(app, Pipeline):
        return str(app.graph)
    deployments = _serve.build(app, "default").deployments
    said = (" · ".join(scale({"replicas": d.num_replicas})) for d in deployments)
    return "\n".join(f"{d.name}  {s}" for d, s in zip(deployments, said, strict=True))


def asked_for(app: Application) -> Counter[str]:
    """Return what all replicas ask for together, at most, by Ray's names."""
    asked: Counter[str] = Counter()
    for deployment in _serve.build(app, "default").deployments:
        config = _serve.autoscaling_config(deployment)
        replicas = config.max_replicas if config else deployment.num_replicas
        options = deployment.ray_actor_options or {}
        cpus = options.get("num_cpus")
        needs = {"CPU": 1 if cpus is None else cpus, "GPU": options.get("num_gpus") or 0}
        needs["memory"] = options.get("memory") or 0
        for name, amount in {**needs, **(options.get("resources") or {})}.items():
            asked[name] += amount * replicas
    return Counter({name: amount for name, amount in asked.items() if amount})


def compared(asked: Counter[str], has: dict[str, float], where: str, elastic: bool) -> list[str]:
    """Return a line for each resource: how much is asked for, and how much there is.

    Args:
        asked: By Ray's names.
        has: What there is.
        where: Whose it is.
        elastic: Whether CPUs are counted up to what is asked for, as ``raycompose run`` does.
    """
    lines = []
    for name, amount in asked.items():
        there = has.get(name, 0)
        word, of = resources({name: amount})[0], resources({name: there})[0]
        if amount <= there:
            lines.append(f"{word} asked for, {where} has {of}")
        elif name == "CPU" and elastic:
            lines.append(f"{word} asked for, {where} has {of}: `raycompose run` starts Ray with "
                         f"{amount:g} logical ones")  # fmt: skip
        else:
            lines.append(f"{word} asked for, {where} has {of}: too few, replicas would wait")
    return lines or ["No resources are asked for."]


def _available(address: str | None) -> tuple[dict[str, float], str, bool]:
    """What there is, whose it is, and whether its CPUs are counted up."""
    if address is None:
        gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        has = {"CPU": os.cpu_count() or 1, "GPU": gpus, "memory": memory}
        return dict(has), "this machine", True
    import ray

    try:
        found = cluster.cluster_to_join(address)
        ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise Problem(str(error)) from error
    has = ray.cluster_resources()
    ray.shutdown()
    return has, f"the cluster at {found}", False
