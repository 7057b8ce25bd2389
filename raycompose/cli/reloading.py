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


class Changed(Exception):  # a signal: the wait for replicas ends early
    """Files changed while their application was being deployed.

    Args:
        paths: The files.
    """

    def __init__(self, paths: set[str]) -> None:
        super().__init__(paths)
        self.paths = paths


class Changes:
    """What changes below the application's folder, from the first deployment on.

    Args:
        options: Those of the command.
        check: Raises when the user has asked for the end.
    """

    def __init__(self, options: Options, check: Callable[[], None]) -> None:
        self._folder = Path(options.working_dir or options.app_dir).resolve()
        self._modules = Path(options.app_dir).resolve()
        self._check = check
        self._is_source = PythonFilter(extra_extensions=_ALSO)
        # Not as its filter: while a log in the folder grows, that would never give a turn.
        self._watched = watch(
            self._folder, watch_filter=None, debounce=400, rust_timeout=100, yield_on_timeout=True
        )

    def check(self) -> None:
        """Raise when something has changed, too.

        Raises:
            Changed: It has.
        """
        self._check()
        if changed := {path for how, path in next(self._watched) if self._is_source(how, path)}:
            raise Changed(changed)

    def follow(self, deploy: Callable[[], None], fail: Callable[[Problem], None]) -> None:
        """Deploy at each change, for ever; what cannot be deployed waits to be put right.

        Args:
            deploy: Builds the applications, and deploys them; it may call ``check`` meanwhile.
            fail: Says what was wrong.
        """
        due = True
        while True:
            try:
                if due:
                    deploy()
                while True:
                    self.check()
            except Problem as problem:
                due = False
                fail(problem)
                typer.echo("What ran before goes on, where it can. Waiting for changes.")
            except Changed as changed:
                due = True
                typer.echo(f"\n{_named(self._folder, changed.paths)}: deploying again.")
                forget(self._modules)


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
