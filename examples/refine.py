"""A loop: a draft is criticised and written again until the critic is content.

Run it:

    raycompose run refine:app --app-dir examples
    curl localhost:8000 -d '"a poem about rain"'
"""

from typing import TypedDict

from ray import serve

import raycompose as rc


class Draft(TypedDict):
    text: str
    score: float


@serve.deployment
class Writer:
    def first(self, topic: str) -> Draft:
        return {"text": f"{topic}.", "score": 0.0}

    def again(self, draft: Draft) -> Draft:
        return {"text": f"{draft['text']} And better.", "score": draft["score"]}


@serve.deployment
class Critic:
    def __call__(self, draft: Draft) -> Draft:
        return {"text": draft["text"], "score": draft["text"].count("better") / 3}


def is_good(draft: Draft) -> bool:
    return draft["score"] >= 1


writer = Writer.bind()
round_of_work = rc.pipeline(rc.stage(writer, method="again", name="Rewrite"), Critic)

app = rc.pipeline(
    rc.stage(writer, method="first"),
    rc.loop(round_of_work, until=is_good, max_iterations=5),
    rc.pick("text"),
)
