"""A stream from one deployment through another, by hand and as a pipeline.

In the pipeline the second replica pulls the items directly from the first.

Run it:

    raycompose run streaming:app --app-dir examples
    curl --no-buffer localhost:8000 -d 10
"""

from collections.abc import AsyncGenerator, AsyncIterator, Generator

from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

import raycompose as rc


@serve.deployment
class Streamer:
    def __call__(self, limit: int) -> Generator[int, None, None]:
        yield from range(limit)


@serve.deployment
class Caller:
    def __init__(self, streamer: DeploymentHandle[int]) -> None:
        self._streamer = streamer.options(stream=True)

    async def __call__(self, limit: int) -> AsyncGenerator[int, None]:
        numbers: DeploymentResponseGenerator[int] = self._streamer.remote(limit)
        async for number in numbers:
            yield number


@serve.deployment
class Relay:
    async def __call__(self, numbers: AsyncIterator[int]) -> AsyncGenerator[int, None]:
        async for number in numbers:
            yield number


by_hand = Caller.bind(Streamer.bind())

app: rc.Pipeline[int, int] = Streamer.bind().then(Relay.bind())
