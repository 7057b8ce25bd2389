"""Watching replicas start: a line for each deployment that is up, and what the others lack."""

import _thread
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import typer

from .loading import Problem

_POLL_S = 0.2
_PATIENCE_S = 10.0


class Watch:
    """Watches applications start, in a thread, until they are up or have failed.

    Args:
        names: The applications' names.
        timeout_s: Seconds they may take; ``None``: as long as it takes.
        on_up: Called once, when all are running.
    """

    def __init__(
        self, names: tuple[str, ...], timeout_s: float | None, on_up: Callable[[], None]
    ) -> None:
        self._names = names
        self._timeout_s = timeout_s
        self._on_up = on_up
        self._up: set[tuple[str, str]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="raycompose-watch", daemon=True)
        self.failure: str | None = None
        """What failed, once it has."""
        self.trouble: str | None = None
        """What Ray is trying again."""

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()

    def wait(self) -> None:
        """Block until all is up.

        Raises:
            Problem: It failed.
        """
        while self._thread.is_alive():  # in slices, so that Ctrl-C is heard
            self._thread.join(_POLL_S)
        if self.failure is not None:
            raise Problem(self.failure)

    def _watch(self) -> None:
        from ray import serve

        started = reported = time.monotonic()
        while not self._stop.wait(_POLL_S):
            status = serve.status()
            apps = [status.applications[n] for n in self._names if n in status.applications]
            for name, app in status.applications.items():
                self._tell_healthy(name, app)
            for app in apps:
                if app.status == "DEPLOY_FAILED":
                    self.failure = _why(app)
                    return
                if any("fail" in d.message.lower() for d in app.deployments.values()):
                    self.trouble = _why(app)  # Ray tries again, and may end before we look again
            if len(apps) == len(self._names) and all(app.status == "RUNNING" for app in apps):
                self._on_up()
                return
            now = time.monotonic()
            if self._timeout_s is not None and now - started > self._timeout_s:
                waiting = "; ".join(_waiting(app) for app in apps)
                self.failure = f"not up within --timeout-s {self._timeout_s:g}: {waiting}"
                _thread.interrupt_main()
                return
            if now - reported > _PATIENCE_S:
                reported = now
                for app in apps:
                    typer.echo(f"  waiting for {_waiting(app)}")

    def _tell_healthy(self, name: str, app: Any) -> None:
        if name not in self._names:
            return
        for deployment, overview in app.deployments.items():
            if overview.status == "HEALTHY" and (name, deployment) not in self._up:
                self._up.add((name, deployment))
                replicas = sum(overview.replica_states.values())
                typer.echo(f"  {deployment}: {replicas} replica{'s' * (replicas != 1)} up")


def _waiting(app: Any) -> str:
    """The deployments that are not up, and what the cluster has free for them."""
    import ray

    free = {k: v for k, v in ray.available_resources().items() if ":" not in k and "store" not in k}
    names = [name for name, d in app.deployments.items() if d.status != "HEALTHY"]
    resources = ", ".join(
        f"{amount / 2**30:.1f} GiB memory" if kind == "memory" else f"{amount:g} {kind}"
        for kind, amount in sorted(free.items())
    )
    return f"{', '.join(names) or 'the application'} (free in the cluster: {resources})"


def _why(app: Any) -> str:
    """The reason that Ray gives for a failure, without the traceback that its log has."""
    for name, deployment in app.deployments.items():
        if "fail" in deployment.message.lower() or deployment.status == "UNHEALTHY":
            return f"deployment {name!r} failed: {_last_line(deployment.message)}"
    return f"the application failed: {_last_line(app.message)}"


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "Ray gives no reason"
