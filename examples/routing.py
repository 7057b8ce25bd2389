"""Conditional routing: a request goes to the responder of its language, and to no other.

Three quarters of the visitors speak Spanish, so it has three replicas and French one.

Run it:

    raycompose run routing:app --app-dir examples
    curl localhost:8000 -d '{"language": "spanish", "name": "Dora"}'
"""

from typing import TypedDict

from ray import serve

import raycompose as rc


class Visitor(TypedDict):
    language: str
    name: str


def visitor(language: str, name: str) -> Visitor:
    return {"language": language, "name": name}


def name_of(visitor: Visitor) -> str:
    return visitor["name"]


def unknown_language(visitor: Visitor) -> str:
    return "Please try again."


@serve.deployment(num_replicas=3)
class SpanishResponder:
    def say_hello(self, name: str) -> str:
        return f"Hola {name}"


@serve.deployment(num_replicas=1)
class FrenchResponder:
    def say_hello(self, name: str) -> str:
        return f"Bonjour {name}"


spanish = rc.stage(SpanishResponder.bind(), method="say_hello")
french = rc.stage(FrenchResponder.bind(), method="say_hello")

app = rc.pipeline(
    visitor,
    rc.switch(
        "language",
        {"spanish": rc.pipeline(name_of, spanish), "french": rc.pipeline(name_of, french)},
        default=unknown_language,
    ),
)
