"""Laying out a graph's parts as nested blocks, each placed in the block around it."""

from collections.abc import Sequence

from raycompose.show.shapes import (
    LINE_PX,
    TEXT_PX,
    TITLE_PX,
    Arrow,
    Block,
    Box,
    Kind,
    Point,
    Shape,
    Text,
    Way,
    shortened,
    text_width,
)

GAP_PX = 18.0


def box(lines: Sequence[str], kind: Kind, *, stacked: bool = False, limit: float = 240.0) -> Block:
    """Return a block of one box: a heading, and the lines that say more."""
    heading, *rest = lines
    fitted = (
        shortened(heading, limit, TITLE_PX, bold=True),
        *(shortened(line, limit, TEXT_PX) for line in rest),
    )
    widths = [text_width(fitted[0], TITLE_PX, bold=True)]
    widths += [text_width(line, TEXT_PX) for line in fitted[1:]]
    width, height = max(72.0, max(widths) + 24), 30 + LINE_PX * len(rest)
    middle = height / 2
    shape = Box(0, 0, width, height, kind, fitted, stacked)
    return Block(width, height, middle, middle, (shape,))


def straight(width: float = 40.0) -> Block:
    """Return a block that is nothing but a way through."""
    return Block(width, 12, 6, 6, (Arrow(((0, 6), (width, 6)), head=False),), through=True)


def series(blocks: Sequence[tuple[Way, Block]], limit: float) -> Block:
    """Return the blocks one after the other, in as many rows as keep within ``limit``."""
    rows: list[list[tuple[Way, Block]]] = [[]]
    used = 0.0
    for way, block in blocks:
        length = block.width + (way.room if rows[-1] or len(rows) > 1 else 0)
        if rows[-1] and used + length > limit:
            rows.append([])
            used = 0.0
        rows[-1].append((way, block))
        used += length
    return _stacked([_row(row, first=number == 0) for number, row in enumerate(rows)])


_GUTTER_PX = 12.0


def _row(blocks: Sequence[tuple[Way, Block]], *, first: bool) -> Block:
    """One row; a further row has its first arrow, from the gutter, inside."""
    axis = max(block.entry for _, block in blocks)
    x, out = (0.0 if first else _GUTTER_PX), axis
    shapes: list[Shape] = []
    for position, (way, block) in enumerate(blocks):
        if position or not first:
            shapes += _arrow((x, out), (x + way.room, axis), way, head=not block.through)
            x += way.room
        shapes += block.at(x, axis - block.entry)
        x, out = x + block.width, axis - block.entry + block.exit
    height = max(axis - block.entry + block.height for _, block in blocks)
    through = first and blocks[0][1].through
    return Block(x, height, axis, out, tuple(shapes), through)


def _arrow(start: Point, end: Point, way: Way, *, head: bool) -> list[Shape]:
    """An arrow to the right, by a step at its beginning where the heights differ."""
    bend = start[0] + 8
    points = (start, end) if start[1] == end[1] else (start, (bend, start[1]), (bend, end[1]), end)
    words = [Text(end[0] - way.room / 2, end[1] - 5, way.words)] if way.words else []
    return [Arrow(points, way.dash, head), *words]


def _stacked(rows: Sequence[Block]) -> Block:
    """Rows below each other, the end of each joined to the beginning of the next."""
    if len(rows) == 1:
        return rows[0]
    width = max(row.width for row in rows) + _GUTTER_PX
    y, shapes, entry = 0.0, list[Shape](), rows[0].entry
    for row, following in zip(rows, (*rows[1:], None), strict=True):
        shapes += row.at(0, y)
        out = y + row.exit
        if following is None:
            shapes.append(Arrow(((row.width, out), (width, out)), head=False))
            return Block(width, y + row.height, entry, out, tuple(shapes), rows[0].through)
        turn, between = row.width + _GUTTER_PX - 2, y + row.height + GAP_PX
        below = y + row.height + 2 * GAP_PX
        down = (turn, between), (2.0, between), (2.0, below + following.entry)
        into = _GUTTER_PX, below + following.entry
        shapes.append(Arrow(((row.width, out), (turn, out), *down, into), head=False))
        y = below
    raise AssertionError("a series has a last row")


