"""Three BentoML services behind one, each in a process of its own: ``bentoml_services.py PORT``."""

# BentoML is not installed where the types are checked.
# mypy: disable-error-code="untyped-decorator,no-any-return"

import os
import sys

if __name__ == "__main__":
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    serve = "-m", "bentoml", "serve", "bentoml_services:Front", "--port", sys.argv[1]
    os.execv(sys.executable, [sys.executable, *serve, "--working-dir", os.path.dirname(__file__)])

from typing import Any

import bentoml


@bentoml.service
class First:
    @bentoml.api
    async def run(self, value: dict[str, Any]) -> dict[str, Any]:
        return value


@bentoml.service
class Second:
    @bentoml.api
    async def run(self, value: dict[str, Any]) -> dict[str, Any]:
        return value


@bentoml.service
class Third:
    @bentoml.api
    async def run(self, value: dict[str, Any]) -> dict[str, Any]:
        return value


@bentoml.service
class Front:
    first = bentoml.depends(First)
    second = bentoml.depends(Second)
    third = bentoml.depends(Third)

    @bentoml.api(route="/predict")
    async def predict(self, value: dict[str, Any]) -> dict[str, Any]:
        return await self.third.run(await self.second.run(await self.first.run(value)))
