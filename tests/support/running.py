"""``raycompose run`` as a process, until it is up and until it ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.cluster import free_port
from support.commands import Commands

COMMAND = str(Path(sys.executable).with_name("raycompose"))
APPS = Path(__file__).parents[1] / "apps"
EXAMPLES = Path(__file__).parents[2] / "examples"
START_S = 150


class Run:
    """A running ``raycompose run`` and what it has printed."""

    def __init__(self, *arguments: str, log: Path, command: Commands | None = None) -> None:
        self.port = free_port()
        self.log = log
        log.touch()
        arguments = (*arguments, "--port", str(self.port))
        self.process = self._start(arguments, command)

    def _start(self, arguments: tuple[str, ...], command: Commands | None) -> Any:
        if command is not None:
            streams = [os.devnull, str(self.log), str(self.log)]
            return command.start("run", *arguments, streams=streams)
        with self.log.open("w") as output:
            return subprocess.Popen(
                [COMMAND, "run", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def until_up(self) -> "Run":
        deadline = time.monotonic() + START_S
        while "is up" not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)
        return self

    def interrupt(self, how: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(how)
        status: int = self.process.wait()
        return status


@contextlib.contextmanager
def running(*arguments: str, log: Path, command: Commands | None = None) -> Iterator[Run]:
    run = Run(*arguments, log=log, command=command)
    try:
        yield run.until_up()
    finally:
        if run.process.poll() is None:
            run.interrupt()
