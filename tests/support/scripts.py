"""Running the files of tests/scripts: processes that have a Ray of their own, or none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def start(
    name: str, *arguments: object, stdin: int | None = None, **environment: str
) -> "subprocess.Popen[str]":
    """Start a script, which may import ``support``."""
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    paths = [str(TESTS), inherited.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, str(TESTS / "scripts" / name), *map(str, arguments)],
        env={**inherited, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def found_by(script: "subprocess.Popen[str]", within_s: float = 170) -> Any:
    """What a script has found, by case: the one JSON object that it prints when it ends."""
    out, err = script.communicate(timeout=within_s)
    lines = [line for line in out.splitlines() if line.startswith("{")]  # others are Ray's
    assert lines, err[-4000:]
    assert script.returncode == 0, err[-4000:]
    return json.loads(lines[-1])
