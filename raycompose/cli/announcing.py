"""What is said when applications are up: where they answer, and a request to paste."""

from typing import Any

import typer

from raycompose import Pipeline, _serve
from raycompose.client import cluster

from . import samples
from .building import Named


def announce(apps: list[Named], *, blocking: bool) -> None:
    """Say what runs, where, and how to call it."""
    for named in apps:
        url = cluster.url_of(named.name)
        what = describe(named.app)
        heading = what if len(apps) == 1 else f"{named.name}: {what}"
        typer.secho(f"\n{heading} is up", bold=True)
        if url is None:
            typer.echo("It has no route prefix: call it through rc.connect() or its handle.")
            continue
        typer.echo(f"  {url}\n")
        for line in requests(named.app, url):
            typer.echo(f"  {line}")
        typer.echo()
    if blocking:
        typer.echo("Ctrl-C ends it.")


def describe(app: Any) -> str:
    """Return what an application is called: a pipeline by its stages, another by its name."""
    return repr(app) if isinstance(app, Pipeline) else _serve.deployment_of(app).name


def requests(app: Any, url: str) -> list[str]:
    """Return the lines to paste: a request to a pipeline, or the routes of a FastAPI ingress."""
    if not isinstance(app, Pipeline):
        routes = _serve.routes_of(_serve.deployment_of(app))
        if routes:
            return [f"{method:7}{url.rstrip('/')}{path}" for method, path in routes]
    return [samples.curl(app, url)]
