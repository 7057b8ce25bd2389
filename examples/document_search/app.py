"""The application: two pipelines and a web page behind one FastAPI ingress.

Run it, and open http://127.0.0.1:8000:

    raycompose run document_search.app:build --app-dir examples
    raycompose run document_search.app:build --app-dir examples folder=/var/lib/documents \
      base_url=http://localhost:11434/v1 model=llama3.2
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, UploadFile
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.handle import DeploymentHandle

import raycompose as rc

from .answers import Chat, Quote, Sourced, rank
from .index import Encoder, Index
from .passages import Reader, passages

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
LONGEST_UPLOAD = 50_000_000  # bytes

api = FastAPI(title="Document search")
rc.fastapi.install(api)


class Settings(BaseModel):
    """What ``raycompose run ... KEY=VALUE`` sets."""

    folder: Path = Path("documents.lance")
    base_url: str = ""
    model: str = "gpt-5-mini"


class Question(BaseModel):
    question: Annotated[str, Field(min_length=1, max_length=1000)]


def line(**item: Any) -> str:
    return json.dumps(item) + "\n"


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=200)
@serve.ingress(api)
class Api:
    """The routes. The pipelines run inside this replica, their stages in replicas of their own."""

    def __init__(
        self, upload: Any, find: Any, answer: Any, index: DeploymentHandle, pictures: dict[str, str]
    ) -> None:
        self._upload, self._find, self._answer = upload, find, answer
        self._index = index
        self._pictures = pictures

    @api.get("/", response_class=HTMLResponse)
    async def page(self) -> str:
        return PAGE

    @api.get("/pictures/{name}.svg")
    async def picture(self, name: str) -> Response:
        if name not in self._pictures:
            raise rc.HTTPError(404, f"there is no picture {name!r}")
        return Response(self._pictures[name], media_type="image/svg+xml")

    @api.get("/documents")
    async def documents(self) -> dict[str, int]:
        found: dict[str, int] = await self._index.documents.remote()
        return found

    @api.post("/documents", status_code=201)
    async def upload(self, file: UploadFile) -> dict[str, Any]:
        if (file.size or 0) > LONGEST_UPLOAD:
            raise rc.HTTPError(413, f"a document may have {LONGEST_UPLOAD:,} bytes")
        document = file.filename or "document"
        count = await self._upload({"document": document, "content": await file.read()})
        return {"document": document, "passages": count}

    @api.post("/questions")
    async def ask(self, asked: Question) -> StreamingResponse:
        found = await self._find(asked.question)
        return StreamingResponse(self._lines(found), media_type="application/x-ndjson")

    async def _lines(self, found: Sourced) -> AsyncIterator[str]:
        yield line(sources=found["sources"])
        try:
            async for text in self._answer.stream(found):
                yield line(text=text)
        except Exception as error:  # too late for a status
            yield line(error=f"The answer broke off in {rc.failed_stage(error)}.")


def build(settings: Settings) -> serve.Application:
    encoder, index = Encoder.bind(), Index.bind(settings.folder.resolve())

    upload = rc.pipeline(
        Reader,  # a stream of pages
        passages,  # pulled from it, as a stream of passages
        rc.batched(32, max_wait_s=0.1),
        rc.stage(encoder, method="rows"),
        rc.stage(index, method="add"),
        rc.collect,
        sum,
    )
    near = rc.pipeline(rc.stage(encoder, method="question"), rc.stage(index, method="near"))
    matching = rc.stage(index, method="matching", name="Words")
    find = rc.pipeline(
        rc.parallel(
            question=rc.passthrough,
            near=near,
            matching=rc.optional(matching, default=[], timeout_s=5),
        ),
        rank,
    )
    answer = rc.pipeline(Quote)
    if settings.base_url:  # the quotes are there for when the model is not
        answer = rc.fallback(rc.stage(Chat.bind(settings.base_url, settings.model)), answer)

    pictures = {"upload": upload, "ask": rc.pipeline(find, answer)}
    return Api.bind(
        upload.embed(),
        find.options(timeout_s=30).embed(),
        answer.embed(),
        index,
        {name: pipeline.graph.svg() for name, pipeline in pictures.items()},
    )
