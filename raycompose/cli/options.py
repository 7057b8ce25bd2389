"""The options of ``raycompose run``."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .loading import Problem


@dataclass(frozen=True)
class Options:
    """The options of ``raycompose run``; see its ``--help``."""

    target: str
    arguments: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "default"
    route_prefix: str | None = "/"
    app_dir: str = "."
    address: str | None = None
    working_dir: str | None = None
    runtime_env: str | None = None
    runtime_env_json: str | None = None
    reload: bool = False
    blocking: bool = True
    timeout_s: float | None = None
    fast: bool = False
    verbose: bool = False

    @property
    def is_config(self) -> bool:
        """Whether the target is a Serve config file."""
        return Path(self.target).is_file() and not self.target.endswith(".py")

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            Problem: Two options exclude each other.
        """
        if self.reload and not self.blocking:
            raise Problem("--reload waits for changes, which --non-blocking rules out", status=2)
        if self.reload and self.is_config:
            raise Problem("--reload takes MODULE:ATTRIBUTE; a config file is deployed anew by "
                          "`serve deploy`", status=2)  # fmt: skip
        if self.runtime_env and self.runtime_env_json:
            raise Problem("give --runtime-env or --runtime-env-json, not both", status=2)

    def environment(self) -> dict[str, Any]:
        """Return the ``runtime_env`` of the replicas, from the three options that make it.

        Raises:
            Problem: It is no mapping, or the file is not there.
        """
        made: Any = {}
        if self.runtime_env:
            text = read(self.runtime_env, "--runtime-env")
            made = parsed(yaml.safe_load, text, f"--runtime-env {self.runtime_env}")
        if self.runtime_env_json:
            made = parsed(json.loads, self.runtime_env_json, "--runtime-env-json")
        if not isinstance(made, dict):
            raise Problem(f"a runtime_env is a mapping, got {made!r}", status=2)
        return {**made, "working_dir": self.working_dir} if self.working_dir else made


def read(path: str, what: str) -> str:
    """Return a file's text.

    Raises:
        Problem: It cannot be read.
    """
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{what}: cannot read {path}: {_reason(error)}", status=2) from error


def write(path: str, text: str) -> None:
    """Write a file.

    Raises:
        Problem: It cannot be written.
    """
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise Problem(f"cannot write {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def parsed(parse: Callable[[str], Any], text: str, what: str) -> Any:
    """Return what ``parse`` makes of the text.

    Raises:
        Problem: It makes nothing of it; the line says where.
    """
    try:
        return parse(text)
    except (ValueError, yaml.YAMLError) as error:
        where = " ".join(str(error).split())
        raise Problem(f"{what} cannot be read: {where}", status=2) from error
