"""Two providers of one answer: a race between them, and a second call of one that is slow.

Run it:

    raycompose run providers:app --app-dir examples
    curl localhost:8000 -d '"what is the time?"'
"""

import asyncio
import random

from ray import serve

import raycompose as rc


@serve.deployment
class Near:
    """Quick, but it stalls now and then."""

    async def __call__(self, question: str) -> str:
        await asyncio.sleep(2 if random.random() < 0.05 else 0.01)
        return f"near: {question}"


@serve.deployment
class Far:
    """Slower, and always the same."""

    async def __call__(self, question: str) -> str:
        await asyncio.sleep(0.2)
        return f"far: {question}"


# One more call in twenty at most, however slow everything gets.
near = rc.stage(Near.bind(), hedge=rc.Hedge(after_s=0.05, budget=0.05), retry=3)

app = rc.race(near, Far.bind())  # whichever is first; the other is cancelled
