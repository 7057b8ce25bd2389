"""Mapping over many inputs: in order, bounded, with errors that say which input it was."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

import raycompose as rc
from raycompose.errors import RayComposeError


class Counting:
    """Doubles numbers, slower the smaller they are, and notes how many calls overlap."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = 0
        self.most = 0
        self.calls = 0

    def __call__(self, x: int) -> int:
        with self.lock:
            self.calls += 1
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.02 if x % 2 else 0.001)
        with self.lock:
            self.now -= 1
        if x < 0:
            raise ValueError(f"{x} is negative")
        return x * 2


def test_results_are_in_the_inputs_order_and_calls_are_bounded() -> None:
    """``map`` takes any iterable, and never has more than ``max_concurrency`` calls under way."""
    stage = Counting()

    def numbers() -> Iterator[int]:
        yield from range(30)

    client = rc.local(rc.pipeline(stage))
    assert client.map(numbers(), max_concurrency=3) == [x * 2 for x in range(30)]
    assert 2 <= stage.most <= 3
    assert client.map([]) == []
    assert asyncio.run(client.amap([1, 2], max_concurrency=1)) == [2, 4]


def test_the_first_error_cancels_the_rest_and_names_its_index() -> None:
    """The user's own exception, with the stage and the index in its notes."""
    stage = Counting()
    with pytest.raises(ValueError, match="-1 is negative") as caught:
        rc.local(rc.pipeline(stage)).map([0, 2, -1, *range(500)], max_concurrency=2)
    assert any("index 2" in note for note in caught.value.__notes__)  # type: ignore[attr-defined]
    assert rc.failed_stage(caught.value) == "Counting"
    assert stage.calls < 400


def test_errors_may_be_results() -> None:
    """With ``return_exceptions`` each error is in its input's place."""
    client = rc.local(rc.pipeline(Counting()))
    first, second, third = client.map([1, -1, 2], return_exceptions=True)
    assert (first, third) == (2, 4)
    assert isinstance(second, ValueError)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2"])
def test_a_concurrency_that_is_none_is_refused(wrong: int) -> None:
    """Rather than wait for ever, or make all calls at once."""
    with pytest.raises(ValueError, match="max_concurrency is"):
        rc.local(rc.pipeline(Counting())).map([1], max_concurrency=wrong)


def test_a_bar_is_shown_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """``progress=True`` changes nothing in the results, blocking or not, nor on standard output."""
    client = rc.local(rc.pipeline(Counting()))
    assert client.map(range(5), progress=True) == [0, 2, 4, 6, 8]
    assert asyncio.run(client.amap(range(3), progress=True)) == [0, 2, 4]
    shown = capsys.readouterr()
    assert "5/5" in shown.err
    assert "3/3" in shown.err
    assert shown.out == ""


def test_a_notebook_gets_a_bar_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ipywidgets, one output that is updated."""
    shown: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            shown.append(data["text/plain"])

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        shown.append(data["text/plain"])
        return Handle()

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    assert rc.local(rc.pipeline(Counting())).map(range(4), progress=True) == [0, 2, 4, 6]
    assert shown[0].endswith("0/4")
    assert shown[-1].endswith("4/4")


def test_mapping_inside_a_stage_is_refused_rather_than_hang() -> None:
    """The blocking form on the loop that runs the pipeline would wait for itself."""
    inner = rc.local(rc.pipeline(Counting()))

    async def outer(xs: list[int]) -> list[int]:
        return inner.map(xs, progress=True)

    with pytest.raises(RayComposeError, match="await the asynchronous form"):
        rc.local(rc.pipeline(outer)).call([1])
