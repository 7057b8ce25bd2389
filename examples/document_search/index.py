"""Where passages are found again: by the meaning of a question and by its words."""

from pathlib import Path
from typing import Any

import pyarrow
from ray import serve
from sklearn.feature_extraction.text import HashingVectorizer

from .passages import Passage

DIMENSIONS = 1024
SCHEMA = pyarrow.schema(
    {
        "id": pyarrow.string(),
        "document": pyarrow.string(),
        "page": pyarrow.int32(),
        "text": pyarrow.string(),
        "vector": pyarrow.list_(pyarrow.float32(), DIMENSIONS),
    }
)
SHOWN = ["id", "document", "page", "text"]

Vector = list[float]


class Row(Passage):
    vector: Vector


@serve.deployment(ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=64)
class Encoder:
    """Texts become vectors. Parts of words are hashed, which needs no model to download."""

    def __init__(self) -> None:
        self._model = HashingVectorizer(
            analyzer="char_wb", ngram_range=(3, 5), n_features=DIMENSIONS
        )

    def vectors(self, texts: list[str]) -> list[Vector]:
        found: list[Vector] = self._model.transform(texts).toarray().tolist()
        return found

    def rows(self, batch: list[Passage]) -> list[Row]:
        vectors = self.vectors([passage["text"] for passage in batch])
        return [{**p, "vector": vector} for p, vector in zip(batch, vectors, strict=True)]

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def question(self, questions: list[str]) -> list[Vector]:
        """Questions that come at the same time are encoded together."""
        return self.vectors(questions)


@serve.deployment(ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=32)
class Index:
    """An embedded database: LanceDB, in a folder. One replica, which alone writes to it."""

    def __init__(self, folder: Path) -> None:
        import lancedb  # here alone: where it is imported, each fork makes it warn
        from lancedb.index import FTS

        self._table: Any = lancedb.connect(folder).create_table(
            "passages", schema=SCHEMA, exist_ok=True
        )
        self._table.create_index("text", config=FTS())

    def add(self, rows: list[Row]) -> int:
        """Add passages; those of an earlier upload of the same page are replaced."""
        merge = self._table.merge_insert("id").when_matched_update_all()
        merge.when_not_matched_insert_all().execute(rows)
        return len(rows)

    def near(self, vector: Vector) -> list[Passage]:
        return self._found(self._table.search(vector).distance_type("cosine"), "_distance")

    def matching(self, question: str) -> list[Passage]:
        return self._found(self._table.search(question, query_type="fts"), "_score")

    def documents(self) -> dict[str, int]:
        """How many passages there are of each document."""
        names = self._table.search().select(["document"]).to_arrow()["document"]
        counts = names.value_counts().to_pylist()
        return {row["values"]: row["counts"] for row in counts}

    def _found(self, query: Any, by: str) -> list[Passage]:
        rows = query.select([*SHOWN, by]).limit(20).to_arrow()  # LanceDB warns if that is left out
        found: list[Passage] = rows.select(SHOWN).to_pylist()
        return found
