"""``raycompose build``: a Serve config, and a RayService manifest for KubeRay around it."""

import contextlib
import io
import os
import platform
import re
import sys
import tempfile
from pathlib import Path
from types import FunctionType
from typing import Any

import ray
import typer
import yaml
from ray.serve import scripts

from .building import build as build_app
from .building import hush_serve
from .loading import Problem, load, split
from .options import write


def build(path: str, app_dir: str, output: str | None, image: str | None, kuberay: bool) -> None:
    """Write the config that ``serve build`` makes of an application, or a manifest with it.

    Raises:
        Problem: It cannot be built, or the file cannot be written.
    """
    hush_serve()
    build_app(path, (), app_dir)  # says what is wrong in our words
    if isinstance(load(path, app_dir), FunctionType):
        raise Problem(
            f"{path} is a function, and `serve build` takes an application: give what it returns "
            f"a name in its module, as in app = {path.rpartition(':')[2]}({{}}), and build that"
        )
    text = serve_config(path, app_dir)
    if kuberay:
        module, _ = split(path)
        name = re.sub("[^a-z0-9]+", "-", module.lower()).strip("-")  # what Kubernetes accepts
        text = as_yaml(manifest(name, text, image))
    if output is None:
        typer.echo(text, nl=False)
    else:
        write(output, text)
        typer.echo(f"{output} is written.")


def serve_config(path: str, app_dir: str) -> str:
    """Return the config file that ``serve build`` writes for an application."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        arguments = [path, "--app-dir", app_dir, "--output-path", os.fspath(file)]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            scripts.build.main(arguments, standalone_mode=False)
        text = file.read_text()
    yaml.safe_load(text)
    return text


def manifest(name: str, config: str, image: str | None) -> dict[str, Any]:
    """Return a RayService resource that runs a Serve config.

    Args:
        name: The resource's name.
        config: The config, as YAML.
        image: The container image: Ray of this version, raycompose, and the application.
    """
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    arch = "-aarch64" if platform.machine() in ("arm64", "aarch64") else ""
    image = image or f"rayproject/ray:{ray.__version__}-{python}{arch}"
    ports = [(6379, "gcs"), (8265, "dashboard"), (10001, "client"), (8000, "serve")]
    head = _container("ray-head", image, {"cpu": "1", "memory": "4Gi"})
    head["ports"] = [{"containerPort": number, "name": port} for number, port in ports]
    worker = _container("ray-worker", image, {"cpu": "2", "memory": "4Gi"})
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name},
        "spec": {
            "serveConfigV2": config,
            "rayClusterConfig": {
                "rayVersion": ray.__version__,
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": {"spec": {"containers": [head]}},
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": 1,
                        "minReplicas": 1,
                        "maxReplicas": 4,
                        "rayStartParams": {},
                        "template": {"spec": {"containers": [worker]}},
                    }
                ],
            },
        },
    }


def _container(name: str, image: str, amounts: dict[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
    }


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def as_yaml(resource: dict[str, Any]) -> str:
    """Return a Kubernetes resource as a file, with what there is to fill in."""
    notes = (
        "# The image must hold Ray, raycompose and the application's modules; adapt the resources\n"
        "# of the workers to what the deployments ask for. Then: kubectl apply -f <this file>\n"
    )
    return notes + yaml.dump(resource, Dumper=_Dumper, sort_keys=False, width=100)
