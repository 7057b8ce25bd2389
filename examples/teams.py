"""Two teams: one deploys the translator, the other a pipeline that calls it by its name.

Run it, with the translator first or later:

    raycompose run teams:app --app-dir examples --name shop --route-prefix /shop
    raycompose run teams:translator --app-dir examples --name translator --route-prefix /translator
    curl localhost:8000/shop -d '"good day"'
"""

from ray import serve

import raycompose as rc

WORDS = {"good": "buen", "day": "día"}


@serve.deployment
class Translator:
    def __call__(self, text: str) -> str:
        return " ".join(WORDS.get(word, word) for word in text.split())


def exclaim(text: str) -> str:
    return f"¡{text}!"


translator = rc.pipeline(Translator)  # the one team's application

app = rc.pipeline(str.lower, rc.stage(rc.app("translator"), timeout_s=5), exclaim)  # the other's
