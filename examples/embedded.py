"""A pipeline inside your own FastAPI ingress: your routes, your OpenAPI page, no extra replica.

Run it:

    raycompose run embedded:app --app-dir examples
    curl localhost:8000/headlines -H 'Content-Type: application/json' -d '{"text": "maps sing"}'
    curl localhost:8000/openapi.json
"""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from pydantic import BaseModel, Field
from ray import serve

import raycompose as rc

api = FastAPI(title="Headlines")
rc.fastapi.install(api)  # before @serve.ingress, which copies the app


class Draft(BaseModel):
    text: str = Field(min_length=1)


class Headline(BaseModel):
    headline: str


@serve.deployment
class Titler:
    def __call__(self, text: str) -> str:
        return text.title()


def exclaim(text: str) -> str:
    return f"{text}!"


@serve.deployment
@serve.ingress(api)
class Api:
    def __init__(self, pipeline: Callable[[str], Awaitable[str]]) -> None:
        self._pipeline = pipeline

    @api.post("/headlines")
    async def headline(self, draft: Draft) -> Headline:
        return Headline(headline=await self._pipeline(draft.text))


titler = Titler.bind()
app = Api.bind(rc.pipeline(titler, exclaim).embed())
