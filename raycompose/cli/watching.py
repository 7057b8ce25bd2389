"""Watching replicas start, until they are up or have failed: live in a terminal, else in lines."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from .failures import last_line, users_traceback
from .loading import Problem
from .progress import is_up, line, reason, summary

_POLL_S = 0.3
_PATIENCE_S = 10.0


class Watch:
    """Watches applications start.

    Args:
        names: The applications' names.
        timeout_s: Seconds they may take; ``None``: as long as it takes.
        console: rich's, for standard output.
        is_shared: Whether others use the cluster. One that was started for these applications has
            CPUs enough: what has none yet is starting.
    """

    def __init__(
        self, names: list[str], timeout_s: float | None, console: Any, *, is_shared: bool = True
    ) -> None:
        self._names = names
        self._timeout_s = timeout_s
        self._console = console
        self._is_shared = is_shared

    def until_up(
        self, deploy: Callable[[], object], check: Callable[[], None] = lambda: None
    ) -> None:
        """Deploy, and block until all is up.

        Args:
            deploy: Asks Ray Serve for the applications.
            check: Raises when the user has asked for the end.

        Raises:
            Problem: It failed, or took too long.
        """
        deploying = _Deploying(deploy)
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        with closing(deploying), self._shown() as show:
            while True:
                check()
                apps = _states()
                ours = [apps[name] for name in self._names if name in apps]
                deployments = [d for app in ours for d in app.deployments]
                total, free = _resources()
                if not self._is_shared:
                    free = {**free, "CPU": total.get("CPU", 0)}
                show(deployments, total, free)
                self._check(ours, deploying)
                running = [app.status for app in ours] == ["RUNNING"] * len(self._names)
                if deploying.done and running and all(map(is_up, deployments)):
                    return
                if deadline is not None and time.monotonic() > deadline:
                    late = [line(d, total, free) for d in deployments if not is_up(d)]
                    waiting = "; ".join(late) or "Ray Serve has not begun"
                    raise Problem(f"not up within --timeout-s {self._timeout_s:g}: {waiting}")
                time.sleep(_POLL_S)

    def _check(self, apps: list[Any], deploying: "_Deploying") -> None:
        for app in apps:
            failed = [d for d in app.deployments if d.status in ("DEPLOY_FAILED", "UNHEALTHY")]
            if app.status == "DEPLOY_FAILED":
                raise Problem(_why(app, failed))
        if deploying.error is not None:
            raise Problem(last_line(str(deploying.error))) from deploying.error

    @contextmanager
    def _shown(self) -> Iterator[Callable[..., None]]:
        if not self._console.is_terminal:
            yield self._lines()
            return
        from rich.live import Live

        with Live(console=self._console, refresh_per_second=8, transient=True) as live:
            told = self._lines(only_up=True)

            def show(deployments: list[Any], *resources: Any) -> None:
                told(deployments, *resources)
                live.update(table(deployments, *resources))

            yield show

    def _lines(self, *, only_up: bool = False) -> Callable[..., None]:
        """What prints a line for each deployment that is up, and now and then what others lack."""
        told: dict[str, float] = {}
        looked: list[bool] = []
        began = time.monotonic()

        def show(deployments: list[Any], total: Any, free: Any) -> None:
            now = time.monotonic()
            if not looked:  # what is up from the first is the version before
                looked.append(True)
                told.update({d.name: 0 for d in deployments if is_up(d)})
            for d in deployments:
                if is_up(d) and told.get(d.name) != 0:
                    told[d.name] = 0
                    replicas = f"{d.running} replica{'s' * (d.running != 1)}"
                    self._console.print(f"  {d.name}: {replicas} up")
                elif not is_up(d) and not only_up:
                    hopeless = "the cluster has" in reason(d, total, free)
                    patience = _PATIENCE_S if d.name in told or not hopeless else 2.0
                    if now - (told.get(d.name) or began) > patience:
                        told[d.name] = now
                        self._console.print(f"  waiting for {line(d, total, free)}")

        return show


class _Deploying:
    """``deploy`` in a thread, so that the main one can watch, and hear Ctrl-C."""

    def __init__(self, deploy: Callable[[], object]) -> None:
        self._deploy = deploy
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="raycompose-deploy", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def close(self) -> None:
        """Let it end before Ray does, which would start again for its calls."""
        self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        try:
            self._deploy()
        except Exception as error:  # shown by the thread that watches
            self.error = error


def table(deployments: list[Any], total: Any, free: Any) -> Any:
    """Return the deployments as rich's table: a mark, the name, how many, and why not more."""
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    for d in deployments:
        mark = Text("✓", style="green") if is_up(d) else Spinner("dots")
        why = reason(d, total, free)
        style = "yellow" if why.startswith(("needs", "its")) else "dim"
        grid.add_row(" ", mark, Text(d.name), f"{d.running}/{d.wanted}", Text(why, style=style))
    return grid if deployments else Text(summary(deployments), style="dim")


def _states() -> dict[str, Any]:
    """The applications' states; none while Serve's controller does not answer."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    from raycompose import _serve

    try:
        return dict(_serve.applications())
    except (RayError, RayServeException):
        return {}


def _resources() -> tuple[dict[str, float], dict[str, float]]:
    import ray

    return ray.cluster_resources(), ray.available_resources()


def _why(app: Any, failed: list[Any]) -> str:
    """The reason that Ray gives for a failure: the user's own traceback, and a line below it."""
    for deployment in failed:
        trace = users_traceback(deployment.message)
        before = f"{trace}\n" if "\n" in trace else ""
        last = last_line(trace)
        return f"{before}deployment {deployment.name!r} failed: {last}"
    return f"the application failed: {last_line(app.message)}"
