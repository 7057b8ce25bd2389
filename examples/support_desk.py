"""Routing on a model: a deployment decides who answers, and the answer knows what it decided.

Run it:

    raycompose run support_desk:app --app-dir examples
    curl localhost:8000 -d '{"text": "I want my money back"}'
"""

from typing import Any

from ray import serve

import raycompose as rc


@serve.deployment
class Intent:
    """Stands for a classifier."""

    def __call__(self, message: dict[str, Any]) -> str:
        return "refund" if "money" in message["text"] else "question"


@serve.deployment
class Mood:
    """Stands for a sentiment model."""

    def __call__(self, message: dict[str, Any]) -> float:
        return -1.0 if "!" in message["text"] else 0.5


@serve.deployment
class Refunds:
    def __call__(self, message: dict[str, Any]) -> str:
        sorry = "We are very sorry. " if message["mood"] < 0 else ""
        return f"{sorry}Your refund is on its way."


def answer(message: dict[str, Any]) -> str:
    return "Have you tried to switch it off and on?"


app = rc.pipeline(
    rc.assign(mood=Mood.bind()),  # the message, and its mood beside it
    rc.switch(Intent.bind(), {"refund": Refunds.bind(), "question": answer}),
)
