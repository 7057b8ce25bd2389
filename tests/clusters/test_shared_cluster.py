"""On a cluster that others use: what was started here ends, and nothing else."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
from support.cluster import free_port, hide_ray

import raycompose as rc
from raycompose.client import cluster as clusters

COMMAND = str(Path(sys.executable).with_name("raycompose"))
TESTS = Path(__file__).parents[1]
APPS = TESTS / "apps"
START = TESTS / "scripts" / "shared_cluster.py"
TOKEN = "0123456789abcdef" * 4
START_S = 150


class Shared(NamedTuple):
    """A cluster in a process of its own, that wants a token."""

    address: str
    url: str
    environment: dict[str, str]

    def theirs_answers(self) -> bool:
        return requests.get(f"{self.url}/theirs", timeout=10).text == "theirs"

    def python(self, code: str) -> str:
        """What a program prints that joins the cluster."""
        environment = {**self.environment, "RAY_ADDRESS": self.address}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_S,
            cwd=APPS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    port, log = free_port(), tmp_path_factory.mktemp("shared") / "log"
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(START), str(port)],
            env={**environment, "PYTHONPATH": str(TESTS)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_S
        while not (found := re.search(r"^address (\S+)", log.read_text(), re.MULTILINE)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Shared(found[1], f"http://127.0.0.1:{port}", environment)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.timeout(400)
def test_run_ends_what_it_started_and_nothing_else(shared: Shared, tmp_path: Path) -> None:
    """After Ctrl-C, and after a failed deployment, the others' application still answers."""
    log = tmp_path / "log"
    arguments = ["--app-dir", str(APPS), "--address", shared.address, "--name", "ours"]
    command = [COMMAND, "run", "four:app", "--route-prefix", "/ours", *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**shared.environment, "PYTHONUNBUFFERED": "1"},
        )
    deadline = time.monotonic() + START_S
    while "is up" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    assert requests.post(f"{shared.url}/ours", json="x", timeout=10).text == ">>>>x"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, log.read_text()
    assert "Left running" in log.read_text()
    assert "theirs" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert shared.theirs_answers()
    assert requests.get(f"{shared.url}/ours", timeout=10).status_code == 404

    failed = subprocess.run(
        [COMMAND, "run", "broken:app", "--route-prefix", "/ours", *arguments],
        env=shared.environment,
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.count('raise FileNotFoundError("weights.bin is missing")') == 1
    assert "Error: deployment 'Broken' failed: FileNotFoundError" in failed.stderr
    assert "ray/serve" not in failed.stderr
    assert shared.theirs_answers()


@pytest.mark.timeout(400)
def test_a_client_ends_what_it_started_and_nothing_else(shared: Shared) -> None:
    """``close()``, ``with``, a failure, and running again, which replaces what ran."""
    code = """
import raycompose as rc
from four import Prefix
from ray import serve
def joined():
    return sorted(serve.status().applications)
with rc.run(rc.pipeline(Prefix.bind("a")), name="one", route_prefix="/one") as one:
    print(one.call("x"), joined())
    again = rc.run(rc.pipeline(Prefix.bind("b")), name="one", route_prefix="/one")
    one.close()
    print(again.call("x"), joined())
    other = rc.run(rc.pipeline(Prefix.bind("c")), name="two", route_prefix="/two")
    again.close()
    print(joined())
    from broken import app
    try:
        rc.run(app, name="three", route_prefix="/three")
    except RuntimeError as error:
        print("failed", joined())
    other.close()
"""
    printed = shared.python(code).splitlines()
    assert "ax ['one', 'theirs']" in printed
    assert "bx ['one', 'theirs']" in printed
    assert "['theirs', 'two']" in printed
    assert "failed ['theirs', 'two']" in printed
    assert shared.theirs_answers()


@pytest.mark.parametrize(
    "environment",
    [
        {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64},
    ],
)
def test_a_token_that_is_missing_or_wrong_is_one_line(
    shared: Shared, environment: dict[str, str]
) -> None:
    """It says which variables to set, within seconds."""
    done = subprocess.run(
        [COMMAND, "check", "four:app", "--app-dir", str(APPS), "--address", shared.address],
        env={**shared.environment, **environment},
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert done.returncode == 1, done.stdout
    assert "it wants a token" in done.stderr, done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr
    ours = [line for line in done.stderr.splitlines() if "gcs_client.cc" not in line]
    assert len(ours) == 1, done.stderr


def test_check_compares_with_the_cluster(shared: Shared) -> None:
    """With the token it joins, and counts the cluster's resources."""
    done = subprocess.run(
        [COMMAND, "check", "four:app", "--app-dir", str(APPS), "--address", shared.address],
        env=shared.environment,
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert f"4 CPU asked for, the cluster at {shared.address} has 8 CPU" in done.stdout, done.stderr


def test_an_address_of_nobody_is_found_out_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, what listens is no Ray, or the address is none."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        for address, message in {
            f"127.0.0.1:{free_port()}": "Connection refused",
            f"127.0.0.1:{port}": "no Ray cluster at",
            "nonsense": "is not the address of a Ray cluster",
            f"ray://127.0.0.1:{free_port()}": "Connection refused",
        }.items():
            began = time.monotonic()
            with pytest.raises(ConnectionError, match=message):
                clusters.cluster_to_join(address)
            assert time.monotonic() - began < 10
    assert threading.active_count() < 50


def test_what_a_crashed_ray_left_behind_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and a Ray of one's own is started; ``connect`` says that nobody answers."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    gone = f"127.0.0.1:{free_port()}"
    monkeypatch.setattr("raycompose._serve.cluster_address", lambda address: gone)
    began = time.monotonic()
    assert clusters.cluster_to_join(None) is None
    assert time.monotonic() - began < 5
    assert f"{gone}, is gone" in caplog.text
    hide_ray(monkeypatch)
    with pytest.raises(ConnectionError, match="no Ray cluster at"):
        rc.connect()
