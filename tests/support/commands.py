"""Running ``raycompose`` as a user does, again and again, without importing Ray each time."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from support import scripts


class Done(NamedTuple):
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


@contextmanager
def commands(folder: Path) -> Iterator[Callable[..., Done]]:
    """Give a function that runs ``raycompose`` with arguments, in a process of its own.

    Args:
        folder: Where what they print is kept.
    """
    forking = scripts.start("commands.py", stdin=subprocess.PIPE)
    assert forking.stdin is not None
    assert forking.stdout is not None
    out, err = folder / "out", folder / "err"

    def run(*arguments: str) -> Done:
        print(json.dumps([arguments, str(out), str(err)]), file=forking.stdin, flush=True)
        status = forking.stdout.readline()  # type: ignore[union-attr]  # see above
        return Done(int(status), out.read_text(), err.read_text())

    yield run
    forking.communicate(timeout=30)
