"""``--reload``: deploy again when a module below the application's folder changes."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import typer
from watchfiles import PythonFilter, watch

from .loading import Problem
from .options import Options

_ALSO = (".yaml", ".yml", ".toml", ".json")


def reload(
    options: Options,
    deploy: Callable[[], None],
    fail: Callable[[Problem], None],
    check: Callable[[], None],
) -> None:
    """Watch for ever; what cannot be deployed is said, and waited for to be put right.

    Args:
        options: Those of the command.
        deploy: Builds the applications again, and deploys them.
        fail: Says what was wrong.
        check: Raises when the user has asked for the end.
    """
    folder = Path(options.working_dir or options.app_dir).resolve()
    filtered = PythonFilter(extra_extensions=_ALSO)
    changes = watch(folder, watch_filter=filtered, rust_timeout=500, yield_on_timeout=True)
    for changed in changes:
        check()
        if not changed:
            continue
        typer.echo(f"\n{_named(folder, {path for _, path in changed})}: deploying again.")
        forget(Path(options.app_dir).resolve())
        try:
            deploy()
        except Problem as problem:
            fail(problem)
            typer.echo("What ran before goes on, where it can. Waiting for changes.")


def forget(folder: Path) -> list[str]:
    """Have every module below a folder imported anew, and return their names."""
    importlib.invalidate_caches()
    names = [name for name, module in list(sys.modules.items()) if _is_below(module, folder)]
    for name in names:
        del sys.modules[name]
    return names


def _is_below(module: object, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    if not file or "site-packages" in file:
        return False
    return folder in Path(file).resolve().parents and not file.startswith(sys.prefix)


def _named(folder: Path, paths: set[str]) -> str:
    files = sorted(path.removeprefix(f"{folder}/") for path in paths)
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f"{', '.join(files[:3])}{more} changed"
