"""The commands and their options; what they do is elsewhere, and imported when they run."""

import sys
from typing import Annotated

import typer

app = typer.Typer(
    name="raycompose",
    help="Composition for Ray Serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Makes Typer keep `run` a command although it is the only one."""


@app.command()
def run(
    target: Annotated[
        str,
        typer.Argument(
            help="What to run: MODULE:ATTRIBUTE, an application or a function that returns one; "
            "or a Serve config file."
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Arguments for a function that is called."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    name: Annotated[str, typer.Option(help="Name of the application.")] = "default",
    route_prefix: Annotated[str, typer.Option(help="Path it answers below.")] = "/",
    app_dir: Annotated[str, typer.Option("--app-dir", "-d", help="Where modules are found.")] = ".",
    address: Annotated[
        str | None,
        typer.Option("--address", "-a", envvar="RAY_ADDRESS", help="Ray cluster to join."),
    ] = None,
    working_dir: Annotated[
        str | None, typer.Option(help="Directory, or URI of a zip, that replicas run in.")
    ] = None,
    runtime_env: Annotated[
        str | None, typer.Option(help="YAML file with a Ray runtime_env for the replicas.")
    ] = None,
    runtime_env_json: Annotated[str | None, typer.Option(help="The same as JSON text.")] = None,
    reload: Annotated[
        bool, typer.Option("--reload", "-r", help="Deploy again when files change.")
    ] = False,
    blocking: Annotated[
        bool, typer.Option("--blocking/--non-blocking", help="Stay until Ctrl-C.")
    ] = True,
    timeout_s: Annotated[
        float | None, typer.Option(help="Seconds that the replicas may take to start.", min=0)
    ] = None,
) -> None:
    """Run an application, as Ray's own `serve run` does, and say how to call it.

    Starts Ray if none is running, with as many logical CPUs as the replicas ask for. Ctrl-C ends
    what it started. The exit status is 1 when the deployment fails, 2 for wrong usage.
    """
    from .running import Options, serve_run

    options = Options(
        target=target,
        arguments=tuple(arguments or ()),
        host=host,
        port=port,
        name=name,
        route_prefix=route_prefix,
        app_dir=app_dir,
        address=address,
        working_dir=working_dir,
        runtime_env=runtime_env,
        runtime_env_json=runtime_env_json,
        reload=reload,
        blocking=blocking,
        timeout_s=timeout_s,
    )
    raise typer.Exit(serve_run(options))


def main() -> None:
    """Run the command line; a problem is one line on standard error, not a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
