"""What the command line says while replicas start, and of what failed: pure functions."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from raycompose_cli import watching
from raycompose_cli.failures import users_traceback
from raycompose_cli.loading import Problem
from raycompose_cli.options import Options
from raycompose_cli.progress import is_up, line
from raycompose_cli.reloading import Changed, Changes, forget
from raycompose_cli.watching import Watch, table
from rich.console import Console
from support.waiting import poll

from raycompose._serve import DeploymentState
from raycompose.client.logs import printer, shown

NONE: dict[str, float] = {}
HAS = {"CPU": 8.0, "memory": 2**33}


def state(**changes: Any) -> DeploymentState:
    given = {
        "name": "Model",
        "status": "UPDATING",
        "message": "",
        "wanted": 2,
        "running": 0,
        "placed": 0,
        "needs": {"CPU": 1.0},
        **changes,
    }
    return DeploymentState(**given)


@pytest.mark.parametrize(
    ("changes", "free", "expected"),
    [
        (
            {"needs": {"CPU": 1.0, "GPU": 1.0}},
            HAS,
            "Model: 0/2 replicas, needs 1 GPU each, the cluster has 0",
        ),
        ({"running": 1, "placed": 1}, NONE, "Model: 1/2 replicas, needs 1 CPU each, 0 of 8 free"),
        (
            {"wanted": 1, "needs": {"memory": 2**34}},
            HAS,
            "Model: 0/1 replica, needs 16 GiB memory, the cluster has 8 GiB",
        ),
        ({"placed": 2}, NONE, "Model: 0/2 replicas, starting"),
        (
            {"message": "The deployment failed to start 1 times"},
            HAS,
            "Model: 0/2 replicas, its constructor failed, Ray tries again",
        ),
        ({"running": 2, "placed": 2, "status": "HEALTHY"}, NONE, "Model: 2/2 replicas"),
    ],
)
def test_a_line_says_what_is_missing(
    changes: dict[str, Any], free: dict[str, float], expected: str
) -> None:
    """How many of how many, and the reason why not more."""
    deployment = state(**changes)
    assert line(deployment, HAS, free) == expected
    assert is_up(deployment) == expected.endswith("2/2 replicas")


def test_the_live_table_fits_80_columns() -> None:
    """A long reason is wrapped in its own column."""
    console = Console(width=80, force_terminal=True, record=True)
    needs = {"an_accelerator_with_a_long_name": 4.0}
    console.print(table([state(needs=needs), state(name="N" * 30)], HAS, HAS))
    lines = console.export_text().splitlines()
    assert all(len(text) <= 80 for text in lines)
    assert "0/2" in lines[0]


def test_plain_output_has_one_line_for_each_that_is_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Not a terminal: nothing is drawn over."""
    watch = Watch(["default"], None, Console(highlight=False, width=80))
    show = watch._lines()
    for running in (0, 1, 2, 2):
        status = "HEALTHY" if running == 2 else "UPDATING"
        show([state(running=running, placed=2, status=status)], HAS, HAS)
    assert capsys.readouterr().out == "  Model: 2 replicas up\n"


