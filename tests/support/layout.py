"""The package's modules and rooms, read from the sources beside the tests."""

import pkgutil
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "raycompose"


def modules() -> list[str]:
    """Return the names of the package and of all its modules."""
    walked = pkgutil.walk_packages([str(PACKAGE)], "raycompose.")
    return ["raycompose", *(module.name for module in walked)]


def room_of(module: str) -> str:
    """Return the folder, or the module on the ground, that a module of the package is in."""
    return module.split(".")[1]
