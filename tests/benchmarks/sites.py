"""Processes that run what is measured; Ray Serve's settings are read when it is imported.

A site is a process with a Ray of its own, or with none, that has imported one module of the
benchmarks, deployed its ``apps()`` and measures when asked: see ``serving.py``.
"""

import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal

from benchmarks.samples import Sample

Settings = Literal["defaults", "fast", "no ray"]
TESTS = Path(__file__).parents[1]
_PATIENCE_S = 240.0
_GOODBYE_S = 60.0


class MeasuringError(RuntimeError):
    """A process that measures has failed, or has not answered in time."""


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def python(*arguments: str, **environment: str) -> list[Any]:
    """Return the arguments and the environment of a process of the benchmarks."""
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    paths = filter(None, [str(TESTS), inherited.get("PYTHONPATH")])
    env = {**inherited, "PYTHONPATH": os.pathsep.join(paths), **environment}
    return [[sys.executable, *arguments], env]


class Site:
    """One such process.

    Args:
        topic: The module, without ``benchmarks.``.
        settings: Ray Serve's defaults, those for high throughput, or no Ray at all.
    """

    def __init__(self, topic: str, settings: Settings) -> None:
        self._name = f"{topic} ({settings})"
        command, env = python(
            "-m", "benchmarks.serving", topic, settings,
            RAY_SERVE_HAPROXY_METRICS_PORT=str(free_port()),  # another Ray may run on the machine
            RAY_SERVE_HAPROXY_STATS_PORT=str(free_port()),
        )  # fmt: skip
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the site
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        try:
            ready = self._reply(_PATIENCE_S)
        except BaseException:
            self.close()
            raise
        self.urls: dict[str, str] = ready["urls"]
        """Where each application answers HTTP."""

    @property
    def pid(self) -> int:
        """The process, whose descendants are its Ray's."""
        return self._process.pid

    def ask(self, measure: str, way: str = "", **arguments: Any) -> Sample:
        """Have a function of the site's module measure.

        Args:
            measure: Its name; it is a coroutine that returns a ``Sample``.
            way: The application that it is given the client of, if there is a Ray.
            arguments: What else it is given.

        Raises:
            MeasuringError: It raised, or did not return in time.
        """
        asked = {"measure": measure, "way": way, "arguments": arguments}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        return Sample(**self._reply(_PATIENCE_S))

    def _reply(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                raise MeasuringError(f"{self._name} did not answer in {timeout_s:g} s")
        line = self._process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": f"ended: {self._tail()}"}
        if "error" in reply:
            raise MeasuringError(f"{self._name} {reply['error']}")
        return reply

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]

    def close(self) -> None:
        """End the process and its Ray."""
        assert self._process.stdin is not None
        self._process.stdin.close()  # it ends when it reads no more
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _started(topic: str, settings: Settings) -> Site:
    """A site; on a busy machine Ray may not start within the 30 s that it gives itself."""
    try:
        return Site(topic, settings)
    except MeasuringError:
        return Site(topic, settings)


class Sites:
    """The sites that run now: rows that follow one another share theirs."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, Settings], Site] = {}

    def get(self, topic: str, settings: Settings = "defaults") -> Site:
        """Return a site, started if it does not run."""
        key = topic, settings
        if key not in self._open:
            self._open[key] = _started(topic, settings)
        return self._open[key]

    def keep(self, *wanted: tuple[str, Settings]) -> None:
        """End all others: what idles beside a measurement disturbs it."""
        with ExitStack() as closing:
            for key in set(self._open) - set(wanted):
                closing.callback(self._open.pop(key).close)

    def __enter__(self) -> "Sites":
        return self

    def __exit__(self, *_: object) -> None:
        self.keep()
