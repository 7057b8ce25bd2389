"""What importing raycompose adds to Ray Serve: ``.then`` and ``|`` on Application, no more."""

import subprocess
import sys
from typing import Any

import pytest
from ray import serve

import raycompose as rc
from raycompose.compose import patch


def run(code: str) -> "subprocess.CompletedProcess[str]":
    """Run Python code in a fresh process, where raycompose is not imported yet."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_importing_adds_exactly_two_names_to_application() -> None:
    """Application gains ``then`` and ``|`` from both sides; every other attribute is as it was."""
    done = run(
        "from ray.serve import Application\n"
        "before = dict(vars(Application))\n"
        "import raycompose\n"
        "after = dict(vars(Application))\n"
        "print(sorted(after.keys() - before.keys()))\n"
        "print([name for name in before if after.get(name) is not before[name]])\n"
    )
    assert done.stdout.splitlines() == ["['__or__', '__ror__', 'then']", "[]"], done.stderr


def test_importing_changes_nothing_else_of_ray() -> None:
    """No other class or module of Ray gains, loses or changes an attribute by the import."""
    done = run(
        "import inspect, sys\n"
        "import ray, ray.serve, ray.serve.handle, ray.serve.batching, ray.serve.metrics\n"
        "import ray.dag.py_obj_scanner, ray.serve._private.build_app, ray.serve._private.api\n"
        "import ray.serve._private.local_testing_mode, ray.serve._private.http_util\n"
        "import ray.actor, ray.remote_function, ray.exceptions, ray.serve.exceptions\n"
        "def snapshot(modules):\n"
        "    found = {}\n"
        "    for name in modules:\n"
        "        for key, value in list(vars(sys.modules[name]).items()):\n"
        "            found[name, key] = id(value)\n"
        "            if inspect.isclass(value) and value.__module__.startswith('ray'):\n"
        "                for k, v in vars(value).items():\n"
        "                    if not k.startswith('_abc'):\n"
        "                        found[name, key, k] = id(v)\n"
        "    return found\n"
        "public = [m for m in sys.modules if m == 'ray' or m.startswith(\n"
        "    ('ray.serve', 'ray.actor', 'ray.dag', 'ray.remote_function', 'ray.exceptions'))]\n"
        "before = snapshot(public)\n"
        "import raycompose\n"
        "after = snapshot(public)\n"
        "changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}\n"
        # A submodule that is imported for the first time becomes an attribute of its package.
        "changed = {k for k in changed if not inspect.ismodule(\n"
        "    getattr(sys.modules[k[0]], k[1], None))}\n"
        "print(sorted({k[-1] for k in changed}))\n"
        "print(all('Application' in k for k in changed))\n"
    )
    assert done.stdout.splitlines() == ["['__or__', '__ror__', 'then']", "True"], done.stderr


def test_installing_again_changes_nothing() -> None:
    """Installing is idempotent: the functions stay the very same objects."""
    before = dict(vars(serve.Application))
    patch.install()
    patch.install()
    assert dict(vars(serve.Application)) == before


def test_reloading_the_module_is_harmless() -> None:
    """Reloading the module that installs (as a notebook's autoreload does) still composes."""
    done = run(
        "import importlib\n"
        "import raycompose as rc, raycompose.compose.patch\n"
        "importlib.reload(raycompose.compose.patch).install()\n"
        "from ray import serve\n"
        "app = serve.deployment(lambda x: x + 1).options(name='F').bind().then(lambda x: x * 2)\n"
        "print(rc.local(app).call(1))\n"
    )
    assert done.stdout.splitlines() == ["4"], done.stderr


@pytest.mark.parametrize("name", ["then", "__or__", "__ror__"])
def test_an_attribute_of_rays_own_is_never_replaced(name: str) -> None:
    """When Ray itself defines the attribute, importing refuses, says so, and leaves it alone."""
    done = run(
        "from ray.serve import Application\n"
        f"def own(self, other): return 'of Ray'\n"
        f"Application.{name} = own\n"
        "try:\n"
        "    import raycompose\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
        "    print(error)\n"
        f"print(Application.{name} is own)\n"
    )
    kind, message, kept = done.stdout.splitlines()
    assert kind == "RayComposeError"
    assert f"Application.{name}" in message
    assert "rc.pipeline" in message
    assert kept == "True"


@pytest.mark.parametrize("name", ["then", "__or__", "__ror__"])
def test_an_attribute_that_application_inherits_counts_as_rays_own(name: str) -> None:
    """An attribute that a base class of Application brings is not replaced either."""
    done = run(
        "import sys, ray.serve\n"
        "deployment = sys.modules['ray.serve.deployment']\n"
        "class Base:\n"
        f"    def {name}(self, other): return 'of Ray'\n"
        "class Application(Base):\n"
        "    def __init__(self, bound): self._bound_deployment = bound\n"
        "ray.serve.Application = deployment.Application = Application\n"
        "try:\n"
        "    import raycompose\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
    )
    assert done.stdout.splitlines() == ["RayComposeError"], done.stderr


def test_both_work_on_a_plain_application() -> None:
    """An Application that Ray made composes with ``.then`` and ``|`` alike."""
    app = serve.deployment(_increment).bind()
    assert type(app) is serve.Application
    assert (app.then(_increment).root) == (app | _increment).root
    assert rc.local(app.then(_increment)).call(1) == 3


def test_or_with_what_is_no_stage_names_it() -> None:
    """``app | 42`` is refused as ``rc.pipeline(app, 42)`` is."""
    with pytest.raises(rc.CompositionError, match="42"):
        serve.deployment(_increment).bind() | 42


def _increment(x: int) -> int:
    return x + 1


class Foreign:
    """Of another library, which composes by ``|`` itself."""

    def __ror__(self, other: Any) -> Any:
        return ("theirs", other) if isinstance(other, serve.Application) else NotImplemented


class Deaf:
    def __ror__(self, other: Any) -> Any:
        return NotImplemented


def test_a_foreign_operand_is_asked() -> None:
    """What is no stage, but composes by its own ``__ror__``, does so; else the error is ours."""
    app = rc.pipeline(len)
    assert app | Foreign() == ("theirs", app)
    for nobodys in (Deaf(), 5, int):
        with pytest.raises(rc.CompositionError, match="not a stage"):
            app | nobodys
