"""What this process has started, so that it ends that and nothing else."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from raycompose import _serve
from raycompose.client import cluster

T = TypeVar("T")
_NOBODY = object()


class Session:
    """Ray, Serve and the applications that this process has started.

    They end with the last of the applications. On a cluster that was joined Serve ends only if it
    was started here and nobody else's application runs on it by then.
    """

    def __init__(self) -> None:
        self.address: str | None = None
        """The cluster that was joined; ``None`` when Ray was started here, or by somebody else."""
        self.is_fast = False
        """Whether Ray was started here, with the settings for high throughput."""
        self._owns_ray = self._owns_serve = self._connected = False
        self._owners: dict[str, object] = {}

    def open(
        self, cpus: int, address: str | None = None, *, fast: bool = False, **options: Any
    ) -> None:
        """Start Ray or join a cluster, and take the place of what has ended; see ``start_ray``."""
        self.address = cluster.start_ray(cpus, address, fast=fast, **options)
        self.is_fast = fast and self.address is None
        self._connected, self._owns_ray, self._owns_serve = True, self.address is None, False
        self._owners = {}

    def start_serve(self, **options: Any) -> None:
        """Start Serve unless one runs.

        Args:
            options: What ``serve.start`` takes.
        """
        if not cluster.serve_is_running():
            self._owns_serve = True
            serve.start(**options)

    def deploy(self, name: str, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Return what ``run`` gives, and what ends the application unless it was deployed anew.

        An application that failed is deleted again, and with it what was started for it.
        """
        existed = name in _serve.applications()
        try:
            result = run()
        except BaseException:
            if not existed:
                self._owners[name] = None
                self._release(name, None)
            raise
        owner = self._owners[name] = object()
        return result, partial(self._release, name, owner)

    def take(self, name: str) -> None:
        """Have the application of that name end with the session."""
        self._owners[name] = self

    @property
    def names(self) -> tuple[str, ...]:
        """The applications of this process."""
        return tuple(self._owners)

    def _release(self, name: str, owner: object) -> None:
        """End the application if it is still the owner's, and with the last one all the rest."""
        if not ray.is_initialized() or self._owners.get(name, _NOBODY) is not owner:
            return
        del self._owners[name]
        if self._owners or not self._owns_ray:  # else it goes with its Ray
            serve.delete(name)
        if not self._owners:
            self.close()

    def others(self) -> list[str]:
        """Return the names of the applications that run and are not this process's."""
        return sorted(set(_serve.applications()) - set(self._owners))

    def close(self) -> None:
        """End all that this process has started."""
        if not ray.is_initialized():
            return
        try:
            if not self._owns_ray:
                for name in self._owners:
                    serve.delete(name)
            self._owners = {}
            if self._owns_ray:
                up = [app.status == "RUNNING" for app in _serve.applications().values()]
                # What is not up answers nobody; Serve would wait 20 s for replicas without a place.
                if any(up) or not up:
                    serve.shutdown()
            elif self._owns_serve and not self.others():
                serve.shutdown()
        except (RayError, RayServeException):
            pass  # the cluster has gone by itself
        if self._connected:
            ray.shutdown()
        self._owns_ray = self._owns_serve = self._connected = False


session = Session()
"""This process's."""