def test_what_starts_on_a_ray_of_its_own_does_not_wait_for_cpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray was started with enough of them: those that are taken are the replica's own."""
    monkeypatch.setattr(watching, "_POLL_S", 0.01)
    monkeypatch.setattr(watching, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(watching, "_resources", lambda: (HAS, {**HAS, "CPU": 0.0}))
    states = iter([state(running=0, placed=0)] * 3 + [state(running=2, placed=2, status="HEALTHY")])
    app = SimpleNamespace(status="RUNNING", deployments=[])

    def apps() -> dict[str, Any]:
        app.deployments = [next(states)]
        return {"default": app}

    monkeypatch.setattr(watching, "_states", apps)
    console = Console(highlight=False, width=80)
    Watch(["default"], None, console, is_shared=False).until_up(lambda: time.sleep(0.001))
    told = capsys.readouterr().out
    assert "waiting for Model: 0/2 replicas, starting" in told
    assert "free" not in told


RAYS_TEXT = """The deployment failed to start 3 times in a row. See controller logs. Error:
\x1b[36mray::ServeReplica:b:Broken.initialize_and_get_metadata()\x1b[39m (pid=1, ip=10.0.0.1)
  File "/usr/lib/python3.11/concurrent/futures/_base.py", line 456, in result
    return self.__get_result()
  File "/venv/lib/python3.11/site-packages/ray/serve/_private/replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "/app/weights.py", line 3, in load
    open(path)
    ^^^^^^^^^^
OSError: no such file

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/ray/serve/_private/replica.py", line 1867, in initialize
    await self._user_callable_wrapper.initialize_callable()
  File "/app/broken.py", line 20, in __init__
    raise FileNotFoundError("weights.bin is missing")
FileNotFoundError: weights.bin is missing"""


def test_a_constructor_s_error_is_the_user_s_own_traceback() -> None:
    """Without Ray's frames, with what it was caused by."""
    assert users_traceback(RAYS_TEXT).splitlines() == [
        "Traceback (most recent call last):",
        '  File "/app/weights.py", line 3, in load',
        "    open(path)",
        "    ^^^^^^^^^^",
        "OSError: no such file",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "Traceback (most recent call last):",
        '  File "/app/broken.py", line 20, in __init__',
        '    raise FileNotFoundError("weights.bin is missing")',
        "FileNotFoundError: weights.bin is missing",
    ]
    assert users_traceback("The replica was killed.\n") == "The replica was killed."
    assert users_traceback("") == "Ray gives no reason"


def test_replicas_lines_are_shown_behind_their_stage_and_ray_s_own_are_not() -> None:
    """Prints, warnings and the access log; not every call, nor what the controller does."""

    def of(actor: str, *lines: str) -> list[str]:
        return list(shown({"actor_name": actor, "lines": lines}))

    start = "INFO 2026-11-21 18:13:44,872 f_Model o5m3oik7"
    replica = "ServeReplica:default:Model"
    assert of(replica, "loaded", f"{start} 11-22 -- POST / 200 1.2ms") == [
        "Model | loaded",
        "Model | POST / 200 1.2ms",
    ]
    assert of(replica, f"{start} 11-22 -- CALL __call__ OK 7.4ms") == []
    assert of(replica, f"{start} -- Started <ray.serve._private.router.X object>.") == []
    warning = start.replace("INFO", "WARNING")
    assert of(replica, f"{warning} -- slow") == ["Model | WARNING slow"]
    assert of("ServeController", "Adding 1 replica") == []
    assert of("", "raylet") == []


def test_a_request_s_traceback_is_shown_without_the_machinery_s_frames() -> None:
    """However Ray cuts it into batches, and with another replica's lines in between."""
    site = "/home/me/.venv/lib/python3.12/site-packages"
    remote = "\x1b[36mray::ServeReplica:default:Model.handle_request()\x1b[39m (pid=1, ip=2)"
    lines = [
        "Traceback (most recent call last):",
        f'  File "{site}/raycompose/flow/calls.py", line 24, in result_of',
        "    return await response",
        "           ^^^^^^^^^^^^^^",
        f"ray.exceptions.RayTaskError(KeyError): {remote}",
        "    async for result in self._replica_impl.handle_request_with_rejection(",
        f'  File "{site}/ray/serve/_private/replica.py", line 3977, in run_callable',
        "    result = callable(*args, **kwargs)",
        '  File "/home/me/app.py", line 8, in second',
        "    return table[x]",
        "KeyError: 4",
        "    what the user prints",
    ]
    seen: list[str] = []
    show = printer(seen.append)
    for text in lines:
        show({"actor_name": "ServeReplica:default:Model", "pid": 1, "lines": [text]})
        show({"actor_name": "ServeReplica:default:Model", "pid": 2, "lines": ["    other"]})
    assert seen.count("Model |     other") == len(lines)
    assert [text.removeprefix("Model | ") for text in seen if "other" not in text] == [
        "Traceback (most recent call last):",
        f"ray.exceptions.RayTaskError(KeyError): {remote}",
        '  File "/home/me/app.py", line 8, in second',
        "    return table[x]",
        "KeyError: 4",
        "    what the user prints",
    ]


def test_the_runtime_env_is_made_of_its_three_options(tmp_path: Path) -> None:
    """As `serve run` reads them; what cannot be read is said."""
    file = tmp_path / "env.yaml"
    file.write_text("env_vars: {A: b}")
    options = Options("x:app", runtime_env=str(file), working_dir="here")
    assert options.environment() == {"env_vars": {"A": "b"}, "working_dir": "here"}
    assert Options("x:app", runtime_env_json='{"pip": []}').environment() == {"pip": []}
    assert Options("x:app").environment() == {}
    file.write_text("a: [")
    for wrong in (
        Options("x:app", runtime_env=str(file)),
        Options("x:app", runtime_env=str(tmp_path / "none.yaml")),
        Options("x:app", runtime_env_json="{"),
        Options("x:app", runtime_env_json="[1]"),
    ):
        with pytest.raises(Problem, match=r"cannot be read|cannot read|is a mapping"):
            wrong.environment()


def test_a_log_that_grows_in_the_folder_hides_no_change(tmp_path: Path) -> None:
    """Files that are no source change all the time: the wait goes on, and a source is noticed."""
    changes = Changes(Options("app:app", app_dir=str(tmp_path)), check=lambda: None)
    done = threading.Event()

    def write_a_log() -> None:
        with (tmp_path / "log").open("w") as log:
            while not done.wait(0.01):
                log.write("a line\n")
                log.flush()

    writer = threading.Thread(target=write_a_log)
    writer.start()
    try:
        for _ in range(3):
            began = time.monotonic()
            changes.check()
            assert time.monotonic() - began < 2
        (tmp_path / "app.py").write_text("app = 1\n")
        with pytest.raises(Changed) as raised:
            poll(changes.check)
    finally:
        done.set()
        writer.join()
    assert [Path(path).name for path in raised.value.paths] == ["app.py"]


def test_modules_below_the_folder_are_imported_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one of them, a package's too, and no other."""
    package = tmp_path / "some_package_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("number = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    import some_package_of_mine.part as part  # type: ignore[import-not-found]  # made here

    assert part.number == 1
    (package / "part.py").write_text("number = 22")
    assert sorted(forget(tmp_path)) == ["some_package_of_mine", "some_package_of_mine.part"]
    import some_package_of_mine.part as again

    assert again.number == 22
