"""Batches of a stream: a document's sentences are embedded several at once, as they come.

Run it:

    raycompose run embeddings:app --app-dir examples
    curl localhost:8000 -d '"One sentence. Another one. And a third."'
"""

from collections.abc import Iterator

from ray import serve

import raycompose as rc


def sentences(document: str) -> Iterator[str]:
    yield from filter(None, map(str.strip, document.split(".")))


@serve.deployment
class Encoder:
    def __call__(self, batch: list[str]) -> list[list[float]]:
        return [[float(len(text)), float(text.count(" "))] for text in batch]


app = rc.pipeline(sentences, rc.batched(2, max_wait_s=0.05), Encoder)
