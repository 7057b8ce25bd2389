"""Runs ``raycompose`` commands, each in a process of its own that has imported Ray already.

Reads a JSON line for each: what is to run, or the process of which the exit status is wanted.
Prints a JSON line for each: the process, or its exit status; null of one that has not ended yet.
"""

import json
import os
import sys
from typing import Any

from ray.serve import scripts  # noqa: F401  # what the commands import
from raycompose_cli import main
from support.cluster import start_less

import raycompose  # noqa: F401  # what the commands import


def run(arguments: list[str], streams: list[str], environment: dict[str, str]) -> int:
    """Run the command line as the installed command does, and return its exit status."""
    for standard, file in enumerate(streams):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOCTTY), standard)
    os.environ.update(environment)
    sys.argv = ["raycompose", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def answer(run_: Any = None, status_of: int | None = None, wait: bool = True) -> int | None:
    """Start a command and return its process, or the exit status of one."""
    if status_of is None:
        child = os.fork()
        if not child:
            os._exit(run(*run_))
        return child
    ended, status = os.waitpid(status_of, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


start_less("start_log_monitor")
for line in sys.stdin:
    print(json.dumps(answer(**json.loads(line))), flush=True)
