"""What a picture is made of: boxes, arrows and words, and how much room words take."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

Kind: TypeAlias = str
Point: TypeAlias = tuple[float, float]
Dash = Literal["solid", "dashed"]

TITLE_PX = 13.0
TEXT_PX = 11.0
LINE_PX = 15.0


@dataclass(frozen=True)
class Box:
    """A rectangle with a heading and lines below it; its kind decides on the colours.

    ``stacked`` shows that there are several of it.
    """

    x: float
    y: float
    width: float
    height: float
    kind: Kind
    lines: tuple[str, ...] = ()
    stacked: bool = False

    def moved(self, x: float, y: float) -> "Box":
        """Return the same elsewhere."""
        return replace(self, x=self.x + x, y=self.y + y)


@dataclass(frozen=True)
class Arrow:
    """A line through points, with an arrowhead at its end unless ``head`` is false."""

    points: tuple[Point, ...]
    dash: Dash = "solid"
    head: bool = True

    def moved(self, x: float, y: float) -> "Arrow":
        """Return the same elsewhere."""
        return replace(self, points=tuple((px + x, py + y) for px, py in self.points))


@dataclass(frozen=True)
class Text:
    """Words beside an arrow."""

    x: float
    y: float
    words: str

    def moved(self, x: float, y: float) -> "Text":
        """Return the same elsewhere."""
        return replace(self, x=self.x + x, y=self.y + y)


Shape: TypeAlias = Box | Arrow | Text


@dataclass(frozen=True)
class Block:
    """Shapes in a rectangle of their own: entered on its left edge, left on its right edge.

    Args:
        width: Its width in pixels.
        height: Its height.
        entry: How far below its top it is entered.
        exit: How far below its top it is left.
        shapes: What is in it.
        through: The way goes on inside, so that no arrow ends at its edge.
    """

    width: float
    height: float
    entry: float
    exit: float
    shapes: tuple[Shape, ...] = field(default=())
    through: bool = False

    def at(self, x: float, y: float) -> Iterable[Shape]:
        """Give the shapes as they are when the block's corner is there."""
        return (shape.moved(x, y) for shape in self.shapes)


@dataclass(frozen=True)
class Way:
    """How a block is reached: the words on the arrow, and whether it is dashed."""

    words: str = ""
    dash: Dash = "solid"

    @property
    def room(self) -> float:
        """How long the arrow must be for its words."""
        return max(30.0, text_width(self.words, TEXT_PX) + 26 if self.words else 0)


def text_width(words: str, size: float, *, bold: bool = False) -> float:
    """Return about how wide a text is in a sans-serif face, rather too wide than too narrow."""
    return sum(map(_advance, words)) * size * (1.12 if bold else 1.0)


def _advance(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF":
        return 1.15
    if unicodedata.combining(character):
        return 0.0
    if character in "iljtfrI.,:;'|!()[] ":
        return 0.37
    if character in "mwMW@%…":
        return 0.95
    return 0.72 if character.isupper() or not character.isascii() else 0.6


def shortened(words: str, limit: float, size: float, *, bold: bool = False) -> str:
    """Return the text, or as much of its beginning as is not wider than ``limit``."""
    words = "".join(c if c.isprintable() else " " for c in words)
    if text_width(words, size, bold=bold) <= limit:
        return words
    while words and text_width(words + "…", size, bold=bold) > limit:
        words = words[:-1]
    return words + "…"
