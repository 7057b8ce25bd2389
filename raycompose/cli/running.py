"""``raycompose run``: what Ray's own ``serve run`` does, and what it lacks."""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer

from .loading import Problem, deploys_itself
from .options import Options

_ROOM_TO_GROW = 8
"""Logical CPUs, with --reload, for what the next versions add: Ray keeps those it starts with."""


class _Ending:
    """Whether the user has asked for the end: Ray's code may swallow a ``KeyboardInterrupt``."""

    asked = False

    def __call__(self, signum: int, frame: object) -> None:
        """Handle SIGINT and SIGTERM."""
        self.asked = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise what was swallowed."""
        if self.asked:
            raise KeyboardInterrupt


_end = _Ending()


def serve_run(options: Options) -> int:
    """Run until Ctrl-C and return the exit status."""
    signal.signal(signal.SIGINT, _end)
    try:
        options.check()
        _serve_run(options)
        if options.blocking:
            _stay()
    except Problem as problem:
        fail(problem)  # at once: the end may take its time
        _shut_down()
        return problem.status
    except KeyboardInterrupt:
        typer.echo("\nShutting down.")
        _shut_down()
    return 0


def fail(problem: Problem) -> None:
    """Say what is wrong, the traceback of the user's code first."""
    *trace, last = problem.message.split("\n")
    if trace and "failed: " in last:
        typer.echo("\n".join(trace), err=True)
        typer.secho(f"Error: {last}", fg="red", err=True)
    else:
        typer.secho(f"Error: {problem.message}", fg="red", err=True)


def _shut_down() -> None:
    """End what was started, and say what of a shared cluster goes on."""
    for end in (signal.SIGINT, signal.SIGTERM):  # once is enough: let it end cleanly
        signal.signal(end, signal.SIG_IGN)
    from raycompose import _serve
    from raycompose.client.session import session

    from .watching import _states

    _serve.hush_worker_logs()
    if session.address is not None:
        others = sorted(set(_states()) - set(session.names))
        if others:
            typer.echo(f"Left running on {session.address}: {', '.join(others)}")
    session.close()


def _serve_run(options: Options) -> None:
    import ray

    import raycompose  # noqa: F401  # before the user's module, which then needs no import for .then
    from raycompose.client import cluster

    from .building import applications, hush_serve

    if not options.verbose:
        hush_serve()
    if options.address:
        os.environ["RAY_ADDRESS"] = options.address  # for a module that starts Ray itself
    # Where Serve imports a config's applications it looks at PYTHONPATH, not at our sys.path.
    path = [str(Path(options.app_dir).resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    if not options.is_config and deploys_itself(options.target, options.app_dir):
        _start(options, cluster.UNKNOWN_CPUS)  # importing it calls serve.run
    apps = applications(options)
    cpus = sum(cluster.cpus_needed(named.app, named.overrides) for named in apps)
    if not ray.is_initialized():
        _start(options, cpus + _ROOM_TO_GROW * options.reload)
    # `kill` ends it as Ctrl-C does; ray.init has set a handler of its own.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    if options.reload:
        _reload(options, apps)
    else:
        deploy(options, apps, _end.check)


def _start(options: Options, cpus: int) -> None:
    """Start Ray, or join the cluster there is, and have Serve listen where the user said."""
    from raycompose.client import cluster, fast
    from raycompose.client.session import session

    environment = {"runtime_env": found} if (found := options.environment()) else {}
    quiet = {} if options.verbose else {"logging_level": logging.ERROR}
    write = None if options.verbose else typer.echo
    try:
        joined = cluster.cluster_to_join(options.address)
        if joined is None:
            _check_listening(options)
        address = joined or "local"
        session.open(
            cpus,
            address,
            write=write,
            fast=options.fast,
            namespace="serve",
            **environment,
            **quiet,
        )
    except Problem:
        raise
    except Exception as error:  # Ray raises a bare one where a node does not start in time
        raise Problem(str(error)) from error
    session.start_serve(http_options={"host": options.host, "port": options.port})
    if options.fast and not session.is_fast:
        typer.secho(f"  {fast.notice()}", fg="yellow")
    if session.address is not None:
        _hint_at_working_dir(options)


def _check_listening(options: Options) -> None:
    """Find out whether one can listen there, rather than wait for a proxy that cannot."""
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except socket.gaierror as error:
        raise Problem(f"--host {options.host}: {error.strerror}") from error
    except OSError as error:
        if "in use" in str(error):
            raise Problem(f"port {options.port} is in use: choose another with --port") from error
        where = f"{options.host}:{options.port}"
        raise Problem(f"cannot listen on {where}: {error.strerror}") from error


def _hint_at_working_dir(options: Options) -> None:
    import ray

    here = ray.util.get_node_ip_address()
    elsewhere = [node for node in ray.nodes() if node["NodeManagerAddress"] != here]
    if elsewhere and not options.environment().get("working_dir"):
        typer.secho(
            f"  The other machines of the cluster do not have {options.app_dir!r}: "
            f"give --working-dir {options.app_dir} if modules are missing there.",
            fg="yellow",
        )


def deploy(options: Options, apps: list[Any], check: Callable[[], None]) -> None:
    """Deploy the applications, show how far they are, and say how to call them.

    Args:
        options: Those of the command.
        apps: What to deploy.
        check: Raises when there is no use in waiting for the replicas any longer.
    """
    from ray import serve
    from rich.console import Console

    from raycompose import _serve
    from raycompose.client.session import session

    from .announcing import announce
    from .building import config
    from .watching import Watch

    if options.is_config:
        _refuse_to_replace(apps)
        ask = partial(_serve.deploy_config, config(options.target))
    else:
        target = serve.RunTarget(apps[0].app, options.name, options.route_prefix)
        # As serve.run does, which then waits itself: in a thread that would outlive its Ray.
        ask = partial(serve.run_many, [target], wait_for_applications_running=False)
    for named in apps:
        session.take(named.name)
    names = [named.name for named in apps]
    is_shared = session.address is not None
    watch = Watch(names, options.timeout_s, Console(highlight=False), is_shared=is_shared)
    watch.until_up(ask, check)
    announce(apps, blocking=options.blocking)


def _refuse_to_replace(apps: list[Any]) -> None:
    """A config takes the place of the one before it: refuse to end somebody else's."""
    from raycompose import _serve
    from raycompose.client.session import session

    declared = {name for name, app in _serve.applications().items() if app.declared}
    lost = sorted(declared - {named.name for named in apps} - set(session.names))
    if lost:
        raise Problem(
            f"a config file replaces what another one deployed on this cluster: {', '.join(lost)} "
            "would end. Add them to the file, or run MODULE:ATTRIBUTE with --name"
        )


def _reload(options: Options, apps: list[Any]) -> None:
    """Deploy, and deploy again at each change, until Ctrl-C."""
    from .building import applications
    from .reloading import Changes

    changes, built = Changes(options, _end.check), [apps]

    def deploy_newest() -> None:
        deploy(options, built.pop() if built else applications(options), changes.check)

    changes.follow(deploy_newest, fail)


def _stay() -> None:
    """Stay until Ctrl-C."""
    while True:
        _end.check()
        time.sleep(0.3)
