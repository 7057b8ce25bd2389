"""An application whose second stage cannot be constructed."""

# mypy does not see that @serve.deployment adds .bind.
# mypy: disable-error-code="attr-defined"

from ray import serve

import raycompose as rc


@serve.deployment
class Fine:
    def __call__(self, value: str) -> str:
        return value


@serve.deployment(max_constructor_retry_count=1)
class Broken:
    def __init__(self) -> None:
        raise FileNotFoundError("weights.bin is missing")

    def __call__(self, value: str) -> str:
        return value


app = rc.pipeline(Fine.bind(), Broken.bind())
