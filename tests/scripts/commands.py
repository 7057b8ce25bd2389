"""Runs ``raycompose`` commands, each in a process of its own that has imported Ray already.

Reads a JSON line for each: the arguments, and the files for standard output and standard error.
Prints the exit status of each.
"""

import json
import os
import sys

from ray.serve import scripts  # noqa: F401  # what the commands import
from raycompose_cli import main


def run(arguments: list[str], out: str, err: str) -> int:
    """Run the command line as the installed command does, and return its exit status."""
    for file, standard in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), standard)
    sys.argv = ["raycompose", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


for line in sys.stdin:
    child = os.fork()
    if not child:
        os._exit(run(*json.loads(line)))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
