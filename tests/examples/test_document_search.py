"""examples/document_search: upload, ask and read, in this process and without a cluster."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.documents import FACTS, QUESTION, language_model, pdf

import raycompose as rc

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from document_search.answers import NOTHING, rank
from document_search.app import Settings, build
from document_search.passages import Passage, pieces


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The application, with one document in it."""
    settings = Settings(folder=tmp_path_factory.mktemp("documents"))
    with rc.local(build(settings)) as client:
        http = TestClient(client.asgi)
        assert upload(http, "whales.pdf", pdf(FACTS)).json() == {
            "document": "whales.pdf",
            "passages": len(FACTS),
        }
        yield http


def upload(http: TestClient, name: str, content: bytes) -> Any:
    return http.post("/documents", files={"file": (name, content)})


def asked(http: TestClient, question: str) -> tuple[str, list[dict[str, Any]]]:
    """The answer and its sources."""
    response = http.post("/questions", json={"question": question})
    assert response.headers["content-type"] == "application/x-ndjson", response.text
    first, *rest = [json.loads(line) for line in response.text.splitlines()]
    return "".join(item["text"] for item in rest).strip(), first["sources"]


def test_an_answer_cites_the_page_that_it_is_from(http: TestClient) -> None:
    """The number in the answer is that of the source with the sentence."""
    answer, sources = asked(http, QUESTION)
    assert answer.startswith("A blue whale eats four tonnes of krill a day. [1]")
    assert (sources[0]["document"], sources[0]["page"]) == ("whales.pdf", 2)


def test_the_answer_comes_in_pieces(http: TestClient) -> None:
    """The sources come first, and the answer word by word."""
    lines = http.post("/questions", json={"question": QUESTION}).text.splitlines()
    assert list(json.loads(lines[0])) == ["sources"]
    assert len(lines) == 1 + len(
        ["A", "blue", "whale", "eats", "four", "tonnes", "of", "krill", "a", "day.", "[1]"]
    )


def test_what_no_document_says_is_not_answered(http: TestClient) -> None:
    """Nothing is made up."""
    answer, _ = asked(http, "Which quarks make a proton?")
    assert answer == NOTHING


def test_an_upload_replaces_an_earlier_one(http: TestClient) -> None:
    """The same document twice is there once; text is read as PDF is."""
    for _ in range(2):
        assert (
            upload(http, "bread.txt", b"Bread is baked from flour.\fAnd water.").status_code == 201
        )
    assert http.get("/documents").json() == {"whales.pdf": len(FACTS), "bread.txt": 2}
    answer, sources = asked(http, "What is bread baked from?")
    assert answer == "Bread is baked from flour. [1]"
    assert sources[0]["document"] == "bread.txt"


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        (b"%PDF-1.7 and then nothing", 422, "x is no PDF"),
        (b"\xff\xfe\x00", 415, "x is neither a PDF nor UTF-8 text"),
        (b" \n", 422, "x has no text; a scan needs OCR first"),
    ],
)
def test_what_cannot_be_read_is_a_problem_of_its_stage(
    http: TestClient, content: bytes, status: int, detail: str
) -> None:
    """The status and the stage come through two streams and the ingress."""
    response = upload(http, "x", content)
    problem = response.json()
    assert (response.status_code, problem["stage"]) == (status, "Reader"), problem
    assert problem["detail"].startswith(detail)


def test_a_question_must_have_words(http: TestClient) -> None:
    """FastAPI validates it."""
    assert http.post("/questions", json={"question": ""}).status_code == 422


def test_the_page_and_its_pictures(http: TestClient) -> None:
    """The page is served, and shows the pipelines with all their stages."""
    assert "<title>Document search</title>" in http.get("/").text
    picture = http.get("/pictures/upload.svg")
    assert picture.headers["content-type"] == "image/svg+xml"
    assert all(stage in picture.text for stage in ("Reader", "passages", "Encoder", "Index"))
    assert all(stage in http.get("/pictures/ask.svg").text for stage in ("rank", "Quote", "Words"))
    assert http.get("/pictures/other.svg").status_code == 404


def test_a_language_model_answers_and_quotes_stand_in_for_it(tmp_path: Path) -> None:
    """The endpoint gets the sources in its prompt; when it fails, the quotes are the answer."""
    with language_model() as model:
        settings = Settings(folder=tmp_path, base_url=model.base_url, model="tiny")
        with rc.local(build(settings)) as client:
            http = TestClient(client.asgi)
            upload(http, "whales.pdf", pdf(FACTS))
            assert asked(http, QUESTION)[0] == "Krill [1]."
            assert f"[1] {FACTS[1]}" in model.prompts[0]
            model.fails = True
            assert asked(http, QUESTION)[0].startswith("A blue whale eats four tonnes")


def test_passages_end_with_a_sentence() -> None:
    """Each is a little longer than the limit at most, and none is lost."""
    text = " ".join(f"This is the sentence number {n}." for n in range(40))
    found = list(pieces(text))
    assert " ".join(found) == text
    assert len(found) == 3
    assert all(piece.endswith(".") for piece in found)


def test_both_searches_count() -> None:
    """A passage that both find comes before one that either puts first."""
    a, b, c = (Passage(id=name, document="d", page=1, text=name) for name in "abc")
    assert rank("?", near=[a, b], matching=[c, b])["sources"][0] == b
