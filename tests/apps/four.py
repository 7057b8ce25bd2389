"""An app builder of four deployments that ask for a CPU each, more than two cores have."""

# mypy does not see that @serve.deployment adds .bind.
# mypy: disable-error-code="attr-defined"

from ray import serve

import raycompose as rc


@serve.deployment
class Prefix:
    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, value: str) -> str:
        return self.text + value


def build(args: dict[str, str]) -> rc.Pipeline[str, str]:
    return rc.pipeline(*(Prefix.bind(args.get("text", ">")) for _ in range(4)))


app = build({})
