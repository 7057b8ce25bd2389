"""examples/document_search in headless Chromium: served as its README says, used on its page.

``make test-browser`` runs it, and says in ``RAYCOMPOSE_BROWSER`` where Chromium is.
"""

import os
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.documents import FACTS, QUESTION, LanguageModel, language_model, pdf
from support.running import EXAMPLES, running
from support.waiting import PATIENCE_S

FLAGS = ["--disable-gpu", "--disable-quic", "--disable-sync"]  # Playwright adds many more
expect.set_options(timeout=PATIENCE_S * 1000)


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    """What answers; when it fails, the quotes are the answer, as they are without a model."""
    with language_model() as model:
        yield model


@pytest.fixture(scope="module")
def url(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the application is served."""
    folder = tmp_path_factory.mktemp("documents")
    settings = (f"folder={folder / 'lance'}", f"base_url={model.base_url}", "model=tiny")
    arguments = ("document_search.app:build", "--app-dir", str(EXAMPLES), *settings)
    with running(*arguments, log=folder / "log") as run:
        yield f"http://127.0.0.1:{run.port}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = os.environ["RAYCOMPOSE_BROWSER"]
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(url: str, browser: Browser) -> Iterator[Page]:
    """The page, on which a document was uploaded; no error of its script goes unseen."""
    page = browser.new_page()
    errors: list[Exception] = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(url)
    upload(page, "whales.pdf", pdf(FACTS))
    expect(page.get_by_role("status")).to_have_text("whales.pdf: 3 passages indexed.")
    yield page
    page.close()
    assert not errors


def upload(page: Page, name: str, content: bytes) -> None:
    file = {"name": name, "mimeType": "application/pdf", "buffer": content}
    page.get_by_label("A PDF or text file").set_input_files(file)
    page.get_by_role("button", name="Upload").click()


def ask(page: Page) -> None:
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()


def test_a_document_that_was_uploaded_is_listed(page: Page) -> None:
    """After the upload, and when the page is loaded again."""
    documents = page.locator("#documents li")
    expect(documents).to_have_text(["whales.pdf (3 passages)"])
    page.reload()
    expect(documents).to_have_text(["whales.pdf (3 passages)"])


def test_a_file_that_cannot_be_read_is_a_problem_on_the_page(page: Page) -> None:
    """What the stage says is shown, and the next upload can begin."""
    upload(page, "x.pdf", b"%PDF-1.7 and then nothing")
    status = page.get_by_role("status")
    expect(status).to_contain_text("x.pdf is no PDF")
    expect(status).to_have_class("problem")
    expect(page.get_by_role("button", name="Upload")).to_be_enabled()


def test_the_answer_grows_while_it_is_written(page: Page, model: LanguageModel) -> None:
    """Its beginning and its sources are on the page before the model has written the rest."""
    answer, button = page.locator("#answer"), page.get_by_role("button", name="Ask")
    with model.held():
        ask(page)
        expect(answer).to_have_text("Krill")
        expect(page.locator("#sources li")).to_have_count(len(FACTS))
        expect(button).to_be_disabled()
    expect(answer).to_have_text("Krill [1].")
    expect(button).to_be_enabled()


def test_a_citation_leads_to_its_source(
    page: Page, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A click on the number marks the passage that has the sentence, with its document and page."""
    monkeypatch.setattr(model, "fails", True)
    ask(page)
    expect(page.locator("#answer")).to_have_text(re.compile(rf"^{re.escape(FACTS[1])} \[1\]"))
    page.get_by_role("link", name="[1]").first.click()
    cited = page.locator("#sources li:target")
    expect(cited).to_have_text(f"[1] whales.pdf, page 2{FACTS[1]}")


@pytest.mark.parametrize("of", ["an upload", "a question"])
def test_the_page_shows_a_picture_of_its_pipelines(page: Page, of: str) -> None:
    """A picture is loaded and drawn when what hides it is opened."""
    page.get_by_text("The pipelines behind this page").click()
    picture = page.get_by_alt_text(f"The pipeline of {of}")
    picture.scroll_into_view_if_needed()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
