"""What stages themselves write down, wherever they run: one file for each request."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.serve.exceptions import RequestCancelledError

Call = dict[str, Any]
"""What goes through a graph: at least ``journal``, the folder, and ``label``, the request."""


# KeyboardInterrupt is what ray.cancel is to a task, and RequestCancelledError what awaiting a
# cancelled response is in local testing mode.
_CANCELLED = (asyncio.CancelledError, KeyboardInterrupt, RequestCancelledError)


def note(call: Call, stage: str, event: str) -> None:
    """Write down what happens to a stage. Appended in one piece, whichever process writes.

    Ray may cancel a task twice, and the second KeyboardInterrupt comes in here: write once more,
    as the same entry, rather than not at all.
    """
    line = f"{stage}|{event}|{time.time()}|{uuid.uuid4().hex}\n"
    while True:
        try:
            with Path(call["journal"], call["label"]).open("a") as file:
                file.write(line)
        except KeyboardInterrupt:
            if event == "started":  # the first time
                raise
            continue
        return


@contextmanager
def noted(call: Call, stage: str) -> Iterator[None]:
    """Write down that a stage started, and how it ended."""
    try:
        note(call, stage, "started")
        yield
    except _CANCELLED:
        note(call, stage, "cancelled")
        raise
    except GeneratorExit:
        note(call, stage, "left")
        raise
    except Exception:
        note(call, stage, "failed")
        raise
    else:
        note(call, stage, "finished")


def events(call: Call) -> list[tuple[str, str, float]]:
    """Return what was written down for a request: stage, event and time."""
    file = Path(call["journal"], call["label"])
    lines = file.read_text().splitlines() if file.exists() else []
    once = {line.rpartition("|")[2]: line.split("|") for line in lines}
    return [(stage, event, float(at)) for stage, event, at, _ in once.values()]


def count(call: Call, event: str) -> Counter[str]:
    """Return how often each stage wrote down an event."""
    return Counter(stage for stage, happened, _ in events(call) if happened == event)


def running(call: Call) -> Counter[str]:
    """Return what has started and not ended."""
    ended = (count(call, event) for event in ("cancelled", "left", "failed", "finished"))
    return count(call, "started") - sum(ended, Counter())


def write(notes: str, event: str) -> None:
    """Add a line to a file."""
    with open(notes, "a") as file:
        file.write(f"{event}\n")
