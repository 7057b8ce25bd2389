"""Applications, and what they are built into."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from ray.dag.py_obj_scanner import _PyObjScanner
from ray.serve import Application, Deployment
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import BuiltApplication, IDDict, build_app


class LazyApplication(Application):  # type: ignore[misc]  # Ray's types are not followed
    """An application whose deployment is bound when Ray first asks for it."""

    def __init__(self) -> None:
        super().__init__(None)
        del self._bound_deployment  # set by Application; here computed from the graph

    @cached_property
    def _bound_deployment(self) -> Deployment:
        return self.bind_front()

    def bind_front(self) -> Deployment:
        """Return the deployment with its arguments bound."""
        raise NotImplementedError


def build(app: Application, name: str) -> BuiltApplication:
    """Return the deployments that Ray Serve would start for ``app``, without a cluster."""
    return build_app(app, name=name)


def found(value: Any, kind: type) -> list[Any]:
    """Return everything of a kind in ``value``, wherever pickling finds it."""
    scanner: Any = _PyObjScanner(source_type=kind)
    try:
        return list(scanner.find_nodes(value))
    finally:
        scanner.clear()


def replaced(value: Any, kind: type | tuple[type, ...], replacement: Callable[[Any], Any]) -> Any:
    """Return ``value`` with everything of a kind in it replaced, wherever pickling finds it.

    ``value`` itself is returned when nothing is to be replaced.
    """
    scanner: Any = _PyObjScanner(source_type=kind)
    try:
        table: Any = IDDict()
        found = scanner.find_nodes(value)
        for item in found:
            table[item] = replacement(item)
        changed = any(table[item] is not item for item in found)
        return scanner.replace_nodes(table) if changed else value
    finally:
        scanner.clear()


def call_builder(target: Any, arguments: Mapping[str, str]) -> Application:
    """Return the application that an import path names, calling it if it is an app builder."""
    return call_user_app_builder_with_args_if_necessary(target, dict(arguments))
