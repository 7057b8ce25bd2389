"""A deployment's result goes to a Ray task; it stays in the object store on the way.

Run it:

    raycompose run object_ref:app --app-dir examples
    curl localhost:8000
"""

from typing import Any

import ray
from ray import ObjectRef, serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse

import raycompose as rc


@ray.remote
def say_hi_task(inp: str) -> str:
    return f"Ray task got message: '{inp}'"


@serve.deployment
class SayHi:
    def __call__(self) -> str:
        return "Hi from Serve deployment"


@serve.deployment
class Ingress:
    def __init__(self, say_hi: DeploymentHandle[str]) -> None:
        self._say_hi = say_hi

    async def __call__(self) -> str:
        response: DeploymentResponse[str] = self._say_hi.remote()
        ref: ObjectRef[str] = await rc.to_object_ref(response)
        final: ObjectRef[str] = say_hi_task.remote(ref)
        return str(await final)


by_hand = Ingress.bind(SayHi.bind())


app: rc.Pipeline[Any, str] = SayHi.bind().then(say_hi_task)
