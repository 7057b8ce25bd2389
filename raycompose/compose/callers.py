"""Whether a deployment may call others through Ray: deployments, tasks or actors.

A call by gRPC is no task of Ray's. When it is cancelled, what its callee has called in turn by
Ray's default transport runs on (seen in 2.60); Ray cancels that with a task only. So calls of a
deployment go by gRPC only if nothing that its code mentions calls through Ray.
"""

import builtins
import dis
import functools
import importlib.metadata
import inspect
import re
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from ray.serve import Deployment

_RAY = frozenset({"ray", "raycompose"})
_HARMLESS = frozenset({
    "Event", "HTTPError", "ObjectRef", "get", "get_multiplexed_model_id", "get_replica_context",
    "put", "remaining_s",
})  # fmt: skip
"""What of Ray's and ours calls nobody."""
_WRAPPERS = frozenset({"ray.serve.api", "ray.serve.batching"})
"""Where ``@serve.multiplexed`` and ``@serve.batch`` wrap the user's methods."""
_ANYTHING = frozenset({"eval", "exec", "__import__", "importlib"})
"""What may run code that is not to be seen here."""
_SCALARS = (str, bytes, bytearray, int, float, complex, type(None))
_MOST = 5_000
"""How many objects are looked at."""


def may_call(deployment: Deployment) -> bool:
    """Tell whether a deployment may call others through Ray, as far as its code tells.

    Looked at are its class or function, its constructor's arguments, and what those mention, by
    name and by name again, in the user's own modules. An installed package calls nobody unless it
    requires Ray.

    Args:
        deployment: A deployment, with the arguments that it is bound to.
    """
    definition = deployment.func_or_class
    if isinstance(definition, str):  # an import path: nothing to look at
        return True
    todo = [definition, deployment.init_args, deployment.init_kwargs]
    seen: set[int] = set()
    held: list[Any] = []  # so that no id is given again
    while todo:
        one = todo.pop()
        if isinstance(one, _SCALARS) or id(one) in seen:
            continue
        if len(held) == _MOST or _calls(one):
            return True
        seen.add(id(one))
        held.append(one)
        todo += _mentioned(one)
    return False


def _calls(one: Any) -> bool:
    """Whether an object is Ray's, or belongs to a package that uses Ray."""
    if _wraps(one):
        return False
    if isinstance(one, types.ModuleType):
        return _uses_ray(one.__name__)
    return _uses_ray(_home(one)) and not _is_harmless(one)


def _is_harmless(one: Any) -> bool:
    return _top(_home(one)) in _RAY and getattr(one, "__name__", "") in _HARMLESS


def _home(one: Any) -> str:
    """The module that an object, or its class, is of."""
    named = inspect.isclass(one) or inspect.isroutine(one)
    home = getattr(one if named else type(one), "__module__", None)
    return home if isinstance(home, str) else ""


def _wraps(one: Any) -> bool:
    """Whether it is what Serve's own decorators make of a method."""
    if not isinstance(one, types.FunctionType):
        return False
    return one.__globals__.get("__name__") in _WRAPPERS and hasattr(one, "__wrapped__")


def _mentioned(one: Any) -> Iterator[Any]:
    """What an object holds or its code names."""
    if _is_harmless(one):
        return
    if _wraps(one):
        yield one.__wrapped__
    elif isinstance(one, types.FunctionType):
        yield from (one.__defaults__ or (), one.__kwdefaults__ or {}, vars(one))
        yield from map(_contents, one.__closure__ or ())
        if not _is_library(one.__globals__.get("__name__", "")):
            yield from _named(one.__code__, one.__globals__)
    elif isinstance(one, types.MethodType):
        yield from (one.__func__, one.__self__)
    elif isinstance(one, staticmethod | classmethod):
        yield one.__func__
    elif isinstance(one, property | functools.cached_property):
        yield from (getattr(one, name, None) for name in ("fget", "fset", "fdel", "func"))
    elif isinstance(one, functools.partial):
        yield from (one.func, one.args, one.keywords)
    elif isinstance(one, dict):
        yield from (*one, *one.values())
    elif isinstance(one, list | tuple | set | frozenset):
        yield from one
    elif inspect.isclass(one):
        if not _is_library(one.__module__):
            yield from (*one.__bases__, *vars(one).values())
    elif not isinstance(one, types.ModuleType):
        yield from (type(one), getattr(one, "__dict__", None), getattr(one, "__wrapped__", None))


def _named(code: types.CodeType, names: dict[str, Any]) -> Iterator[Any]:
    """What a function's code, and the functions in it, name."""
    attributes = set(code.co_names)
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found = names.get(step.argval, getattr(builtins, step.argval, None))
            yield from _used(found, attributes, set())
            if step.argval in _ANYTHING:
                yield _Unseen
        elif step.opname == "IMPORT_NAME" and step.argval:
            yield from _used(sys.modules.get(step.argval, _Unseen), attributes, set())
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _named(inner, names)


def _used(found: Any, attributes: Iterable[str], seen: set[str]) -> Iterator[Any]:
    """What is named, or, of a module, what of it is."""
    if not isinstance(found, types.ModuleType):
        yield found
    elif found.__name__ not in seen:
        seen.add(found.__name__)
        if _top(found.__name__) not in _RAY and _is_library(found.__name__):
            yield found
        else:
            for name in attributes:
                yield from _used(getattr(found, name, None), attributes, seen)


class _Unseen:
    """Stands for code that is not to be seen here."""


_Unseen.__module__ = "ray"


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_library(module: str) -> bool:
    """Whether a module is Python's, or an installed package's, rather than the user's own."""
    top = _top(module)
    if top in sys.stdlib_module_names or top in _RAY:
        return True
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


@functools.cache
def _uses_ray(module: str) -> bool:
    """Whether a module is Ray's, or of an installed package that requires Ray."""
    top = _top(module)
    if top in _RAY or top in sys.stdlib_module_names or not _is_library(module):
        return top in _RAY
    return any(map(_requires_ray, _distributions(top)))


def _distributions(top: str) -> list[str]:
    try:
        return [importlib.metadata.distribution(top).name]
    except importlib.metadata.PackageNotFoundError:
        return list(_packages().get(top, ()))


@functools.cache
def _packages() -> Any:
    return importlib.metadata.packages_distributions()  # reads every package's: a while


def _requires_ray(distribution: str) -> bool:
    required = importlib.metadata.requires(distribution) or ()
    return any(re.match(r"ray(?![\w.-])(?!.*\bextra\b)", each, re.IGNORECASE) for each in required)