def branching(head: Block, branches: Sequence[tuple[Way, Block]]) -> Block:
    """Return a head with the branches to its right, below each other, joined behind."""
    room = max(way.room for way, _ in branches)
    fork, left = head.width + 10, head.width + 10 + room
    height = sum(block.height for _, block in branches) + GAP_PX * (len(branches) - 1)
    top = max(0.0, (head.height - height) / 2)
    width = left + max(block.width for _, block in branches) + 16
    axis = _level(max(top + height / 2, head.entry), top, [block for _, block in branches])
    shapes: list[Shape] = list(head.at(0, axis - head.entry))
    shapes.append(Arrow(((head.width, axis), (fork, axis)), head=False))
    y = top
    for way, block in branches:
        into, out = y + block.entry, y + block.exit
        shapes.append(
            Arrow(((fork, axis), (fork, into), (left, into)), way.dash, not block.through)
        )
        if way.words:
            shapes.append(Text(fork + room / 2, into - 5, way.words))
        shapes += block.at(left, y)
        end = (width, out), (width, axis)
        shapes.append(Arrow(((left + block.width, out), *end), head=False))
        y += block.height + GAP_PX
    return Block(width, max(top * 2 + height, head.height), axis, axis, tuple(shapes))


def _level(middle: float, top: float, blocks: Sequence[Block]) -> float:
    """The middle, or where a branch is entered that is hardly beside it: a way without a kink."""
    y, entries = top, list[float]()
    for block in blocks:
        entries.append(y + block.entry)
        y += block.height + GAP_PX
    nearest = min(entries, key=lambda entry: abs(entry - middle))
    return nearest if abs(nearest - middle) < 14 else middle


def aside(head: Block, branch: Block, way: Way) -> Block:
    """Return a head that the way leads through, with a branch below that does not come back."""
    left = 24 + way.room
    y = head.height + GAP_PX
    down = ((16.0, head.height), (16.0, y + branch.entry), (left, y + branch.entry))
    shapes: list[Shape] = [*head.shapes, Arrow(down, "dashed"), *branch.at(left, y)]
    if way.words:
        shapes.append(Text(16 + (left - 16) / 2, y + branch.entry - 5, way.words))
    width = max(head.width, left + branch.width)
    shapes.append(Arrow(((head.width, head.exit), (width, head.exit)), head=False))
    return Block(width, y + branch.height, head.entry, head.exit, tuple(shapes))


def looped(head: Block, body: Block, way: Way) -> Block:
    """Return a head and the body that comes after it, with a way back below."""
    row = _row(((Way(), head), (way, body)), first=True)
    bottom, end = row.height + GAP_PX / 2, row.width + 10
    back = ((end, row.exit), (end, bottom), (head.width / 2, bottom))
    up = (head.width / 2, row.entry - head.entry + head.height)
    ahead = Arrow(((row.width, row.exit), (row.width + 20, row.exit)), head=False)
    shapes = (*row.shapes, ahead, Arrow((*back, up), "dashed"))
    return Block(row.width + 20, bottom + 2, row.entry, row.exit, shapes)


def frame(inner: Block, lines: Sequence[str], kind: Kind) -> Block:
    """Return a block inside a rectangle with a heading."""
    heading = " · ".join(filter(None, lines))
    widest = max(inner.width, 160.0)
    heading = shortened(heading, widest, TEXT_PX)
    width = max(inner.width, text_width(heading, TEXT_PX)) + 28
    x, y = (width - inner.width) / 2, 28.0
    height = inner.height + y + 14
    into = Arrow(((0, y + inner.entry), (x, y + inner.entry)), head=not inner.through)
    out = Arrow(((x + inner.width, y + inner.exit), (width, y + inner.exit)), head=False)
    around = Box(0, 0, width, height, f"frame {kind}".strip(), (heading,))
    shapes = (around, into, *inner.at(x, y), out)
    return Block(width, height, y + inner.entry, y + inner.exit, shapes, through=True)


def between_ends(way: Way, inner: Block) -> Block:
    """Return a block between the two dots where a graph begins and ends."""
    left, entry = _END_PX + way.room, inner.entry
    right = left + inner.width + 30
    words = [Text(left - way.room / 2, entry - 5, way.words)] if way.words else []
    shapes = (
        Box(0, entry - _END_PX / 2, _END_PX, _END_PX, "end"),
        Arrow(((_END_PX, entry), (left, entry)), way.dash, not inner.through),
        *words,
        *inner.at(left, 0),
        Arrow(((left + inner.width, inner.exit), (right, inner.exit))),
        Box(right, inner.exit - _END_PX / 2, _END_PX, _END_PX, "end"),
    )
    return Block(right + _END_PX, inner.height, entry, inner.exit, shapes)


_END_PX = 10.0
