"""An OpenAI-compatible chat endpoint over a pipeline: prompt, token generator, post-processing.

The model is small: it has read one page of "Alice's Adventures in Wonderland" (Lewis Carroll, 1865)
and goes on from your last words. Run it, and talk to it with curl or with the `openai` package:

    raycompose run chat:app --app-dir examples
    curl --no-buffer localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \
      -d '{"model": "alice", "messages": [{"role": "user", "content": "Down"}], "stream": true}'

    client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="none")
"""

import json
import random
import re
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from ray import serve

import raycompose as rc

TEXT = (Path(__file__).parent / "data" / "alice.txt").read_text(encoding="utf-8")
MODEL = "alice"
ORDER = 2
"""How many tokens the model looks back."""


def tokens_of(text: str) -> list[str]:
    return re.findall(r"\n+| ?[\w'-]+| ?[^\w\s]", text)


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None

    @property
    def limit(self) -> int:
        return self.max_completion_tokens or self.max_tokens or 64


# The pipeline


class Prompt(TypedDict):
    text: str
    max_tokens: int
    seed: int | None


def prompt(request: ChatRequest) -> Prompt:
    text = "\n\n".join(message.content for message in request.messages)
    return {"text": text, "max_tokens": request.limit, "seed": request.seed}


@serve.deployment
class Generator:
    def __init__(self, text: str) -> None:
        self._followers: dict[tuple[str, ...], list[str]] = defaultdict(list)
        tokens = tokens_of(text)
        for end in range(1, len(tokens)):
            for length in range(ORDER + 1):
                if length <= end:
                    self._followers[tuple(tokens[end - length : end])].append(tokens[end])

    async def __call__(self, prompt: Prompt) -> AsyncIterator[str]:
        chance = random.Random(prompt["seed"])
        written = tokens_of(prompt["text"])
        for _ in range(prompt["max_tokens"]):
            token = chance.choice(self._after(written))
            if token.startswith("\n"):  # the end of a paragraph
                return
            written.append(token)
            yield token

    def _after(self, written: list[str]) -> list[str]:
        """What may follow: the longest context that the text has decides."""
        contexts = (tuple(written[max(0, len(written) - n) :]) for n in range(ORDER, 0, -1))
        return next((self._followers[c] for c in contexts if c in self._followers), [" Alice"])


def plain(token: str) -> str:
    return token.replace('"', "")


model = Generator.bind(TEXT)
pipeline: rc.Pipeline[ChatRequest, str] = rc.pipeline(prompt, model, plain)


# The endpoint


class Answer:
    """The objects of OpenAI's API for one request."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, tokens: list[str]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(tokens), "refusal": None}
        choice = {"message": message, "finish_reason": self._why_finished(len(tokens))}
        return self._object("chat.completion", choice, usage=self._usage(len(tokens)))

    async def events(self, tokens: AsyncIterator[str]) -> AsyncIterator[str]:
        count = 0
        yield self._chunk({"role": "assistant", "content": ""})
        async for token in tokens:
            count += 1
            yield self._chunk({"content": token})
        yield self._chunk({}, self._why_finished(count))
        options = self._request.stream_options
        if options and options.include_usage:
            yield event(self._object("chat.completion.chunk", None, usage=self._usage(count)))
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"delta": delta, "finish_reason": finish_reason}
        return event(self._object("chat.completion.chunk", choice))

    def _object(self, kind: str, choice: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
        choices = [] if choice is None else [{"index": 0, "logprobs": None, **choice}]
        head = {"id": self._id, "object": kind, "created": self._created, "model": MODEL}
        return {**head, "choices": choices, **more}

    def _why_finished(self, count: int) -> str:
        return "length" if count == self._request.limit else "stop"

    def _usage(self, count: int) -> dict[str, int]:
        asked = len(tokens_of(prompt(self._request)["text"]))
        return {
            "prompt_tokens": asked,
            "completion_tokens": count,
            "total_tokens": asked + count,
        }


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


class Streaming(Protocol):
    def stream(self, request: ChatRequest) -> AsyncIterator[str]: ...


api = FastAPI(title="Chat")


@serve.deployment
@serve.ingress(api)
class Api:
    def __init__(self, pipeline: Streaming) -> None:
        self._pipeline = pipeline

    @api.post("/v1/chat/completions")
    async def complete(self, request: ChatRequest) -> Any:
        if request.model != MODEL:
            message = f"there is no model {request.model!r}, only {MODEL!r}"
            error = {"message": message, "type": "invalid_request_error", "code": "model_not_found"}
            return JSONResponse({"error": error}, 404)
        answer = Answer(request)
        tokens = self._pipeline.stream(request)
        if request.stream:
            return StreamingResponse(answer.events(tokens), media_type="text/event-stream")
        return answer.whole([token async for token in tokens])


app = Api.bind(pipeline.embed())
