"""`raycompose check`, `draw` and `build`: what an application is, without running it."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray import serve
from raycompose_cli.commands import app
from support.cluster import hide_ray
from typer.testing import CliRunner, Result

from raycompose.client.cluster import cpus_needed

EXAMPLES = Path(__file__).parents[1] / "examples"
APPS = Path(__file__).parent / "apps"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command changes in its own process, which here is the tests'."""
    for name in ("RAY_ADDRESS", "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def typed(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})


def test_check_shows_the_graph_what_it_asks_for_and_a_request() -> None:
    """Nothing is started for it."""
    done = typed("check", "hello:app", "--app-dir", str(EXAMPLES))
    assert done.exit_code == 0, done.output
    assert "├─ Preprocessor  deployment · 1 replica · 1 CPU" in done.output
    assert "3 CPU asked for, this machine has" in done.output
    assert "curl -X POST http://127.0.0.1:8000/ -d" in done.output


def test_check_of_a_fastapi_ingress_shows_its_routes() -> None:
    """It is no pipeline: its own routes rather than a POST that it lacks."""
    done = typed("check", "embedded:app", "--app-dir", str(EXAMPLES))
    assert done.exit_code == 0, done.output
    assert "POST   http://127.0.0.1:8000/headlines" in done.output
    assert "object at 0x" not in done.output


def test_draw_prints_a_tree_or_writes_a_file(tmp_path: Path) -> None:
    """The file's ending decides what it is."""
    canary = ("draw", "canary:app", "--app-dir", str(EXAMPLES))
    assert "90 %: Stable" in typed(*canary).output
    for ending, begins in {
        "svg": "<svg",
        "mmd": "flowchart LR",
        "txt": "Pipeline",
        "json": "{",
    }.items():
        file = tmp_path / f"graph.{ending}"
        done = typed(*canary, "-o", str(file))
        assert done.exit_code == 0, done.output
        assert file.read_text().startswith(begins)
    assert json.loads(file.read_text())["name"] == "Pipeline"


def test_build_writes_a_serve_config_or_a_manifest_for_kuberay(tmp_path: Path) -> None:
    """The manifest holds what `serve build` writes, and names this version of Ray."""
    file = tmp_path / "service.yaml"
    build = ("build", "hello:app", "--app-dir", str(EXAMPLES), "-o", str(file))
    assert typed(*build).exit_code == 0
    config = yaml.safe_load(file.read_text())
    assert config["applications"][0]["import_path"] == "hello:app"
    done = typed(*build, "--kuberay", "--image", "registry/app:1")
    assert done.exit_code == 0, done.output
    service = yaml.safe_load(file.read_text())
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == config
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == "registry/app:1"
    jsonschema.validate(service, RAY_SERVICE)


def test_build_of_a_function_is_one_line() -> None:
    """`serve build` takes no app builder: what to write instead is said."""
    done = typed("build", "four:build", "--app-dir", str(APPS))
    assert done.exit_code == 1
    assert "app = build({})" in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_no_number_of_cpus_is_rays_default(tmp_path: Path) -> None:
    """``num_cpus: null`` in a config, and ``None`` in the code, count as one CPU."""
    nothing = {"num_cpus": None}
    app = serve.deployment(lambda x: x, name="A").bind()
    assert cpus_needed(app, {"A": {"ray_actor_options": nothing}}) == 1
    code = "from ray import serve\n@serve.deployment(ray_actor_options={'num_cpus': None})\n"
    (tmp_path / "nothing_asked.py").write_text(f"{code}def a(x): return x\napp = a.bind()\n")
    done = typed("check", "nothing_asked:app", "--app-dir", str(tmp_path))
    assert "1 CPU asked for" in done.output


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    """The JSON schema of an object that has these properties and no other."""
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^\d+\w*$"}}
CONTAINER = _object(
    ("name", "image"),
    name={"type": "string", "pattern": "^[a-z0-9-]{1,63}$"},
    image=TEXT,
    ports={
        "type": "array",
        "items": _object(("containerPort",), containerPort=COUNT, name={"maxLength": 15}),
    },
    resources=_object((), requests=QUANTITIES, limits=QUANTITIES),
)
POD = _object(
    ("spec",),
    spec=_object(("containers",), containers={"type": "array", "items": CONTAINER, "minItems": 1}),
)
HEAD = _object(("rayStartParams", "template"), rayStartParams=TEXTS, template=POD)
WORKERS = _object(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    template=POD,
)
RAY_SERVICE = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=_object(("name",), name={"type": "string", "pattern": "^[a-z]([a-z0-9-]*[a-z0-9])?$"}),
    spec=_object(
        (),
        serveConfigV2=TEXT,
        rayClusterConfig=_object(
            ("headGroupSpec",),
            rayVersion=TEXT,
            headGroupSpec=HEAD,
            workerGroupSpecs={"type": "array", "items": WORKERS},
        ),
    ),
)
"""What of KubeRay's resource (``ray.io/v1``, its Go types) and of a pod the manifest may use."""


