"""How much is made up at random: little in `make test`, much in `make fuzz`."""

import os

FUZZ = os.environ.get("RAYCOMPOSE_FUZZ") == "1"


def examples(short: int, long: int) -> int:
    """Return how many examples a property is tried with."""
    return long if FUZZ else short
