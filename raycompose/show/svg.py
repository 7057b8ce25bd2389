"""A graph as an SVG picture: no network, no binaries, readable on light and dark pages."""

from collections.abc import Iterator
from functools import singledispatch
from html import escape
from itertools import groupby

from raycompose.compose.description import Description
from raycompose.show.layout import (
    aside,
    between_ends,
    box,
    branching,
    frame,
    looped,
    series,
    straight,
)
from raycompose.show.shapes import (
    LINE_PX,
    TEXT_PX,
    TITLE_PX,
    Arrow,
    Block,
    Box,
    Shape,
    Text,
    Way,
    shortened,
    text_width,
)
from raycompose.show.wording import colour, details, is_around, received, scale, title

_WIDTH_PX = 1060.0
_NARROWEST_PX = 420.0
_LEGEND = {
    "deployment": "its own replicas",
    "fused": "fused: in the pipeline's replica",
    "function": "function, in the pipeline's replica",
    "task": "Ray task or actor",
    "other": "another application",
    "dashed": "by reference, mirrored, or again",
}
_COLOURS = {  # fill and line, on light and on dark pages
    "deployment": ("#e3eefd", "#2f6fd0", "#16294a", "#5b9bf5"),
    "fused": ("#e0f5e6", "#1f8a4c", "#12351f", "#4cc07d"),
    "function": ("#f3f4f6", "#7a8594", "#262c36", "#8b96a5"),
    "task": ("#fdeedd", "#c9711b", "#3d2711", "#e79a4b"),
    "other": ("#efe9fd", "#7a4fd0", "#2b1f4a", "#a988f0"),
    "choice": ("#fff8dc", "#a58612", "#38300f", "#d6b740"),
}


def svg(description: Description) -> str:
    """Return the graph as the text of an SVG file."""
    picture = layout(description)
    name = escape(description["name"])
    said = f" · {escape(' · '.join(scale(description)))}" if scale(description) else ""
    kinds = {shape.kind for shape in picture.shapes if isinstance(shape, Box)}
    if any(isinstance(shape, Arrow) and shape.dash == "dashed" for shape in picture.shapes):
        kinds.add("dashed")
    legend, legend_width = _legend([kind for kind in _LEGEND if kind in kinds])
    width = round(max(picture.width + 48, legend_width, 240))
    height = round(picture.height + 108)
    shapes = "\n".join(_drawn(shape) for shape in picture.at(24, 56))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="raycompose" role="img" '
        f'aria-label="The pipeline {name}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">\n'
        f"<style>{_style()}</style>\n"
        '<defs><marker id="raycompose-head" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto"><path class="head" d="M0 0L8 4L0 8z"/>'
        "</marker></defs>\n"
        f'<rect class="page" width="{width}" height="{height}" rx="10"/>\n'
        f'<text class="name" x="24" y="32">{name}<tspan class="said">{said}</tspan></text>\n'
        f"{shapes}\n"
        f'<g transform="translate(24 {height - 24})">{legend}</g>\n'
        "</svg>\n"
    )


def layout(description: Description) -> Block:
    """Return the graph's parts in their places, between the request and the result."""
    graph = description["graph"]
    steps = graph["steps"] if graph["kind"] == "sequence" else [graph]
    return between_ends(_way(graph), series(list(_parts(steps, _WIDTH_PX)), _WIDTH_PX))


def _parts(steps: list[Description], limit: float) -> Iterator[tuple[Way, Block]]:
    """The steps of a series, those that run fused side by side in a frame of their own."""
    for fused, run in groupby(steps, _is_fused):
        together = list(run)
        if fused and len(together) > 1:
            inner = series([(_way(s), _block(s, limit - 28)) for s in together], limit - 28)
            yield _way(together[0]), frame(inner, ["in one replica"], "fused")
        else:
            for step in together:
                yield _way(step), _block(step, limit)


def _is_fused(node: Description) -> bool:
    return node.get("runs") == "fused"


def _way(node: Description, label: str = "") -> Way:
    words = shortened(" · ".join(filter(None, (label, received(node)))), 240, TEXT_PX)
    return Way(words, "dashed" if node["receives"] == "reference" else "solid")


def _block(node: Description, limit: float) -> Block:
    if node["kind"] == "passthrough":
        return straight()
    if "steps" in node:
        inside = max(limit - 28, _NARROWEST_PX)
        inner = series(list(_parts(node["steps"], inside)), inside)
        return inner if node["kind"] == "sequence" else frame(inner, _said(node), "")
    if "branches" in node:
        return _branched(node, limit)
    if "runs" not in node:  # it calls nothing of the user's
        return box(_said(node), "choice")
    many = node.get("replicas", 1) != 1 and node["runs"] == "deployment"
    return box(_said(node), colour(node), stacked=many)


def _branched(node: Description, limit: float) -> Block:
    if is_around(node):
        branch, inside = node["branches"][0], max(limit - 28, _NARROWEST_PX)
        heading = [title(node), *filter(None, (branch["label"],)), *details(node)]
        return frame(_block(branch["node"], inside), heading, "")
    head = box(_said(node), "choice", limit=200)
    ways = [_way(branch["node"], branch["label"]) for branch in node["branches"]]
    room = max(way.room for way in ways)
    inside = max(limit - head.width - room - 26, _NARROWEST_PX)
    blocks = [_block(branch["node"], inside) for branch in node["branches"]]
    if node["kind"] == "shadow":
        return aside(head, blocks[0], ways[0])
    if node["kind"] == "loop":
        return looped(head, blocks[0], ways[0])
    return branching(head, list(zip(ways, blocks, strict=True)))


