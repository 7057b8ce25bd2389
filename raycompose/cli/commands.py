"""The commands and their options; what they do is elsewhere, and imported when they run."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from .loading import Problem

app = typer.Typer(
    name="raycompose",
    help="Composition for Ray Serve: run, check, draw and call pipelines.",
    epilog="Exit status: 0 done, also after Ctrl-C; 1 it failed; 2 wrong usage.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # its tables are too wide for 80 columns
    pretty_exceptions_enable=False,
)

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:ATTRIBUTE", help="An application, or a function that returns one."
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Arguments for a function that is called."),
]
AppDir = Annotated[str, typer.Option("--app-dir", "-d", help="Where modules are found.")]
Address = Annotated[
    str | None,
    typer.Option("--address", "-a", envvar="RAY_ADDRESS", help="Ray cluster to join."),
]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"raycompose {version('raycompose')}, Ray {version('ray')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _commands(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(short_help="Run an application, as `serve run` does.")
def run(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:ATTRIBUTE|CONFIG",
            help="An application, a function that returns one, or a Serve config file.",
        ),
    ],
    arguments: Arguments = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    name: Annotated[str, typer.Option(help="Name of the application.")] = "default",
    route_prefix: Annotated[str, typer.Option(help="Path it answers below.")] = "/",
    app_dir: AppDir = ".",
    address: Address = None,
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
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Ray's settings for high throughput: HAProxy, gRPC."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show Ray's own logs, too.")
    ] = False,
) -> None:
    """Run an application, as `serve run` does, and say how to call it.

    Starts Ray if none is running, with as many logical CPUs as the replicas ask for. Ctrl-C ends
    what it started, and on a cluster that others use nothing else.
    """
    from .options import Options
    from .running import serve_run

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
        fast=fast,
        verbose=verbose,
    )
    raise typer.Exit(serve_run(options))


@app.command(short_help="Build it without running it, and show what it asks for.")
def check(
    target: Target, arguments: Arguments = None, app_dir: AppDir = ".", address: Address = None
) -> None:
    """Build an application without running it: its stages, what they ask for, a request to it.

    With `--address` the resources are compared to that cluster's, else to this machine's.
    """

    def act() -> None:
        from .checking import check

        check(target, tuple(arguments or ()), app_dir, address)

    _do(act)


@app.command(short_help="Draw a pipeline, in the terminal or into a file.")
def draw(
    target: Target,
    arguments: Arguments = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="A file: .svg, .mmd (Mermaid), .txt or .json.", metavar="FILE"
        ),
    ] = None,
    app_dir: AppDir = ".",
) -> None:
    """Draw a pipeline: in the terminal, or into a file."""

    def act() -> None:
        from .drawing import draw

        draw(target, tuple(arguments or ()), app_dir, output)

    _do(act)


@app.command(short_help="Send a request to a running application.")
def call(
    url: Annotated[
        str,
        typer.Argument(help="Where it answers; a path alone is on this machine, at port 8000."),
    ] = "/",
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="JSON to send; @FILE, or - for standard input."),
    ] = None,
    data_binary: Annotated[
        str | None,
        typer.Option("--data-binary", help="Bytes to send, as they are: @FILE, or - ."),
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option("--form", "-F", help="A part of a form: NAME=VALUE, or NAME=@FILE."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="A header: 'NAME: VALUE'.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-X", help="By default POST, or GET with no body.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Ask for server-sent events.")] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="A file for the answer.", metavar="FILE")
    ] = None,
    timeout_s: Annotated[
        float | None, typer.Option(help="Seconds that the answer may take.", min=0)
    ] = None,
) -> None:
    """Send a request to a running application, and show its answer as it comes.

    `raycompose call -d '{"data": "hello"}'`, `raycompose call /chat -d @question.json --stream`,
    `raycompose call -F image=@cat.png`. An error is shown with its stage; the exit status is 1.
    """

    def act() -> int:
        from .calling import Request, call

        request = Request(
            url=url,
            data=data,
            data_binary=data_binary,
            form=tuple(form or ()),
            headers=tuple(header or ()),
            method=method,
            stream=stream,
            output=output,
            timeout_s=timeout_s,
        )
        return call(request)

    _do(act)


@app.command(short_help="Write a Serve config file, or a KubeRay manifest.")
def build(
    target: Target,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="A file to write.", metavar="FILE")
    ] = None,
    kuberay: Annotated[
        bool, typer.Option("--kuberay", help="A RayService manifest, for Kubernetes.")
    ] = False,
    image: Annotated[str | None, typer.Option(help="The container image of the manifest.")] = None,
    app_dir: AppDir = ".",
) -> None:
    """Write a Serve config file, as `serve build` does, or a manifest for KubeRay around it."""

    def act() -> None:
        from .manifest import build

        build(target, app_dir, output, image, kuberay)

    _do(act)


def _do(act: Callable[[], int | None]) -> None:
    """Run a command; what the user can put right is one line on standard error."""
    try:
        status = act()
    except Problem as problem:
        typer.secho(f"Error: {problem.message}", fg="red", err=True)
        raise typer.Exit(problem.status) from None
    raise typer.Exit(status or 0)


def main() -> None:
    """Run the command line; a problem is one line on standard error, not a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
