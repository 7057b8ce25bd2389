"""A graph as a Mermaid flowchart, which GitHub and many wikis draw."""

import itertools

from raycompose.compose.description import Description
from raycompose.show.wording import colour, details, is_around, received, scale, title

_CLASSES = {
    "deployment": "fill:#dbeafe,stroke:#2563eb,color:#0f172a",
    "fused": "fill:#dcfce7,stroke:#16a34a,color:#0f172a",
    "function": "fill:#f1f5f9,stroke:#64748b,color:#0f172a",
    "task": "fill:#ffedd5,stroke:#ea580c,color:#0f172a",
    "other": "fill:#ede9fe,stroke:#7c3aed,color:#0f172a",
}


def mermaid(description: Description) -> str:
    """Return the graph as the text of a flowchart, from left to right."""
    chart = _Chart()
    chart.nodes.append(f"  start([{_text(description['name'], scale(description))}])")
    ends = chart.add(description["graph"], [("start", "")])
    chart.nodes.append('  done(["result"])')
    chart.connect(ends, "done", "")
    used = [name for name in _CLASSES if name in chart.used]
    styles = [f"  classDef {name} {_CLASSES[name]}" for name in used]
    return "\n".join(["flowchart LR", *chart.nodes, *chart.arrows, *styles]) + "\n"


Ends = list[tuple[str, str]]
"""The nodes that a part's result comes from, each with the label of its way out."""


class _Chart:
    """A flowchart being written. Arrows come last: a subgraph takes in what it mentions."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.arrows: list[str] = []
        self.used: set[str] = set()
        self._numbers = itertools.count(1)

    def connect(self, ends: Ends, to: str, label: str, *, dotted: bool = False) -> None:
        """Draw an arrow from each end."""
        for start, out in ends:
            text = " · ".join(filter(None, (out, label)))
            arrow = "-.->" if dotted else "-->"
            self.arrows.append(f"  {start} {arrow}{f'|{_text(text)}|' if text else ''} {to}")

    def add(self, node: Description, ends: Ends, *, dotted: bool = False) -> Ends:
        """Draw a part behind others, and return what its result comes from."""
        if node["kind"] == "passthrough":
            return ends
        if "steps" in node:
            return self._steps(node, ends, dotted)
        if is_around(node):
            branch = node["branches"][0]
            self._open(node, branch["label"])
            within = branch["node"]
            if within["receives"] == "value":
                within = {**within, "receives": node["receives"]}
            ends = self.add(within, ends, dotted=dotted)
            self.nodes.append("  end")
            return ends
        here = f"n{next(self._numbers)}"
        self.nodes.append(f"  {here}{self._box(node)}")
        self.connect(ends, here, received(node), dotted=dotted or node["receives"] == "reference")
        return self._branches(node, here) if "branches" in node else [(here, "")]

    def _steps(self, node: Description, ends: Ends, dotted: bool) -> Ends:
        framed = node["kind"] != "sequence"
        if framed:
            self._open(node)
        for step in node["steps"]:
            ends = self.add(step, ends, dotted=dotted)
            dotted = False
        if framed:
            self.nodes.append("  end")
        return ends

    def _open(self, node: Description, label: str = "") -> None:
        pieces = [*filter(None, (label,)), *details(node)]
        heading = _text(title(node), pieces)
        self.nodes.append(f"  subgraph g{next(self._numbers)}[{heading}]")

    def _branches(self, node: Description, here: str) -> Ends:
        kind = node["kind"]
        out: Ends = []
        for branch in node["branches"]:
            ends = self.add(branch["node"], [(here, branch["label"])], dotted=kind == "shadow")
            out += ends
            if kind == "loop":
                self.connect(ends, here, "again", dotted=True)
        return [(here, "")] if kind == "shadow" else out

    def _box(self, node: Description) -> str:
        text = _text(title(node), details(node))
        if "runs" not in node:
            return f"{{{{{text}}}}}"
        kind = colour(node)
        self.used.add(kind)
        return f"[{text}]:::{kind}"


def _text(heading: str, pieces: list[str] | None = None) -> str:
    """A quoted label; what Mermaid or HTML would read as its own is written as entities."""
    words = [heading, " · ".join(pieces or ())]
    return '"' + "<br/>".join(_escaped(word) for word in words if word) + '"'


_ENTITIES = {c: f"#{ord(c)};" for c in '#&"<>`\n'}


def _escaped(text: str) -> str:
    return "".join(_ENTITIES.get(c, c) for c in text)
