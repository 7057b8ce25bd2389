"""A graph in one line, much as it was written: ``F | parallel(a=G, b=H | I)``."""

from raycompose.graph.branches import Parallel, Pick
from raycompose.graph.choices import Split, Switch
from raycompose.graph.nodes import Node, Stage
from raycompose.graph.sequences import Sequence
from raycompose.graph.wrappers import Wrapping


def written(node: Node) -> str:
    """Return a graph in one line: every stage by its name, every branching around its branches."""
    match node:
        case Stage():
            return node.name
        case Sequence():
            return " | ".join(map(written, node.steps))
        case Wrapping():
            return f"{node.name}({written(node.body)})" if node.name else written(node.body)
        case Pick():
            return f"{node.name}({', '.join(map(repr, node.keys))})"
    branches = ", ".join(
        f"{condition}{written(child)}"
        for condition, child in zip(_conditions(node), node.children, strict=True)
    )
    return f"{node.name}({branches})" if branches else node.name or type(node).__name__.lower()


def _conditions(node: Node) -> list[str]:
    """What stands before each of a node's children."""
    conditions: list[str] = []
    if isinstance(node, Parallel):
        conditions = [f"{key}=" for key in node.keys or ()]
    elif isinstance(node, Switch):
        conditions = [f"{key!r}: " for key in node.keys]
        conditions += ["default: "] * (len(node.branches) - len(node.keys))
    elif isinstance(node, Split):
        conditions = [f"{weight:g} % " for weight in node.weights]
    deciding = len(node.children) - len(conditions)
    return [*conditions, *([""] * deciding)]