def test_a_manifest_has_a_name_that_kubernetes_accepts(tmp_path: Path) -> None:
    """Whatever the module is called."""
    (tmp_path / "My_App2.py").write_text((EXAMPLES / "hello.py").read_text())
    done = typed("build", "My_App2:app", "--app-dir", str(tmp_path), "--kuberay")
    assert done.exit_code == 0, done.output
    service = yaml.safe_load(done.output)
    assert service["metadata"]["name"] == "my-app2"
    jsonschema.validate(service, RAY_SERVICE)


BAD = """
from pydantic import BaseModel
from ray import serve
import raycompose as rc

class Wanted(BaseModel):
    size: int

number = 42

@serve.deployment
class Unbound:
    def __call__(self, x: str) -> str:
        return x

def wants(args: Wanted):
    return Unbound.bind()

def two(a, b):
    return Unbound.bind()

def raises(args):
    raise OSError("no weights here")

def gives_nothing(args):
    return None

def cpus(n):
    @serve.deployment(name=f"D{n}", ray_actor_options={"runtime_env": {"env_vars": {"N": str(n)}}})
    class D:
        def __call__(self, x):
            return x
    return D.bind()

unmergeable = rc.pipeline(cpus(1), cpus(2)).fuse()
plain = Unbound.bind()
"""


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "bad_apps.py").write_text(BAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("check", "nothing_here:app"), 1, "there is no module 'nothing_here'"),
        (("check", "bad_apps:nothing"), 1, "module 'bad_apps' has no attribute 'nothing'"),
        (("check", "bad_apps:number"), 1, "bad_apps:number is 42 (int): an application is wanted"),
        (("check", "bad_apps:Unbound"), 1, "not bound: use bad_apps:Unbound.bind()"),
        (("check", "bad_apps:wants"), 1, "given as KEY=VALUE; size: Field required"),
        (("check", "bad_apps:wants", "size=x"), 1, "size: Input should be a valid integer"),
        (("check", "bad_apps:wants", "size"), 2, "'size' is not KEY=VALUE"),
        (("check", "bad_apps:two"), 1, "bad_apps:two(a, b) must take one parameter"),
        (("check", "bad_apps:two"), 1, "to serve two itself, name a pipeline of it: app = rc."),
        (("check", "bad_apps:gives_nothing"), 1, "must return an `Application`"),
        (("check", "bad_apps:gives_nothing"), 1, "app = rc.pipeline(gives_nothing)"),
        (("check", "bad_apps:unmergeable"), 1, "bad_apps:unmergeable: fuse(): runtime_env is set"),
        (("draw", "bad_apps:unmergeable"), 1, "bad_apps:unmergeable: fuse(): runtime_env is set"),
        (("draw", "bad_apps:plain"), 1, "'Unbound', and no pipeline"),
        (("draw", "hello:app", "-o", "graph.png"), 2, "one of .svg, .mmd, .txt, .json"),
        (("draw", "hello:app", "-o", "/nowhere/g.svg"), 1, "cannot write /nowhere/g.svg: No such"),
        (("build", "hello:app", "-o", "/nowhere/a.yaml"), 1, "cannot write /nowhere/a.yaml"),
        (("check", "hello:app", "--address", "127.0.0.1:1"), 1, "no Ray cluster at 127.0.0.1:1"),
        (("check", "hello:app", "--address", "nonsense"), 1, "not the address of a Ray cluster"),
        (("check",), 2, "Missing "),
    ],
)
def test_what_is_wrong_is_one_line(
    bad: str, arguments: tuple[str, ...], status: int, message: str
) -> None:
    """It names what was given and what is wanted; never a traceback."""
    folder = str(EXAMPLES) if "hello:app" in arguments else bad
    options = ("--app-dir", folder) if len(arguments) > 1 else ()
    done = typed(*arguments, *options)
    assert done.exit_code == status, done.output
    assert message in " ".join(done.output.split()), done.output
    assert "Traceback" not in done.output
    assert status == 2 or len(done.output.strip().splitlines()) == 1, done.output


