"""From a question and what was found to an answer, whose sources are numbered in brackets."""

import os
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypedDict

import openai
from ray import serve

from .passages import Passage, sentences

CITED = 4
"""How many passages an answer may cite."""
NOTHING = "The documents say nothing about that."


class Sourced(TypedDict):
    question: str
    sources: list[Passage]


def rank(question: str, near: list[Passage], matching: list[Passage]) -> Sourced:
    """Reciprocal rank fusion: what both searches put high comes first."""
    scores: dict[str, float] = defaultdict(float)
    for results in (near, matching):
        for place, passage in enumerate(results):
            scores[passage["id"]] += 1 / (60 + place)
    found = {passage["id"]: passage for passage in (*near, *matching)}
    best = sorted(found, key=lambda id_: -scores[id_])[:CITED]
    return {"question": question, "sources": [found[id_] for id_ in best]}


@serve.deployment(ray_actor_options={"num_cpus": 0.5})
class Quote:
    """Answers with the sentences that have most of the question's words. Needs no model."""

    def __call__(self, asked: Sourced) -> Iterator[str]:
        wanted = stems(asked["question"])
        scored = [
            (len(wanted & stems(sentence)), -number, sentence)
            for number, source in enumerate(asked["sources"], start=1)
            for sentence in sentences(source["text"])
        ]
        least = max(1, len(wanted) // 3)
        best = [quote for quote in sorted(scored, reverse=True)[:3] if quote[0] >= least]
        for _, number, sentence in best:
            yield from (f"{word} " for word in sentence.split())
            yield f"[{-number}] "
        if not best:
            yield NOTHING


def stems(text: str) -> set[str]:
    """The beginnings of a text's longer words: "replicas" and "replicated" have one."""
    return {word[:6] for word in re.findall(r"\w{4,}", text.lower())}


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100)
class Chat:
    """Has a language model answer, behind any endpoint that speaks OpenAI's protocol."""

    def __init__(self, base_url: str, model: str) -> None:
        self._model = model
        # Read here, in the replica: an argument would be in the application's configuration.
        api_key = os.environ.get("OPENAI_API_KEY", "none")
        self._client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0)

    async def __call__(self, asked: Sourced) -> AsyncIterator[str]:
        chunks: Any = await self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": prompt(asked)}],
            stream=True,
        )
        async for chunk in chunks:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content


def prompt(asked: Sourced) -> str:
    sources = "\n\n".join(
        f"[{number}] {source['text']}" for number, source in enumerate(asked["sources"], start=1)
    )
    return (
        "Answer the question from these sources alone, briefly, and put the number of the source "
        f"in brackets behind what you take from it.\n\n{sources}\n\nQuestion: {asked['question']}"
    )
