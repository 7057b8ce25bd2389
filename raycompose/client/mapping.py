"""Many calls at once: in order, so many at a time, with a bar that shows how far they are."""

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from raycompose.errors import add_note
from raycompose.flow import background
from raycompose.flow.concurrency import map_bounded
from raycompose.graph.limits import is_count

_REFRESH_S = 0.1


class Calls:
    """A function called with each of several inputs.

    Args:
        call: What is called.
        inputs: What it is called with.
        max_concurrency: How many calls are under way at once.
        return_exceptions: Put an error in its input's place rather than raise the first.
    """

    def __init__(
        self,
        call: Callable[[Any], Coroutine[Any, Any, Any]],
        inputs: list[Any],
        max_concurrency: int,
        return_exceptions: bool,
    ) -> None:
        if not is_count(max_concurrency):
            raise ValueError(
                f"max_concurrency is a whole number of 1 or more, got {max_concurrency!r}"
            )
        self._call = call
        self._inputs = inputs
        self._max_concurrency = max_concurrency
        self._return_exceptions = return_exceptions
        self._done = 0

    async def run(self) -> list[Any]:
        """Give the results in the inputs' order, on the background loop."""
        return await map_bounded(self._one, self._inputs, self._max_concurrency)

    async def _one(self, index: int, value: Any) -> Any:
        try:
            result = await self._call(value)
        except Exception as error:
            if not self._return_exceptions:
                add_note(error, f"while mapping the input at index {index}")
                raise
            result = error
        self._done += 1
        return result

    def watched(self) -> list[Any]:
        """Block until all are done, with a bar."""
        background.wait(asyncio.sleep(0))  # refuses to wait on the background loop itself
        future = background.submit(self.run())
        try:
            with _bar(len(self._inputs)) as show:
                while not future.done():
                    show(self._done)
                    concurrent.futures.wait([future], _REFRESH_S)
                show(self._done)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def awatched(self) -> list[Any]:
        """Await them all, with a bar."""
        future = asyncio.ensure_future(background.result_of(background.submit(self.run())))
        try:
            with _bar(len(self._inputs)) as show:
                while not future.done():
                    show(self._done)
                    await asyncio.wait([future], timeout=_REFRESH_S)
                show(self._done)
            return future.result()
        except BaseException:
            future.cancel()
            raise


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar that is told how many are done: rich's in a terminal, plain text in a notebook."""
    from rich.console import Console  # 50 ms that only a bar needs
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_jupyter:  # where rich's own needs ipywidgets
        from IPython.display import display

        shown = display({"text/plain": _text_bar(0, total)}, raw=True, display_id=True)
        yield lambda done: shown.update({"text/plain": _text_bar(done, total)}, raw=True)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


def _text_bar(done: int, total: int, width: int = 40) -> str:
    """Return a bar of characters.

    >>> _text_bar(2, 4, width=8)
    '████░░░░ 2/4'
    """
    filled = width * done // total if total else width
    return f"{'█' * filled}{'░' * (width - filled)} {done}/{total}"
