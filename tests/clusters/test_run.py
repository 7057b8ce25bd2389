"""`raycompose run`, as a user runs it: a Ray of its own, real HTTP, real signals."""

import contextlib
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from support.cluster import free_port
from support.commands import Commands, commands
from support.running import APPS, EXAMPLES, START_S, Run, running
from support.waiting import until

pytestmark = pytest.mark.cluster
SEEDS = Path(__file__).parents[1] / "seeds"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs ``raycompose`` with arguments, where it ends by itself."""
    with commands(tmp_path_factory.mktemp("commands")) as run:
        yield run


def test_hello_is_served_called_by_the_curl_line_shown_and_ended_by_ctrl_c(tmp_path: Path) -> None:
    """The line that the banner shows works when pasted, and Ctrl-C leaves no process behind."""
    with running("hello:app", "--app-dir", str(EXAMPLES), log=tmp_path / "log") as run:
        answer = requests.post(f"http://127.0.0.1:{run.port}/", data='{"data": "hello world"}')
        assert answer.text == "Final output: Inferred result: HELLO WORLD"
        line = next(line for line in run.output.splitlines() if line.strip().startswith("curl "))
        pasted = subprocess.run(shlex.split(line), capture_output=True, text=True, check=True)
        assert pasted.stdout == "Final output: Inferred result: HELLO WORLD"
        family = psutil.Process(run.process.pid).children(recursive=True)
        assert family, "Ray's processes are the command's children"
        assert run.interrupt() == 0, run.output
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
        assert "Traceback" not in run.output, run.output


def test_an_app_builder_gets_its_arguments_and_cpus_for_all_its_replicas(
    command: Commands, tmp_path: Path
) -> None:
    """Four deployments of a CPU each start on any machine; SIGTERM ends it as Ctrl-C does."""
    arguments = ("four:build", "text=<", "--app-dir", str(APPS), "--route-prefix", "/four")
    with running(*arguments, "--name", "quartet", log=tmp_path / "log", command=command) as run:
        url = f"http://127.0.0.1:{run.port}/four"
        assert requests.post(url, json="x").text == "<<<<x"
        assert f"{url}/" in run.output
        assert run.interrupt(signal.SIGTERM) == 0, run.output


def test_a_deployment_that_fails_ends_it_with_status_1_and_the_reason(command: Commands) -> None:
    """Ray exits with status 0 when a constructor raises; we exit with 1 and name the deployment."""
    done = command("run", "broken:app", "--app-dir", str(APPS), "--port", str(free_port()))
    assert done.status == 1, done
    assert "Error: deployment 'Broken' failed" in done.err, done
    assert "weights.bin is missing" in done.err, done


def test_what_waits_for_too_long_ends_with_the_reason(command: Commands, tmp_path: Path) -> None:
    """``--timeout-s``: status 1 and what the replicas lack, and what never was up ends at once.

    ``-v`` shows Ray's own lines.
    """
    (tmp_path / "greedy.py").write_text(
        "from ray import serve\n"
        "@serve.deployment(ray_actor_options={'num_gpus': 1})\n"
        "class Greedy:\n"
        "    def __call__(self, x: str) -> str:\n"
        "        return x\n"
        "app = Greedy.bind().then(lambda x: x)\n"
    )
    arguments = ("greedy:app", "--app-dir", str(tmp_path), "--timeout-s", "3", "-v")
    run = Run(*arguments, log=tmp_path / "log", command=command)
    until(lambda: "Error: not up within --timeout-s 3" in run.output, START_S)
    said = time.monotonic()
    assert run.process.wait() == 1, run.output
    assert time.monotonic() - said < 15, "20 s are what Ray Serve gives a replica to end"
    assert "needs 1 GPU" in run.output
    assert run.output.count("Started a local Ray instance") == 1, "no other Ray is started"


class Terminal(Run):
    """A ``raycompose run`` that writes to a terminal."""

    def _start(self, arguments: tuple[str, ...], command: Commands | None) -> Any:
        assert command is not None
        ours, self.terminal = pty.openpty()
        streams = [os.ttyname(self.terminal)] * 3
        environment = {"TERM": "xterm", "COLUMNS": "80"}
        self.reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self.reader.start()
        return command.start("run", *arguments, streams=streams, **environment)

    def _read(self, terminal: int) -> None:
        with self.log.open("wb") as log, contextlib.suppress(OSError):  # the terminal is gone
            while data := os.read(terminal, 1024):
                log.write(data)
                log.flush()

    def interrupt(self, how: signal.Signals = signal.SIGINT) -> int:
        status = super().interrupt(how)
        os.close(self.terminal)  # the last that has it open
        self.reader.join()
        return status


def test_changes_are_deployed_again_and_a_terminal_has_a_live_table(
    command: Commands, tmp_path: Path
) -> None:
    """``--reload`` notices a change of any module, and lives through a syntax error.

    It also does while it waits for replicas, which may never start.
    """
    app, words = tmp_path / "greeting.py", tmp_path / "words.py"
    words.write_text("HELLO = 'Hello'\n")
    app.write_text(
        "from ray import serve\n"
        "from words import HELLO\n"
        "@serve.deployment\n"
        "def greet(name: str) -> str:\n"
        "    return f'{HELLO}, {name}'\n"
        "app = greet.bind().then(str.upper)\n"
    )
    arguments = ("greeting:app", "--app-dir", str(tmp_path), "--reload")
    run = Terminal(*arguments, log=tmp_path / "log", command=command)

    def answers() -> str:
        return requests.post(f"http://127.0.0.1:{run.port}/", data='"Dora"', timeout=30).text

    try:
        run.until_up()
        assert re.search(r"greet\s.*0/1", run.output), "the table while replicas start"
        assert answers() == "HELLO, DORA"
        words.write_text("HELLO = 'Hola'\n")
        until(lambda: answers() == "HOLA, DORA", START_S)
        words.write_text("HELLO = \n")
        until(lambda: "SyntaxError" in run.output, START_S)
        assert answers() == "HOLA, DORA"
        words.write_text("HELLO = 'Salut'\n")
        until(lambda: answers() == "SALUT, DORA", START_S)
        text = app.read_text()
        needs = "@serve.deployment(ray_actor_options={'num_gpus': 1})\n"
        app.write_text(text.replace("@serve.deployment\n", needs))
        until(lambda: "needs 1 GPU" in run.output, START_S)
        words.write_text("HELLO = 'Ciao'\n")
        app.write_text(text)
        until(lambda: answers() == "CIAO, DORA", START_S)
    finally:
        status = run.interrupt()
    assert status == 0, run.output
    assert "Traceback" not in run.output, run.output


def test_a_module_that_deploys_itself_runs_as_it_is(command: Commands, tmp_path: Path) -> None:
    """The second seed's file, which calls serve.run without raycompose, works with --port."""
    source = (SEEDS / "then_pipeline.py").read_text()
    bare = re.sub(r"^import raycompose.*\n", "", source, flags=re.MULTILINE)
    assert "raycompose" not in bare.replace("# ", "")
    (tmp_path / "seed.py").write_text(bare)
    arguments = ("seed:app", "--app-dir", str(tmp_path))
    with running(*arguments, log=tmp_path / "log", command=command) as run:
        answer = requests.post(f"http://127.0.0.1:{run.port}/", json={"data": "hello world"})
        assert answer.text == "Final output: Inferred result: HELLO WORLD"


def test_a_config_file_runs_with_what_it_overrides(command: Commands, tmp_path: Path) -> None:
    """`serve build` writes a config; changed, `raycompose run` runs it."""
    config = tmp_path / "config.yaml"
    serve = str(Path(sys.executable).with_name("serve"))
    build = [serve, "build", "four:app", "--app-dir", str(APPS), "--output-path", str(config)]
    subprocess.run(
        build, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(APPS)}
    )
    text = config.read_text()
    changed = text.replace("- name: Prefix_3", "- name: Prefix_3\n    num_replicas: 2", 1)
    assert changed != text
    config.write_text(changed)
    arguments = (str(config), "--app-dir", str(APPS))
    with running(*arguments, log=tmp_path / "log", command=command) as run:
        assert requests.post(f"http://127.0.0.1:{run.port}/", json="x").text == ">>>>x"
        assert "Prefix_3: 2 replicas up" in run.output
