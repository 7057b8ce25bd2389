"""A canary release: a new version serves 10 % of the users, and always the same ones.

Run it:

    raycompose run canary:app --app-dir examples
    curl localhost:8000 -d '{"user": "dora", "item": "map"}'
"""

from typing import TypedDict

from ray import serve

import raycompose as rc


class View(TypedDict):
    user: str
    item: str


def view(user: str, item: str) -> View:
    return {"user": user, "item": item}


def user_of(view: View) -> str:
    return view["user"]


@serve.deployment
class Recommender:
    def __init__(self, version: str) -> None:
        self._version = version

    def __call__(self, view: View) -> str:
        return f"{self._version}: people who like {view['item']} also like backpacks"


stable = Recommender.options(name="Stable").bind("v1")
canary = Recommender.options(name="Canary").bind("v2")

app = rc.pipeline(view, rc.split((stable, 90), (canary, 10), key=user_of))