def test_a_builder_that_raises_shows_its_own_line(bad: str) -> None:
    """The user's own traceback, without ours or Ray's frames."""
    done = typed("check", "bad_apps:raises", "--app-dir", bad)
    assert done.exit_code == 1
    assert "bad_apps:raises, called to build an application, failed:" in done.output
    assert 'raise OSError("no weights here")' in done.output
    assert "OSError: no weights here" in done.output
    assert "raycompose/" not in done.output


CONFIGS = [
    ("a: [", "cannot be read: while parsing a flow"),
    ("[]", "is not a Serve config: it has no list 'applications'"),
    ("applications: []", "is not a Serve config: it has no list 'applications'"),
    ("applications: [{name: a}]", "application 1 has no import_path"),
    (
        "applications: [{import_path: 'four:app', deployments: [{num_replicas: 2}]}]",
        "a deployment of application 'default' has no name",
    ),
    *(
        ("applications: [{import_path: 'four:app', " + wrong + "}]", where)
        for wrong, where in (
            ("deployments: 5", "applications.0.deployments: Input should be a valid list"),
            ("name: [1]", "applications.0.name: Input should be a valid string"),
            ("name: {a: b}", "applications.0.name: Input should be a valid string"),
            ("args: [1]", "applications.0.args: Input should be a valid dictionary"),
            ("deployments: [{name: [1]}]", "deployments.0.name: Input should be a valid string"),
            ("deployments: [{name: A, ray_actor_options: null}]", "ray_actor_options: Input"),
            ("deployments: [{name: A, ray_actor_options: 5}]", "ray_actor_options: Input"),
            (
                "deployments: [{name: A, ray_actor_options: {num_cpus: x}}]",
                "ray_actor_options.num_cpus: Input should be a valid number",
            ),
        )
    ),
    (
        "applications: [{import_path: 'four:app'}, {import_path: 'four:app'}]",
        "each application needs a name of its own",
    ),
]


@pytest.mark.parametrize(("text", "message"), CONFIGS)
def test_a_config_that_is_none_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    """Bad YAML, no applications, no import path, no names, values of the wrong type."""
    file = tmp_path / "config.yaml"
    file.write_text(text)
    done = typed("run", str(file), "--app-dir", str(APPS))
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--reload", "--non-blocking"), 2, "which --non-blocking rules out"),
        (("--runtime-env", "a.yaml", "--runtime-env-json", "{}"), 2, "not both"),
        (("--runtime-env", "/nowhere.yaml"), 2, "cannot read /nowhere.yaml"),
        (("--address", "127.0.0.1:1"), 1, "no Ray cluster at 127.0.0.1:1"),
        (("--host", "203.0.113.7"), 1, "cannot listen on 203.0.113.7:8000"),
        (("--host", "no such host"), 1, "--host no such host: "),
    ],
)
def test_a_run_that_cannot_start_is_one_line(
    arguments: tuple[str, ...], status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Ray is started."""
    hide_ray(monkeypatch)  # other tests may have started it
    done = typed("run", "four:app", "--app-dir", str(APPS), *arguments)
    assert done.exit_code == status, done.output
    assert message in " ".join(done.output.split())
    assert len(done.output.strip().splitlines()) == 1, done.output


def test_bare_raycompose_shows_the_commands() -> None:
    """So does ``-h``, within 80 columns, with what the exit statuses mean."""
    for arguments in ((), ("-h",)):
        done = typed(*arguments)
        assert done.exit_code == 0
        for command in ("run", "check", "draw", "call", "build"):
            assert f"\n  {command} " in done.output
        assert "Exit status: 0 done" in done.output
        assert max(map(len, done.output.splitlines())) <= 80
    assert "raycompose 0." in typed("--version").output


@pytest.mark.parametrize("command", ["run", "check", "draw", "call", "build"])
def test_help_reads_well_in_80_columns(command: str) -> None:
    """No line is longer, and none of the text is cut."""
    text = typed(command, "--help").output
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.replace("]...", "")
