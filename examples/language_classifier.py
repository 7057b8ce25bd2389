"""Composition by hand, in plain Ray Serve: a deployment that holds the handles of two others.

See routing.py for the same with `rc.switch`. Run it, and then its client:

    raycompose run language_classifier:app --app-dir examples
    python examples/language_classifier.py
"""

import requests
from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from starlette.requests import Request


@serve.deployment
class LanguageClassifier:
    def __init__(
        self,
        spanish_responder: DeploymentHandle[str],
        french_responder: DeploymentHandle[str],
    ) -> None:
        self.spanish_responder = spanish_responder
        self.french_responder = french_responder

    async def __call__(self, http_request: Request) -> str:
        request = await http_request.json()
        language, name = request["language"], request["name"]

        response: DeploymentResponse[str]
        if language == "spanish":
            response = self.spanish_responder.say_hello.remote(name)
        elif language == "french":
            response = self.french_responder.say_hello.remote(name)
        else:
            return "Please try again."

        greeting: str = await response
        return greeting


@serve.deployment
class SpanishResponder:
    def say_hello(self, name: str) -> str:
        return f"Hola {name}"


@serve.deployment
class FrenchResponder:
    def say_hello(self, name: str) -> str:
        return f"Bonjour {name}"


app = LanguageClassifier.bind(SpanishResponder.bind(), FrenchResponder.bind())


def client(url: str = "http://localhost:8000") -> None:
    response = requests.post(url, json={"language": "spanish", "name": "Dora"}, timeout=10)
    print(response.text)


if __name__ == "__main__":
    client()
