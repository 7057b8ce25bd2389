"""Other libraries, in a virtual environment of their own: made on first use, and pinned."""

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from benchmarks.sites import free_port

HERE = Path(__file__).parent
VENV = HERE.parents[2] / ".venv-peers"
PINS = HERE.parent / "peers.txt"
_INSTALL_S = 600.0
_START_S = 60.0


@dataclass(frozen=True)
class Running:
    """A peer's server; without a URL it does not run, for that reason."""

    version: str
    url: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Peer:
    """A library to compare with.

    Args:
        package: What is installed.
        script: The file here that uses it. One that serves is given its port.
    """

    package: str
    script: str

    @property
    def version(self) -> str:
        """The package with its pinned version."""
        pins = PINS.read_text().splitlines()
        return next((pin for pin in pins if pin.startswith(f"{self.package}==")), self.package)

    @cached_property
    def missing(self) -> str:
        """Why it cannot be used, after an attempt to install it; nothing if it can."""
        return _why_not_installed(self.package, self.version)

    @contextmanager
    def running(self) -> Iterator[Running]:
        """Run its server."""
        if self.missing:
            yield Running(self.version, reason=self.missing)
            return
        url = f"http://127.0.0.1:{(port := free_port())}/predict"
        with tempfile.TemporaryFile() as log, subprocess.Popen(
            [_python(), str(HERE / self.script), str(port)],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        ) as server:  # fmt: skip
            try:
                if _answers(url, server):
                    yield Running(self.version, url)
                else:
                    log.seek(0)
                    said = log.read().decode(errors="replace")[-300:]
                    yield Running(self.version, reason=f"{self.version} did not start: {said}")
            finally:
                _end(server)

    def measured(self, *arguments: str) -> Any:
        """Return what its script prints, decoded.

        Raises:
            OSError: It cannot be run.
        """
        if self.missing:
            raise OSError(self.missing)
        command = [_python(), str(HERE / self.script), *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if ran.returncode:
            raise OSError(f"{self.version} failed: {ran.stderr[-300:]}")
        return json.loads(ran.stdout)


BENTOML = Peer("bentoml", "bentoml_services.py")
LITSERVE = Peer("litserve", "litserve_api.py")
LANGCHAIN = Peer("langchain-core", "langchain_lcel.py")


def _python() -> str:
    return str(VENV / "bin" / "python")


def _why_not_installed(package: str, pinned: str) -> str:
    """Install a package unless that was done; an empty string when it is there."""
    stamp = VENV / f"{package}.installed"
    if stamp.exists() and stamp.read_text() == PINS.read_text():
        return ""
    try:
        if not Path(_python()).exists():
            _run(sys.executable, "-m", "venv", str(VENV))
        quiet = "--quiet", "--disable-pip-version-check", "--retries", "1"
        _run(_python(), "-m", "pip", "install", *quiet, "-c", str(PINS), package)
    except (subprocess.SubprocessError, OSError) as error:
        failed = isinstance(error, subprocess.CalledProcessError) and error.stderr
        said = (failed or str(error)).splitlines()
        reason = next((line for line in said if line.startswith("ERROR: ")), said[-1])
        return f"{pinned} cannot be installed: {reason.removeprefix('ERROR: ')}"
    stamp.write_text(PINS.read_text())
    return ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S)


def _answers(url: str, server: "subprocess.Popen[bytes]") -> bool:
    """Wait until something answers; whether it does before the server ends, or takes too long."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError as error:  # that it wants another method is an answer
            if error.code < 500:
                return True
        except OSError:
            pass
        time.sleep(0.2)
    return False


def _end(server: "subprocess.Popen[bytes]") -> None:
    """End a server and the processes that it has started."""
    for process in psutil.Process(server.pid).children(recursive=True):
        process.terminate()
    server.terminate()
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        server.kill()
