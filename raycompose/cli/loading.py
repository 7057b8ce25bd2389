"""Import paths: ``module:attribute`` to the object, or one line that says what is wrong."""

import ast
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any


class Problem(Exception):
    """Something that the user can put right. Its text is all that is shown.

    Args:
        message: What is wrong and what to do.
        status: The command's exit status: 1 for a failure, 2 for wrong usage.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message, status)
        self.message = message
        self.status = status


def split(path: str) -> tuple[str, str]:
    """Return the module and the attribute that an import path names.

    >>> split("pkg.hello:app"), split("pkg.hello.app")
    (('pkg.hello', 'app'), ('pkg.hello', 'app'))
    """
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    parts = [*module.split("."), *attribute.split(".")]
    if path.endswith((".yaml", ".yml")):
        raise Problem(f"there is no file {path!r}", status=2)
    if (file := path.partition(":")[0]).endswith(".py"):
        app = attribute if ":" in path else "app"
        raise Problem(f"{path!r} names a file: write {file[:-3]}:{app}, the module", status=2)
    if not all(part.isidentifier() for part in parts):
        raise Problem(f"{path!r} is not MODULE:ATTRIBUTE, as in hello:app (nor a file)", status=2)
    return module, attribute


def load(path: str, app_dir: str) -> Any:
    """Import the object that an import path names.

    Raises:
        Problem: There is no such module or attribute, or the module fails while importing.
    """
    module_name, attribute = split(path)
    _find(module_name, app_dir)
    try:
        found = importlib.import_module(module_name)
    except Exception as error:
        raise Problem(_import_failure(module_name, error)) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise Problem(
                f"module {module_name!r} has no attribute {attribute!r}; it has "
                f"{', '.join(_candidates(found)) or 'no applications'}"
            )
        found = getattr(found, part)
    return found


def deploys_itself(path: str, app_dir: str) -> bool:
    """Tell whether importing the module calls ``serve.run``, from its source alone."""
    module_name, _ = split(path)
    origin = _find(module_name, app_dir)
    if origin is None or not origin.endswith(".py"):
        return False
    try:
        tree = ast.parse(Path(origin).read_bytes())
    except SyntaxError:  # importing it says where
        return False
    calls = [
        ast.unparse(node.func)
        for statement in tree.body
        if isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign | ast.With)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
    ]
    return "serve.run" in calls and "ray.init" not in calls


def _find(module_name: str, app_dir: str) -> str | None:
    """The module's file; raises when there is no such module."""
    if app_dir not in sys.path:
        sys.path.insert(0, app_dir)
    parts = module_name.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        try:
            spec = importlib.util.find_spec(name)
        except Exception as error:  # a parent package fails while importing
            raise Problem(_import_failure(name, error)) from error
        if spec is None:
            here = sorted(p.stem for p in Path(app_dir).glob("*.py"))
            raise Problem(
                f"there is no module {name!r} in {Path(app_dir).resolve()} (--app-dir), "
                f"nor installed; modules there: {', '.join(here) or 'none'}"
            )
    return spec.origin if spec else None


def _import_failure(module_name: str, error: Exception) -> str:
    """The user's part of a traceback, under a line that says what it is."""
    from raycompose import CompositionError

    if isinstance(error, CompositionError):
        frames = _their_frames(error)
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else module_name
        return f"{where}: {error}"
    lines = their_traceback(error) or "".join(traceback.format_exception_only(error)).rstrip()
    return f"module {module_name!r} was found, but fails while importing:\n{lines}"


def their_traceback(error: Exception) -> str:
    """Return the traceback of the user's own code and the error; empty if none of it is theirs."""
    frames = _their_frames(error)
    if not frames and not isinstance(error, SyntaxError):
        return ""
    lines = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
    return "".join(lines).rstrip()


def _their_frames(error: Exception) -> list[traceback.FrameSummary]:
    import ray

    machinery = str(Path(importlib.__file__).parent)
    ours = (str(Path(__file__).parents[1]), str(Path(ray.__file__).parent), machinery)
    frames = traceback.extract_tb(error.__traceback__)
    return [f for f in frames if not f.filename.startswith((*ours, "<frozen importlib"))]


def _candidates(module: Any) -> list[str]:
    from ray.serve import Application

    return [name for name, value in vars(module).items() if isinstance(value, Application)]
