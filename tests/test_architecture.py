"""The folders are the architecture: each room knows only the rooms below it."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support.layout import PACKAGE, modules, room_of

import raycompose
from raycompose.graph.hosting import HostedDeployment
from raycompose.graph.limits import Limits, Retry
from raycompose.graph.nodes import Node
from raycompose.graph.signatures import Signature
from raycompose.graph.targets import Target

ROOMS = ("errors", "_serve", "flow", "graph", "http", "compose", "show", "client", "cli")
"""From the ground up."""


def imports(name: str) -> Iterator[str]:
    """Give the modules of the package that a module imports, wherever in it."""
    path = PACKAGE.parent / Path(*name.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    package = name if path.is_dir() else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            level = "." * node.level
            base = importlib.util.resolve_name(f"{level}{node.module or ''}", package)
            found = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for imported in found:
            parts = imported.split(".")
            known = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
            module = next((candidate for candidate in known if candidate in MODULES), None)
            if module is not None and parts[0] == "raycompose":
                yield module


MODULES = frozenset(modules())
INSIDE = MODULES - {"raycompose", "raycompose.__main__"}  # the doors


@pytest.mark.parametrize("name", sorted(INSIDE))
def test_a_room_knows_only_the_rooms_below(name: str) -> None:
    """No module imports from a room above its own, nor do the seam and the ground from any."""
    own = ROOMS.index(room_of(name))
    for imported in imports(name):
        if imported == "raycompose":  # the command line is a user of the package
            assert room_of(name) == "cli"
            continue
        other = ROOMS.index(room_of(imported))
        assert other == own or (other < own and own >= ROOMS.index("flow")), imported


def test_no_two_modules_import_each_other() -> None:
    """The imports between modules have no circle."""
    graph = {name: set(imports(name)) - {name} for name in INSIDE}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_user_sees_the_public_names_alone() -> None:
    """``dir(raycompose)`` is ``__all__``: neither submodules nor helpers show."""
    assert dir(raycompose) == sorted(raycompose.__all__)


def test_public_names_are_imported_from_where_type_checkers_find_them() -> None:
    """What ``import raycompose`` leaves for later is the same names, from the same modules."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    [known] = [n for n in tree.body if isinstance(n, ast.If) and isinstance(n.test, ast.Name)]
    homes = {
        node.module: tuple(alias.name for alias in node.names)
        for node in known.body
        if isinstance(node, ast.ImportFrom)
    }
    assert homes.pop("raycompose.http") == ("fastapi",)
    assert homes == raycompose._HOMES
    names = [name for home in homes.values() for name in home]
    assert sorted([*names, "__version__"]) == sorted(raycompose.__all__)


def test_importing_loads_no_graph() -> None:
    """``import raycompose`` costs a few milliseconds; a replica loads what it needs."""
    code = "import sys, raycompose; print([m for m in sys.modules if 'raycompose.graph' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_loads_nothing_of_ray() -> None:
    """The commands and their options are there without Ray, which makes ``--help`` quick."""
    code = (
        "import sys, raycompose_cli; print(any(m.partition('.')[0] == 'ray' for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_docs_show_the_rooms() -> None:
    """The table of rooms in the docs is made of the same rooms, in the same order."""
    page = (PACKAGE.parent / "docs" / "how-it-works.md").read_text()
    table = page[page.index("| package |") :].split("\n\n")[0].splitlines()[2:]
    shown = [row.split("`")[1].removesuffix("/").removesuffix(".py") for row in table]
    assert shown == [room for room in reversed(ROOMS) if _exists(room)]


def _exists(room: str) -> bool:
    return (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()


def test_the_graph_is_immutable() -> None:
    """Nodes, targets and what describes a hosted deployment are frozen: engines make what runs."""
    kinds: list[type] = [Node, Target, HostedDeployment, Signature, Limits, Retry]
    for kind in kinds:
        parts: list[type] = [kind, *_below(kind)]
        for part in parts:
            frozen = getattr(part, "__dataclass_params__", None)
            assert frozen is None or frozen.frozen, part
            assert frozen is not None or part is Target, part


def _below(kind: type) -> Iterator[type]:
    subclasses: list[type] = kind.__subclasses__()
    for part in subclasses:
        yield part
        yield from _below(part)
