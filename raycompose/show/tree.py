"""A graph as a tree for the terminal."""

from collections.abc import Iterator

from raycompose.compose.description import Description
from raycompose.show.wording import details, received, scale, title


def tree(description: Description) -> str:
    """Return the graph as indented lines, a part to each.

    >>> stage = {"kind": "stage", "receives": "value", "runs": "function"}
    >>> steps = [{**stage, "name": "a"}, {**stage, "name": "b"}]
    >>> graph = {"kind": "sequence", "receives": "value", "steps": steps}
    >>> print(tree({"name": "Pipeline", "replicas": 1, "graph": graph}))
    Pipeline  1 replica
    ├─ a  function
    └─ b  function
    """
    heading = "  ".join((description["name"], " · ".join(scale(description))))
    return "\n".join((heading, *_below(_inside(description["graph"]))))


Entries = list[tuple[str, Description]]


def _inside(node: Description) -> Entries:
    """What is drawn below: the steps of a sequence, without a line for the sequence itself."""
    if node["kind"] == "sequence":
        return [("", step) for step in node["steps"]]
    return [("", node)]


def _children(node: Description) -> Entries:
    if node["kind"] == "sequence":
        return _inside(node)
    steps = [entry for step in node.get("steps", ()) for entry in _inside(step)]
    return steps + [(b["label"], b["node"]) for b in node.get("branches", ())]


def _below(entries: Entries, indent: str = "") -> Iterator[str]:
    for position, (label, node) in enumerate(entries):
        last = position == len(entries) - 1
        yield f"{indent}{'└─' if last else '├─'} {_line(label, node)}"
        yield from _below(_children(node), indent + ("   " if last else "│  "))


def _line(label: str, node: Description) -> str:
    heading = "in turn" if node["kind"] == "sequence" else title(node)
    way = received(node)
    said = [f"takes {way}"] if way else []
    line = "  ".join(filter(None, (heading, " · ".join([*details(node), *said]))))
    return f"{label}: {line}" if label else line
