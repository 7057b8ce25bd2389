"""What the document search example is tested with: a small PDF, and a language model's endpoint."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from support.cluster import free_port
from support.waiting import until

FACTS = [
    "Whales are mammals and breathe air.",
    "A blue whale eats four tonnes of krill a day.",
    "Humpback whales sing for hours.",
]
"""A page each."""
QUESTION = "How many tonnes of krill does a blue whale eat?"


def pdf(pages: list[str]) -> bytes:
    """Return a PDF file with a line of text on each page."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(pages):
        drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects += [
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * n} 0 R >>",
            f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        ]
    file, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(file))
        file += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    return (
        file
        + (
            f"xref\n0 {size}\n0000000000 65535 f \n{table}"
            f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(file)}\n%%EOF\n"
        ).encode()
    )


class LanguageModel:
    """Answers as OpenAI's API does, always the same, and remembers what it was asked."""

    def __init__(self) -> None:
        self.base_url = ""
        self.prompts: list[str] = []
        self.fails = False
        self._goes_on = threading.Event()
        self._goes_on.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have it write no more than the beginning of its answers meanwhile."""
        self._goes_on.clear()
        try:
            yield
        finally:
            self._goes_on.set()

    async def complete(self, request: Request) -> Response:
        if self.fails:
            return Response("out of memory", 500)
        asked = await request.json()
        self.prompts.append(asked["messages"][-1]["content"])
        return StreamingResponse(self._events(), media_type="text/event-stream")

    def _events(self) -> Iterator[str]:
        yield f"data: {json.dumps(self._chunk('Krill'))}\n\n"
        self._goes_on.wait()
        yield f"data: {json.dumps(self._chunk(' [1].'))}\n\ndata: [DONE]\n\n"

    def _chunk(self, text: str) -> dict[str, Any]:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
        return {**head, "choices": [choice]}


@contextmanager
def language_model() -> Iterator[LanguageModel]:
    """Serve a language model's endpoint in a thread."""
    model, port = LanguageModel(), free_port()
    app = Starlette(routes=[Route("/v1/chat/completions", model.complete, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        model.base_url = f"http://127.0.0.1:{port}/v1"
        yield model
    finally:  # a test that failed would never end
        server.should_exit = True
        thread.join()
