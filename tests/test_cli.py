"""The command line, where it ends before it starts Ray; clusters/test_run.py has the rest."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.commands import Commands, commands
from support.running import APPS, COMMAND


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs ``raycompose`` with arguments, where it ends by itself."""
    with commands(tmp_path_factory.mktemp("commands")) as run:
        yield run


def test_the_shell_completes_commands_and_options() -> None:
    """What ``--install-completion`` sets up asks the command itself."""

    def completed(line: str) -> set[str]:
        words = line.split(" ")
        asked = {"_RAYCOMPOSE_COMPLETE": "complete_bash", "COMP_WORDS": line}
        done = subprocess.run(
            [COMMAND],
            env={**os.environ, **asked, "COMP_CWORD": str(len(words) - 1)},
            capture_output=True,
            text=True,
            check=False,
        )
        return set(done.stdout.split())

    assert {"run", "check", "draw", "call", "build"} <= completed("raycompose ")
    assert completed("raycompose dr") == {"draw"}
    assert {"--reload", "--route-prefix", "--runtime-env"} <= completed("raycompose run --r")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["helo:app"], 1, r"there is no module 'helo' in .*apps .*modules there: broken, fail"),
        (["four:ap"], 1, r"module 'four' has no attribute 'ap'; it has app"),
        (["failing_import:app"], 1, r"was found, but fails while importing"),
        (["wrong_graph:app"], 1, r"stage 2: not a stage: got 42 \(int\)"),
        (["four:app", "text=x"], 1, r"four:app: Arguments can only be passed to an"),
        (["four:build", "text"], 2, r"'text' is not KEY=VALUE"),
        (["four"], 2, r"'four' is not MODULE:ATTRIBUTE, as in hello:app"),
        (["four.py:app"], 2, r"'four.py:app' names a file: write four:app, the module"),
        (["four.py"], 2, r"'four.py' names a file: write four:app, the module"),
        (["four.yaml"], 2, r"there is no file 'four.yaml'"),
    ],
)
def test_what_cannot_run_is_one_clear_line(
    command: Commands, arguments: list[str], status: int, message: str
) -> None:
    """No traceback for what the user mistyped; their own code's line where their code fails."""
    returned, _, text = command("run", *arguments, "--app-dir", str(APPS))
    assert returned == status, text
    assert re.search(message, text), text
    theirs = "fails while importing" in text
    assert ("a_package_that_is_not_installed" in text) == (arguments == ["failing_import:app"])
    assert len(text.strip().splitlines()) == 1 or theirs, text


def test_a_port_in_use_is_said(command: Commands) -> None:
    """Rather than time out behind a proxy that cannot listen."""
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        returned, _, text = command("run", "four:app", "--app-dir", str(APPS), "--port", port)
    assert returned == 1
    assert text.splitlines()[-1] == f"Error: port {port} is in use: choose another with --port"


def test_help_does_not_import_ray() -> None:
    """So that it answers at once."""
    code = "import sys, raycompose_cli; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
