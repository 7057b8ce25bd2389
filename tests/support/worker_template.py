"""Starting Ray's workers as copies of one that has imported Ray Serve already.

A worker costs about two seconds of CPU for its imports, whatever a test asks of it, and the tests
start hundreds. Ray runs this file in the place of its ``setup_worker.py``. The first to run leaves
a template behind, which ends with its raylet; each asks the template to fork a worker. What the
fork goes on with is Ray's own ``default_worker.py``, with the arguments, the environment and the
standard streams that Ray gave. A worker with a runtime environment is started as Ray does.
"""

import errno
import gc
import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from typing import Any

IMPORTED = (
    "ray._private.workers.default_worker",
    "ray.serve._private.controller",
    "ray.serve._private.proxy",
    "ray.serve._private.replica",
    "raycompose",
)
CONTEXT = "--serialized-runtime-env-context="
LANGUAGE = "--language="


Worker = tuple[list[str], dict[str, str], str]
"""The arguments of a worker, its environment, and the folder in which it starts."""


def is_plain(arguments: list[str]) -> bool:
    """Tell whether a worker is Python's, and in no environment but the raylet's."""
    contexts = [a.removeprefix(CONTEXT) for a in arguments if a.startswith(CONTEXT)]
    context = json.loads(contexts[0]) if contexts else {}
    same_python = context.pop("py_executable", None) in (None, sys.executable)
    return same_python and not any(context.values()) and LANGUAGE + "PYTHON" in arguments


def ask(name: str, arguments: list[str]) -> None:
    """Have the template fork a worker with this process's environment and standard streams."""
    worker: Worker = (arguments, dict(os.environ), os.getcwd())
    asked = json.dumps(worker).encode()
    with socket.socket(socket.AF_UNIX) as template:
        while template.connect_ex(name) == errno.ECONNREFUSED:  # bound, and not yet listening
            time.sleep(0.01)
        socket.send_fds(template, [asked[:1]], [0, 1, 2])
        template.sendall(asked[1:])


def asked_for(listening: socket.socket, raylet: int) -> Worker:
    """Be the template until the raylet is gone; return in each fork what it is to become."""
    import_ray()
    gc.collect()
    gc.freeze()  # no fork looks through it, and so copies its pages, again
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    ends: list[Any] = [listening, raylet]
    while listening in select.select(ends, [], [])[0]:
        asking, _ = listening.accept()
        if not os.fork():
            listening.close()
            os.close(raylet)
            os.setpgid(0, 0)  # Ray ends a worker's group with the worker
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return received(asking)
        asking.close()
    os._exit(0)


def import_ray() -> None:
    """Import what workers need, without drawing on Ray's random numbers.

    Once seeded they would be the same in each of the forks, and with them the ids of objects.
    """
    import ray.actor

    drawing = ray.actor.ActorClassID

    class FromTheSystem:
        @staticmethod
        def from_random() -> object:
            return drawing(os.urandom(drawing.size()))

    ray.actor.ActorClassID = FromTheSystem
    for module in IMPORTED:
        importlib.import_module(module)
    ray.actor.ActorClassID = drawing


def received(asking: socket.socket) -> Worker:
    """Take over the standard streams of who asks, and return the rest of what it sent."""
    first, streams, _, _ = socket.recv_fds(asking, 1, 3)
    for standard, theirs in enumerate(streams):
        os.dup2(theirs, standard)
        os.close(theirs)
    with asking, asking.makefile("rb") as rest:
        arguments, environment, folder = json.loads(first + rest.read())
    return arguments, environment, folder


def become(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Go on as the worker that this process would be had Ray started it."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [a for a in arguments if not a.startswith((CONTEXT, LANGUAGE))]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


def main(arguments: list[str]) -> None:
    """Start a worker, and the template when there is none."""
    raylet = os.getppid()
    name = f"\0raycompose-workers-{raylet}"  # in no folder: it goes with the template
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(name)
    except OSError:
        pass  # the template has it
    else:
        listening.listen(100)
        raylet_ends = os.pidfd_open(raylet)
        if not os.fork():
            os.setsid()
            become(*asked_for(listening, raylet_ends))
            return
    listening.close()
    ask(name, arguments)


def as_ray_does(arguments: list[str]) -> None:
    """Start a worker with Ray's own script."""
    (ray,) = importlib.util.find_spec("ray").submodule_search_locations  # type: ignore[union-attr, misc]  # it is there
    script = os.path.join(ray, "_private", "workers", "setup_worker.py")
    os.execv(sys.executable, [sys.executable, "-u", script, *arguments])


if __name__ == "__main__":
    (main if is_plain(sys.argv[1:]) else as_ray_does)(sys.argv[1:])
