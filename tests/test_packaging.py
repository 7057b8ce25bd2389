"""What is published: its version, what it needs, and the folders that go into it."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from support.layout import PACKAGE

import raycompose as rc

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = PACKAGE.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = {"grpcio": "grpc", "pyyaml": "yaml", "scikit-learn": "sklearn"}
"""What is imported under another name than it is installed by."""
OURS = {"raycompose", "raycompose_cli", "tomllib"}  # which Python 3.10 does not have
IN_NOTEBOOKS = {"IPython"}
"""Imported only where a notebook has already imported it."""
NOWHERE = {"a_package_that_is_not_installed", "some_package_of_mine"}
"""What tests import to see it fail."""


def imported(files: Iterable[Path]) -> set[str]:
    """Return the top-level modules that files import, wherever in them."""
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    names |= {node.module or "" for node in froms}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - OURS


def declared(requirements: list[str]) -> Iterator[str]:
    """Yield the modules that requirements bring."""
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement)[0].lower()
        yield MODULES.get(name, name.replace("-", "_"))


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    """The package's imports and its dependencies are the same, name for name."""
    found = imported(PACKAGE.rglob("*.py")) - IN_NOTEBOOKS
    assert sorted(found) == sorted(declared(PROJECT["project"]["dependencies"]))


def test_what_the_tests_and_examples_import_is_declared() -> None:
    """Installing the extra ``dev`` is enough to run them."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    requirements = [*PROJECT["project"]["dependencies"], *chain.from_iterable(extras)]
    files = {*(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")}
    files -= {*(ROOT / "tests/benchmarks/peers").rglob("*.py")}  # run elsewhere
    beside = {file.stem for file in files} | {file.parent.name for file in files}
    assert imported(files) - beside - NOWHERE <= set(declared(requirements))


def test_every_folder_of_the_package_is_published() -> None:
    """A new room is not left out of the wheel; the command line is installed by its own name."""
    folders = {init.parent for init in PACKAGE.rglob("__init__.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    published = {re.sub(r"^raycompose\.cli\b", "raycompose_cli", name) for name in names}
    assert published == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_version_is_the_one_that_is_installed() -> None:
    """``__version__`` comes from the metadata; the changelog begins with it."""
    assert rc.__version__ == version("raycompose") == PROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## \[?([\w.]+)", changelog, re.MULTILINE)
    assert rc.__version__ in sections[:2]  # behind what is not released yet


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """The version alone is looked up when it is asked for."""
    with pytest.raises(AttributeError, match="module 'raycompose' has no attribute 'nonsense'"):
        _ = rc.nonsense  # type: ignore[attr-defined]  # that is the point
