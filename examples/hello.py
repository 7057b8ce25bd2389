"""Three deployments, one after the other: each scales on its own.

Run it:

    raycompose run hello:app --app-dir examples
    curl localhost:8000 -d '{"data": "hello world"}'
"""

from ray import serve

import raycompose as rc


@serve.deployment
class Preprocessor:
    def __call__(self, data: str) -> str:
        return data.upper()


@serve.deployment
class Model:
    def __call__(self, text: str) -> str:
        return f"Model processed: {text}"


@serve.deployment
class Postprocessor:
    def __call__(self, result: str) -> str:
        return f"Final output: {result.replace('Model processed:', 'Inferred result:')}"


app = rc.pipeline(Preprocessor.bind(), Model.bind(), Postprocessor.bind())
