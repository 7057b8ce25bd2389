"""From a file to passages: pages are read, and split into pieces short enough to cite."""

import io
import re
from collections.abc import AsyncIterator, Iterator
from typing import TypedDict

from pypdf import PdfReader
from pypdf.errors import PyPdfError
from ray import serve

import raycompose as rc

WORDS = 90
"""About how long a passage is; it ends with a sentence."""


class Upload(TypedDict):
    document: str
    content: bytes


class Page(TypedDict):
    document: str
    page: int
    text: str


class Passage(Page):
    """A part of a page."""

    id: str


@serve.deployment(ray_actor_options={"num_cpus": 0.5})
class Reader:
    """Reads PDF and text files, a page at a time."""

    def __call__(self, upload: Upload) -> Iterator[Page]:
        document = upload["document"]
        found = False
        for number, text in enumerate(pages(upload), start=1):
            if text.strip():
                found = True
                yield {"document": document, "page": number, "text": " ".join(text.split())}
        if not found:
            raise rc.HTTPError(422, f"{document} has no text; a scan needs OCR first")


def pages(upload: Upload) -> Iterator[str]:
    content = upload["content"]
    if content.startswith(b"%PDF"):
        try:
            yield from (page.extract_text() for page in PdfReader(io.BytesIO(content)).pages)
        except PyPdfError as error:
            raise rc.HTTPError(422, f"{upload['document']} is no PDF: {error}") from error
        return
    try:
        yield from content.decode().split("\f")
    except UnicodeDecodeError as error:
        detail = f"{upload['document']} is neither a PDF nor UTF-8 text"
        raise rc.HTTPError(415, detail) from error


async def passages(pages: rc.Stream[Page]) -> AsyncIterator[Passage]:
    async for page in pages:
        for number, text in enumerate(pieces(page["text"])):
            yield {**page, "text": text, "id": f"{page['document']}/{page['page']}/{number}"}


def pieces(text: str) -> Iterator[str]:
    piece: list[str] = []
    for sentence in sentences(text):
        piece += sentence.split()
        if len(piece) >= WORDS:
            yield " ".join(piece)
            piece = []
    if piece:
        yield " ".join(piece)


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)