def _said(node: Description) -> list[str]:
    """A heading, and the details on as few lines as are not too long."""
    heading, *lines = title(node), ""
    for piece in details(node):
        joined = f"{lines[-1]} · {piece}" if lines[-1] else piece
        if text_width(joined, TEXT_PX) <= 150:
            lines[-1] = joined
        else:
            lines.append(piece)
    return [heading, *filter(None, lines)]


@singledispatch
def _drawn(shape: Shape) -> str:
    raise TypeError(shape)


@_drawn.register
def _(shape: Box) -> str:
    place = f'x="{shape.x:g}" y="{shape.y:g}" width="{shape.width:g}" height="{shape.height:g}"'
    if shape.kind == "end":
        return f'<circle class="end" cx="{shape.x + 5:g}" cy="{shape.y + 5:g}" r="5"/>'
    if shape.kind.startswith("frame"):
        heading = f'<text class="said" x="{shape.x + 14:g}" y="{shape.y + 18:g}">'
        return (
            f'<rect class="{shape.kind}" {place} rx="10"/>{heading}{escape(shape.lines[0])}</text>'
        )
    behind = ""
    if shape.stacked:
        moved = shape.moved(5, 5)
        behind = (
            f'<rect class="{shape.kind}" x="{moved.x:g}" y="{moved.y:g}" '
            f'width="{shape.width:g}" height="{shape.height:g}" rx="7"/>'
        )
    x, y = shape.x + 12, shape.y + 20
    words = [f'<text class="title" x="{x:g}" y="{y:g}">{escape(shape.lines[0])}</text>']
    words += [
        f'<text class="said" x="{x:g}" y="{y + LINE_PX * number:g}">{escape(line)}</text>'
        for number, line in enumerate(shape.lines[1:], start=1)
    ]
    radius = 15 if shape.kind == "choice" else 7
    return f'{behind}<rect class="{shape.kind}" {place} rx="{radius}"/>{"".join(words)}'


@_drawn.register
def _(shape: Arrow) -> str:
    path = "L".join(f"{x:g} {y:g}" for x, y in shape.points)
    head = ' marker-end="url(#raycompose-head)"' if shape.head else ""
    return f'<path class="arrow {shape.dash}" d="M{path}"{head}/>'


@_drawn.register
def _(shape: Text) -> str:
    return f'<text class="way" x="{shape.x:g}" y="{shape.y:g}">{escape(shape.words)}</text>'


def _legend(kinds: list[str]) -> tuple[str, float]:
    """What the colours and the dashes mean, in one line, and its width."""
    x, drawn = 0.0, []
    for kind in kinds:
        sign = f'<rect class="{kind}" x="{x:g}" y="-9" width="14" height="10" rx="3"/>'
        if kind == "dashed":
            sign = f'<path class="arrow dashed" d="M{x:g} -4h14"/>'
        drawn.append(f'{sign}<text class="said" x="{x + 20:g}" y="0">{_LEGEND[kind]}</text>')
        x += 20 + text_width(_LEGEND[kind], TEXT_PX) + 18
    return "".join(drawn), x + 48


def _style() -> str:
    """The colours, for both kinds of page. A notebook may put this into its own page."""
    light = "".join(_rule(kind, fill, line) for kind, (fill, line, _, _) in _COLOURS.items())
    dark = "".join(_rule(kind, fill, line) for kind, (_, _, fill, line) in _COLOURS.items())
    sizes = {"title": TITLE_PX, "name": 16, "said": TEXT_PX, "way": TEXT_PX}
    s = ".raycompose "
    return (
        f"{s}text{{font-family:ui-sans-serif,system-ui,'Segoe UI',Helvetica,Arial,sans-serif}}"
        + "".join(f"{s}.{name}{{font-size:{size:g}px}}" for name, size in sizes.items())
        + f"{s}.title,{s}.name{{font-weight:600}}{s}.said{{font-weight:400}}"
        f"{s}.way{{text-anchor:middle}}{s}.arrow{{fill:none;stroke-width:1.5}}"
        f"{s}.dashed{{stroke-dasharray:5 4}}{s}.frame{{fill:none;stroke-dasharray:3 4}}"
        + _page("#ffffff", "#1b2430", "#59636f", "#6b7683", "#aab2bc")
        + light
        + "@media(prefers-color-scheme:dark){"
        + _page("#15191f", "#e8edf2", "#aab4c0", "#93a0ae", "#566270")
        + dark
        + "}"
    )


def _page(page: str, ink: str, faint: str, line: str, frame_line: str) -> str:
    s = ".raycompose "
    return (
        f"{s}.page{{fill:{page}}}{s}.title,{s}.name{{fill:{ink}}}{s}.said,{s}.way{{fill:{faint}}}"
        f"{s}.arrow{{stroke:{line}}}{s}.head,{s}.end{{fill:{line}}}{s}.frame{{stroke:{frame_line}}}"
    )


def _rule(kind: str, fill: str, line: str) -> str:
    around = f".raycompose .frame.fused{{fill:none;stroke:{line}}}" if kind == "fused" else ""
    return f".raycompose .{kind}{{fill:{fill};stroke:{line}}}{around}"
