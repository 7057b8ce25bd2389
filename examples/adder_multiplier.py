"""Chained calls, by hand and with `.then`: (5 + 1) * 2 = 12.

Run it:

    raycompose run adder_multiplier:app --app-dir examples
    curl localhost:8000 -d 5
"""

from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse

import raycompose as rc


@serve.deployment
class Adder:
    def __init__(self, increment: int) -> None:
        self._increment = increment

    def __call__(self, val: int) -> int:
        return val + self._increment


@serve.deployment
class Multiplier:
    def __init__(self, multiple: int) -> None:
        self._multiple = multiple

    def __call__(self, val: int) -> int:
        return val * self._multiple


@serve.deployment
class Ingress:
    def __init__(self, adder: DeploymentHandle[int], multiplier: DeploymentHandle[int]) -> None:
        self._adder = adder
        self._multiplier = multiplier

    async def __call__(self, val: int) -> int:
        added: DeploymentResponse[int] = self._adder.remote(val)
        # The response goes straight to the multiplier: no `await` in between.
        multiplied: DeploymentResponse[int] = self._multiplier.remote(added)
        result: int = await multiplied
        return result


by_hand = Ingress.bind(Adder.bind(increment=1), Multiplier.bind(multiple=2))

app: rc.Pipeline[int, int] = Adder.bind(increment=1).then(Multiplier.bind(multiple=2))
