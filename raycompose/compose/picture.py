"""What ``app.graph`` is: a graph as plain data that can be drawn."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:  # `import raycompose` says how graphs are drawn, and imports no graph for it
    from raycompose.compose.description import Description

Draw = Callable[["Description"], str]


class Graph:
    """A pipeline's graph as plain data, and its pictures. Offline, and pure Python.

    ``str(graph)`` is a tree for the terminal.

    Args:
        description: The plain data.
    """

    # Drawn by raycompose.show, a room above this one, which registers how.
    _drawings: ClassVar[dict[str, Draw]] = {}

    def __init__(self, description: "Description") -> None:
        self._description = description

    @classmethod
    def drawn_by(cls, **drawings: Draw) -> None:
        """Say how graphs are drawn: ``tree=``, ``mermaid=`` and ``svg=``."""
        cls._drawings.update(drawings)

    def to_dict(self) -> "Description":
        """Return the graph as what ``json.dumps`` takes."""
        return self._description

    def mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart, for Markdown files."""
        return self._drawings["mermaid"](self._description)

    def svg(self) -> str:
        """Return the graph as an SVG picture, for light and dark pages."""
        return self._drawings["svg"](self._description)

    def pictures(self) -> dict[str, str]:
        """Return the pictures by MIME type, as Jupyter asks for them."""
        return {
            "image/svg+xml": self.svg(),
            "text/vnd.mermaid": self.mermaid(),
            "text/plain": str(self),
        }

    def __str__(self) -> str:
        return self._drawings["tree"](self._description)

    def __repr__(self) -> str:
        return f"<graph of {self._description['name']}>"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        return self.pictures()
