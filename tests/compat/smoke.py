"""Run by ``make compat``: what must work on a cluster, in one process and one command.

A pipeline of replicas, by value and by reference, called by its handle and over HTTP; a stream from
one replica through another; ``raycompose run`` of an example, and Ctrl-C.
"""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import ray
import requests
from ray import serve

import raycompose as rc

EXAMPLES = Path(__file__).parents[2] / "examples"
START_S = 300
FREE: Any = {"ray_actor_options": {"num_cpus": 0}}


@serve.deployment(**FREE)
class Upper:
    def __call__(self, text: str) -> str:
        return text.upper()


@serve.deployment(**FREE)
class Late:
    async def __call__(self, text: rc.Ref[str]) -> str:
        return f"{await text}, by reference"


@serve.deployment(**FREE)
class Blocking:
    def __call__(self, text: rc.Ref[str]) -> str:
        return f"{text.get(timeout_s=30)}, twice"


@serve.deployment(**FREE)
class Counter:
    def __call__(self, n: int) -> Iterator[int]:
        yield from range(n)


@serve.deployment(**FREE)
class Relay:
    async def __call__(self, numbers: rc.Stream[int]) -> AsyncIterator[int]:
        async for number in numbers:
            yield 10 * number


@serve.deployment(**FREE)
class BlockingRelay:
    def __call__(self, numbers: rc.Stream[int]) -> Iterator[int]:
        for number in numbers:
            yield number + 1


def exclaim(text: str) -> str:
    return f"{text}!"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def deployed() -> None:
    """Pipelines on a cluster of this process."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": free_port()})
    words = rc.pipeline(Upper.bind(), Late.bind(), Blocking.bind(), exclaim)
    numbers = rc.pipeline(Counter.bind(), Relay.bind(), BlockingRelay.bind())
    with (
        rc.run(words, name="words", route_prefix="/words") as client,
        rc.run(numbers, name="numbers", route_prefix="/numbers") as streaming,
    ):
        said = "HI, by reference, twice!"
        assert client.call("hi") == said
        assert client.handle.remote("hi").result(timeout_s=60) == said
        assert requests.post(client.url or "", data='"hi"', timeout=60).text == said
        bad = requests.post(client.url or "", data='{"text":', timeout=60)
        assert bad.status_code == 400, bad.text
        assert list(streaming.stream(3)) == [1, 11, 21]
        lines = requests.post(streaming.url or "", data="3", timeout=60).text
        assert lines.split() == ["1", "11", "21"], lines
    serve.shutdown()
    ray.shutdown()


def by_command() -> None:
    """The command that comes with the wheel, and what it serves."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("raycompose")), "run", "hello:app"]
    options = ["--app-dir", str(EXAMPLES), "--port", str(port)]
    with tempfile.TemporaryFile("w+") as output:
        running = subprocess.Popen(
            [*command, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            answer = first_answer(running, f"http://127.0.0.1:{port}/")
            assert answer == "Final output: Inferred result: HELLO WORLD", answer
            running.send_signal(signal.SIGINT)
            assert running.wait(START_S) == 0
        except BaseException:
            running.kill()
            output.seek(0)
            print(output.read())
            raise


def first_answer(running: "subprocess.Popen[bytes]", url: str) -> str:
    """Ask until there is an answer."""
    deadline = time.monotonic() + START_S
    while running.poll() is None and time.monotonic() < deadline:
        try:
            answer = requests.post(url, data='{"data": "hello world"}', timeout=60)
        except requests.ConnectionError:
            time.sleep(0.2)
            continue
        if answer.ok:
            return answer.text
        time.sleep(0.2)
    raise AssertionError("`raycompose run` did not answer")


if __name__ == "__main__":
    os.environ["RAY_AUTH_MODE"] = "disabled"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # heard in the background, too
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    deployed()
    by_command()
    module = [sys.executable, "-m", "raycompose", "--help"]
    assert "check" in subprocess.run(module, capture_output=True, text=True, check=True).stdout
    print(f"ok ({rc.__version__} on Ray {ray.__version__})")
