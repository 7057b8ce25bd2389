"""A result passed by value, and by reference: then the model starts before the result is there.

Run it:

    raycompose run by_reference:app --app-dir examples
    curl localhost:8000
"""

import asyncio
from typing import Any

from ray import ObjectRef, serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse

import raycompose as rc


@serve.deployment
class Preprocessor:
    def __call__(self) -> str:
        return "Hello from preprocessor!"


@serve.deployment
class DownstreamModel:
    def pass_by_value(self, result: str) -> str:
        return f"Got result by value: '{result}'"

    async def pass_by_reference(self, wrapped_result: list[ObjectRef[str]]) -> str:
        # Do some preprocessing work before fetching the result.
        await asyncio.sleep(0.1)

        result: str = await wrapped_result[0]
        return f"Got result by reference: '{result}'"


@serve.deployment
class Ingress:
    def __init__(
        self, preprocessor: DeploymentHandle[str], downstream: DeploymentHandle[str]
    ) -> None:
        self._preprocessor = preprocessor
        self._downstream = downstream

    async def __call__(self, mode: str) -> str:
        response: DeploymentResponse[str] = self._preprocessor.remote()
        if mode == "by_value":
            by_value: str = await self._downstream.pass_by_value.remote(response)
            return by_value
        # Ray Serve itself refuses a response inside a list.
        refs = await rc.by_ref([response])
        by_reference: str = await self._downstream.pass_by_reference.remote(refs)
        return by_reference


by_hand = Ingress.bind(Preprocessor.bind(), DownstreamModel.bind())

by_value: rc.Pipeline[Any, str] = Preprocessor.bind().then(
    DownstreamModel.bind(), method="pass_by_value"
)

app: rc.Pipeline[Any, str] = Preprocessor.bind().then(
    DownstreamModel.bind(), method="pass_by_reference"
)
