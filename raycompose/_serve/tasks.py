"""Ray tasks and actors."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from ray.actor import ActorMethod, _ActorMethodOptionsWrapper
from ray.remote_function import RemoteFunction


def task_function(task: Any) -> Callable[..., Any] | None:
    """Return the Python function that a ``@ray.remote`` function wraps, ``None`` if it is not one.

    Also of what ``task.options(...)`` gives.
    """
    if not isinstance(task, RemoteFunction):
        # A class that Ray makes for each call of options(), which holds the task in a closure.
        remote = getattr(type(task), "remote", None)
        held = inspect.getclosurevars(remote).nonlocals if inspect.isfunction(remote) else {}
        task = held.get("func_cls")
    return task._function if isinstance(task, RemoteFunction) else None


class MethodOfActor(NamedTuple):
    """What Ray knows of an actor's method."""

    name: str
    streams: bool


def method_of_actor(method: Any) -> MethodOfActor | None:
    """Return what Ray knows of an actor's method, ``None`` if it is not one.

    Also of what ``actor.method.options(...)`` gives.
    """
    if isinstance(method, _ActorMethodOptionsWrapper):
        method = method._actor_method
    if not isinstance(method, ActorMethod):
        return None
    return MethodOfActor(method._method_name, bool(method._is_generator))


def actor_class_name(actor_class: Any) -> str:
    """Return the name of the class that ``@ray.remote`` wraps."""
    name: str = actor_class.__ray_metadata__.class_name
    return name
