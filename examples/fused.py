"""One pipeline, three engines: a replica per stage, all stages in one replica, or this process.

Run it:

    raycompose run fused:distributed --app-dir examples    # or fused:app
    curl localhost:8000 -d '"The map! The map!"'
    python examples/fused.py
"""

from collections import Counter

from ray import serve

import raycompose as rc


@serve.deployment
class Tokenizer:
    def __call__(self, text: str) -> list[str]:
        return [word.strip(".,;:!?").lower() for word in text.split()]


@serve.deployment
class Count:
    def __call__(self, words: list[str]) -> dict[str, int]:
        return dict(Counter(words))


@serve.deployment
class Top:
    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, counts: dict[str, int]) -> list[str]:
        return sorted(counts, key=lambda word: (-counts[word], word))[: self._size]


# Four deployments: the stages, and the one in front that calls them.
distributed = rc.pipeline(Tokenizer.bind(), Count.bind(), Top.bind(2))

# One deployment: no hops, nothing serialised.
app = distributed.fuse()

# Two deployments: Count still scales on its own.
partly = distributed.fuse("Tokenizer", "Top")

if __name__ == "__main__":
    # No cluster: for unit tests and debuggers.
    print(rc.local(distributed).call("The map! The map!"))
