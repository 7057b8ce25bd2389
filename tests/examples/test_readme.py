"""What the README and the pages in docs/ show: run, called and looked up as a reader would."""

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
from pydantic import BaseModel
from starlette.testclient import TestClient
from support.cluster import Deploy

import raycompose as rc
from raycompose.graph.metrics import _COUNTERS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FORM = {"content-type": "application/x-www-form-urlencoded"}  # what `curl -d` sends


@dataclass
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    runs: bool


def blocks(page: Path) -> Iterator[Block]:
    """Give a page's blocks; one behind a comment `<!-- not run: ... -->` is only compiled."""
    text = page.read_text()
    fence = r"(<!-- not run: [^\n]+ -->\n)?^```(\w+)[^\n]*\n(.*?)^```$"
    for found in re.finditer(fence, text, re.DOTALL | re.MULTILINE):
        line = text[: found.start(3)].count("\n")
        yield Block(found[2], found[3], line, found[1] is None)


def execute(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    """Run a Python block and the tests in it, with the page's own line numbers in tracebacks."""
    code = compile("\n" * block.line + block.text, str(page), "exec")
    if not block.runs:
        return
    exec(code, namespace)
    for name in re.findall(r"^def (test_\w+)\(\)", block.text, re.MULTILINE):
        namespace[name]()


def curls(console: str) -> Iterator[tuple[str, str]]:
    """Give the bodies that a console block sends by curl, each with the answer that it shows."""
    for entry in console.split("$ ")[1:]:
        command, _, answer = entry.partition("\n")
        words = shlex.split(command)
        if words[0] == "curl" and "-d" in words and answer.strip():
            yield words[words.index("-d") + 1], answer.strip()


def shows(answer: str, expected: str) -> bool:
    """Whether an answer is the one shown, where `...` stands for anything."""
    pattern = ".*".join(map(re.escape, expected.split("...")))
    return re.fullmatch(pattern, answer.strip()) is not None


@pytest.fixture
def _llm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page imports of `ray.serve.llm`, which itself needs vLLM."""

    class ChatCompletionRequest(BaseModel):
        model: str
        messages: list[dict[str, str]]
        stream: bool

    models = ModuleType("ray.serve.llm.openai_api_models")
    models.ChatCompletionRequest = ChatCompletionRequest  # type: ignore[attr-defined]  # a stub
    monkeypatch.setitem(sys.modules, "ray.serve.llm", ModuleType("ray.serve.llm"))
    monkeypatch.setitem(sys.modules, models.__name__, models)


@pytest.mark.usefixtures("_llm")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_s_code_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every assertion of a page holds, and its curl lines are answered as it says."""
    module = ModuleType("reviews")  # what the tutorial has its reader save
    monkeypatch.setitem(sys.modules, "reviews", module)
    namespace = vars(module)
    for block in blocks(page):
        if block.language == "python":
            execute(block, page, namespace)
        elif block.language == "console" and "app" in namespace:
            for body, expected in curls(block.text):
                with rc.local(namespace["app"]) as client:
                    answer = TestClient(client.asgi).post("/", content=body, headers=FORM)
                assert shows(answer.text, expected), f"{page.name}: {answer.text}"


@pytest.fixture(scope="module")
def readme() -> dict[str, Any]:
    """The names that the README's first two blocks define: ``app`` and ``plain``."""
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in [block for block in blocks(README) if block.language == "python"][:2]:
        execute(block, README, namespace)
    return namespace


def test_the_readme_s_code_runs(cluster: None) -> None:
    """Every assertion that the README makes holds, on a real cluster."""
    python = [block for block in blocks(README) if block.language == "python"]
    assert len(python) >= 5
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in python:
        assert block.runs
        execute(block, README, namespace)


def test_the_readme_s_curl_is_answered_by_both(deploy: Deploy, readme: dict[str, Any]) -> None:
    """The pipeline and the plain Ray Serve beside it answer the curl line with the same words."""
    shown = [pair for b in blocks(README) if b.language == "console" for pair in curls(b.text)]
    assert len(shown) == 1
    for app, malformed in ((readme["app"], 400), (readme["plain"], 500)):
        url = deploy(app).url
        assert url is not None
        for body, expected in shown:
            answer = requests.post(url, data=body, headers=FORM, timeout=60)
            assert answer.text == expected
        assert requests.post(url, data="{", headers=FORM, timeout=60).status_code == malformed


def test_the_readme_shows_the_hello_example() -> None:
    """The README's first block is `examples/hello.py`, so both are run by the same command."""
    hello = (ROOT / "examples" / "hello.py").read_text()
    first = next(block.text for block in blocks(README) if block.language == "python")
    docstring = ast.parse(hello).body[0]
    assert hello.splitlines()[docstring.end_lineno :] == ["", *first.splitlines()]


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    """What a page links to beside it exists, so that its links work in a clone, too."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_the_readme_lists_every_example() -> None:
    """A file in `examples/` that the README does not link to fails here."""
    linked = set(re.findall(r"\]\(examples/([\w.]+)\)", README.read_text()))
    files = {file.name for file in (ROOT / "examples").iterdir() if file.is_file()}
    assert files <= linked


def test_the_reference_has_every_public_name() -> None:
    """The pages of the reference show what `raycompose.__all__` exports, each once."""
    pages = "".join(page.read_text() for page in PAGES if page.parent.name == "reference")
    shown = re.findall(r"^::: raycompose\.(\w+)$", pages, re.MULTILINE)
    assert sorted([*shown, "__version__"]) == sorted(rc.__all__)
    assert "rc.__version__" in pages


def test_the_docs_name_every_metric() -> None:
    """The page on observing lists the metrics that there are, as Prometheus sees them."""
    page = (ROOT / "docs" / "how-to" / "observing.md").read_text()
    counters = {f"ray_raycompose_{name}_total" for name in _COUNTERS}
    shown = set(re.findall(r"^\| `(ray_raycompose_\w+)`", page, re.MULTILINE))
    assert shown == {"ray_raycompose_stage_latency_ms", *counters}
