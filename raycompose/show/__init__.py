"""What people look at: a graph as a tree, as Mermaid, as SVG."""

from importlib import import_module
from typing import Any

from raycompose.compose.picture import Draw, Graph


def install() -> None:
    """Have ``app.graph`` drawn by this room. Doing it again changes nothing."""
    Graph.drawn_by(**{form: _drawing(form) for form in ("tree", "mermaid", "svg")})


def _drawing(form: str) -> Draw:
    """What draws a graph in a form: the function of the same name as its module."""

    def draw(description: Any) -> str:
        drawn: str = getattr(import_module(f"{__name__}.{form}"), form)(description)
        return drawn

    return draw
