"""What people look at: a graph as a tree, as Mermaid, as SVG."""

from raycompose.compose.picture import Graph
from raycompose.show.mermaid import mermaid
from raycompose.show.svg import svg
from raycompose.show.tree import tree


def install() -> None:
    """Have ``app.graph`` drawn by this room. Doing it again changes nothing."""
    Graph.drawn_by(tree=tree, mermaid=mermaid, svg=svg)
