"""What replicas print and log, each line behind the name of its stage."""

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

_OWN_LOG = re.compile(
    r"^(?P<level>[A-Z]+) \d{4}-\d\d-\d\d [\d:,]+ \S+ \S+ (?:\S+ )?-- (?P<text>.*)"
)
"""A line of Ray Serve's logger in a replica: level, time, replica, request, and what it says."""

_CHATTER = re.compile(r"CALL \S+ OK |Started <ray\.serve\.|Initializing |Finished initializing ")
"""What Ray Serve logs of every call and start."""

_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line \d+')
_REMOTE = re.compile(r"ray::\S+\(\)\S* \(pid=")
"""Where the traceback of another process begins: in colour, its first frame only the code."""
_MACHINERY = re.compile(
    r"/site-packages/(ray|raycompose|starlette|fastapi|anyio|uvicorn)/|/ray/serve/_private/"
    r"|/raycompose/(compose|flow|graph|http)/|/concurrent/futures/|/asyncio/"
)


class Frames:
    """Tells of a traceback's lines, one after the other, which are the user's."""

    def __init__(self) -> None:
        self._hidden = False

    def shows(self, line: str) -> bool:
        """Tell whether the next line is no frame of Ray's, of raycompose or of what they use."""
        if frame := _FRAME.match(line):
            self._hidden = bool(_MACHINERY.search(frame["file"]))
        elif not line.startswith("    "):
            self._hidden = bool(_REMOTE.search(line))
            return True
        return not self._hidden


def shown(worker: dict[str, Any], frames: Frames | None = None) -> Iterator[str]:
    """Give the lines to show of what a worker has written: replicas' own, without Ray's chatter.

    Args:
        worker: What Ray gives its log handlers: ``actor_name`` and ``lines``.
        frames: What has been seen of its tracebacks before.

    >>> list(shown({"actor_name": "ServeReplica:default:Model", "lines": ["loaded"]}))
    ['Model | loaded']
    >>> list(shown({"actor_name": "ServeController", "lines": ["Adding 1 replica"]}))
    []
    """
    kind, _, name = str(worker.get("actor_name") or "").partition(":")
    if kind != "ServeReplica":
        return
    stage = name.rpartition(":")[2]
    frames = frames or Frames()
    for line in filter(frames.shows, worker.get("lines", ())):
        match = _OWN_LOG.match(line)
        if match is None:
            yield f"{stage} | {line}"
        elif not _CHATTER.match(match["text"]):
            level = "" if match["level"] == "INFO" else f"{match['level']} "
            yield f"{stage} | {level}{match['text']}"


def printer(write: Callable[[str], None]) -> Callable[[dict[str, Any]], None]:
    """Return what Ray calls with the lines of a worker.

    Args:
        write: Shows one line.
    """
    frames: defaultdict[Any, Frames] = defaultdict(Frames)

    def show(worker: dict[str, Any]) -> None:
        written = worker.get("ip"), worker.get("pid"), worker.get("is_err")
        for line in shown(worker, frames[written]):
            write(line)

    return show


def to_stderr(line: str) -> None:
    """Write a line where logs belong."""
    print(line, file=sys.stderr, flush=True)
