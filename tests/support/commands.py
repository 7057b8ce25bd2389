"""Running ``raycompose`` as a user does, again and again, without importing Ray each time."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from support import scripts


class Done(NamedTuple):
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


class Process:
    """A command that runs.

    Args:
        commands: What has started it.
        pid: Its process.
    """

    def __init__(self, commands: "Commands", pid: int) -> None:
        self._commands = commands
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or ``None`` while it runs."""
        return self._ended(wait=False)

    def wait(self) -> int:
        """Return the exit status when it has ended."""
        status = self._ended(wait=True)
        assert status is not None
        return status

    def send_signal(self, how: signal.Signals) -> None:
        os.kill(self.pid, how)

    def _ended(self, wait: bool) -> int | None:
        if self._status is None:
            self._status = self._commands.ask(status_of=self.pid, wait=wait)
        return self._status


class Commands:
    """Runs ``raycompose`` with arguments, each time in a process of its own.

    Args:
        folder: Where what they print is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._forking = scripts.start("commands.py", stdin=subprocess.PIPE)

    def ask(self, **question: Any) -> Any:
        assert self._forking.stdin is not None
        assert self._forking.stdout is not None
        print(json.dumps(question), file=self._forking.stdin, flush=True)
        return json.loads(self._forking.stdout.readline())

    def start(self, *arguments: str, streams: list[str], **environment: str) -> Process:
        """Start a command with its standard streams on files."""
        return Process(self, self.ask(run_=[arguments, streams, environment]))

    def __call__(self, *arguments: str, **environment: str) -> Done:
        """Run a command that ends by itself."""
        streams = [os.devnull, *(str(self._folder / name) for name in ("out", "err"))]
        for file in streams[1:]:
            Path(file).write_text("")
        status = self.start(*arguments, streams=streams, **environment).wait()
        return Done(status, *(Path(file).read_text() for file in streams[1:]))

    def close(self) -> None:
        self._forking.communicate(timeout=30)


@contextmanager
def commands(folder: Path) -> Iterator[Commands]:
    """Give what runs commands, and end it."""
    running = Commands(folder)
    yield running
    running.close()
