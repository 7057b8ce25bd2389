"""``raycompose run``: Ray's own ``serve run`` in this process, and what it lacks."""

import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer
import yaml
from click import Abort, ClickException

from .loading import Problem, deploys_itself, load
from .watching import Watch


@dataclass(frozen=True)
class Options:
    """The options of ``raycompose run``; see its ``--help``."""

    target: str
    arguments: tuple[str, ...]
    host: str
    port: int
    name: str
    route_prefix: str
    app_dir: str
    address: str | None
    working_dir: str | None
    runtime_env: str | None
    runtime_env_json: str | None
    reload: bool
    blocking: bool
    timeout_s: float | None

    @property
    def is_config(self) -> bool:
        """Whether the target is a Serve config file."""
        return Path(self.target).is_file()

    def ray_arguments(self) -> list[str]:
        """The command line for Ray's own ``serve run``."""
        given = {
            "--app-dir": self.app_dir,
            "--address": self.address,
            "--working-dir": self.working_dir,
            "--runtime-env": self.runtime_env,
            "--runtime-env-json": self.runtime_env_json,
            "--name": self.name,
            "--route-prefix": self.route_prefix,
        }
        options = [
            word for key, value in given.items() if value is not None for word in (key, value)
        ]
        mode = ["--reload"] if self.reload else ["--non-blocking"]
        return [self.target, *self.arguments, *options, *mode]


class _Ending:
    """Whether the user has asked for the end: Ray's code may swallow a ``KeyboardInterrupt``."""

    asked = False

    def __call__(self, signum: int, frame: object) -> None:
        """Handle SIGINT and SIGTERM."""
        self.asked = True
        raise KeyboardInterrupt


_end = _Ending()


def serve_run(options: Options) -> int:
    """Run until Ctrl-C and return the exit status."""
    signal.signal(signal.SIGINT, _end)
    with contextlib.ExitStack() as ending:
        try:
            _serve_run(options, ending)
            while options.blocking:
                if _end.asked:
                    raise KeyboardInterrupt
                time.sleep(0.5)
            ending.pop_all()  # what runs goes on
        except Problem as problem:
            typer.secho(f"Error: {problem.message}", fg="red", err=True)
            return problem.status
        except KeyboardInterrupt:
            for end in (signal.SIGINT, signal.SIGTERM):  # once is enough: let it end cleanly
                signal.signal(end, signal.SIG_IGN)
            typer.echo("\nShutting down.")
    return 0


def _serve_run(options: Options, ending: contextlib.ExitStack) -> None:
    import ray
    from ray.serve import scripts

    import raycompose  # noqa: F401  # before the user's module, which then needs no import for .then
    from raycompose.client import cluster

    if options.address:
        os.environ["RAY_ADDRESS"] = options.address  # for a module that starts Ray itself
    if not options.is_config and deploys_itself(options.target, options.app_dir):
        _start(options, cluster.UNKNOWN_CPUS, ending)  # importing it calls serve.run
    apps = _applications(options)
    cpus = sum(cluster.cpus_needed(app, overrides) for app, overrides in apps.values())
    if not ray.is_initialized():
        _start(options, cpus, ending)
    # `kill` ends it as Ctrl-C does; ray.init has set a handler of its own.
    signal.signal(signal.SIGTERM, _end)
    up = partial(announce, options, apps)
    watch = Watch(tuple(apps), options.timeout_s, up if options.reload else lambda: None)
    with watch:
        try:
            scripts.run.main(options.ray_arguments(), standalone_mode=False)
        except SystemExit as stop:  # Ray's way out, with status 0, of a failure and of Ctrl-C
            if watch.failure is None and isinstance(stop.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise Problem(watch.failure or watch.trouble or "the deployment failed") from stop
        except ClickException as error:
            raise Problem(error.format_message(), status=2) from error
        except Abort:  # Click's word for Ctrl-C
            raise KeyboardInterrupt from None
        watch.wait()
    up()


def _applications(options: Options) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The applications that are going to run, by name, and what a config overrides in each."""
    from raycompose import _serve

    def build(path: str, arguments: dict[str, Any]) -> Any:
        target = load(path, options.app_dir)
        try:
            return _serve.call_builder(target, arguments)
        except (TypeError, ValueError) as error:
            raise Problem(f"{path}: {error}") from error

    if not options.is_config:
        arguments = dict(_pair(argument) for argument in options.arguments)
        return {options.name: (build(options.target, arguments), {})}
    if options.arguments:
        raise Problem("KEY=VALUE arguments go into the config file, under args:", status=2)
    config = yaml.safe_load(Path(options.target).read_text())
    if not isinstance(config, dict) or not isinstance(config.get("applications"), list):
        raise Problem(f"{options.target} is not a Serve config: it has no list 'applications'")
    return {
        app.get("name", "default"): (
            build(app["import_path"], app.get("args") or {}),
            {d["name"]: d for d in app.get("deployments") or ()},
        )
        for app in config["applications"]
    }


def _pair(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not (key and equals and value):
        raise Problem(f"{argument!r} is not KEY=VALUE", status=2)
    return key, value


def _start(options: Options, cpus: int, ending: contextlib.ExitStack) -> None:
    """Start Ray, or join the cluster there is, and have Serve listen where the user said."""
    import ray
    from ray import serve

    from raycompose import _serve
    from raycompose.client import cluster

    if _serve.cluster_address(options.address) is None:
        _refuse_a_port_in_use(options)  # at once, rather than when Ray has started
    # Where Serve imports a config's applications it looks at PYTHONPATH, not at our sys.path.
    path = [str(Path(options.app_dir).resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    cluster.start_ray(cpus, options.address, namespace="serve")
    ending.callback(ray.shutdown)
    if cluster.serve_is_running():  # somebody else's: end what is ours alone
        ending.callback(serve.delete, options.name)
        return
    _refuse_a_port_in_use(options)
    serve.start(http_options={"host": options.host, "port": options.port})
    ending.callback(serve.shutdown)


def _refuse_a_port_in_use(options: Options) -> None:
    with socket.socket() as probe:
        if probe.connect_ex((options.host, options.port)) == 0:
            raise Problem(f"port {options.port} is in use: choose another with --port")


def announce(options: Options, apps: dict[str, tuple[Any, dict[str, Any]]]) -> None:
    """Say what runs, where, and how to call it."""
    from raycompose.client import cluster

    from . import samples

    for name, (app, _) in apps.items():
        url = cluster.url_of(name)
        typer.secho(f"\n{app!r} is up" if len(apps) == 1 else f"\n{name}: {app!r} is up", bold=True)
        if url is None:
            typer.echo("It has no route prefix: call it through rc.connect() or its handle.")
            continue
        typer.echo(f"  {url}\n\n  {samples.curl(app, url)}\n")
    if options.blocking:
        typer.echo("Ctrl-C ends it.")
