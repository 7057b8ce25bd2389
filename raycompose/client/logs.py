"""What replicas print and log, each line behind the name of its stage."""

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

_OWN_LOG = re.compile(
    r"^(?P<level>[A-Z]+) \d{4}-\d\d-\d\d [\d:,]+ \S+ \S+ (?:\S+ )?-- (?P<text>.*)"
)
"""A line of Ray Serve's logger in a replica: level, time, replica, request, and what it says."""

_CHATTER = re.compile(r"CALL \S+ OK |Started <ray\.serve\.|Initializing |Finished initializing ")
"""What Ray Serve logs of every call and start."""


def shown(worker: dict[str, Any]) -> Iterator[str]:
    """Give the lines to show of what a worker has written: replicas' own, without Ray's chatter.

    >>> list(shown({"actor_name": "ServeReplica:default:Model", "lines": ["loaded"]}))
    ['Model | loaded']
    >>> list(shown({"actor_name": "ServeController", "lines": ["Adding 1 replica"]}))
    []
    """
    kind, _, name = str(worker.get("actor_name") or "").partition(":")
    if kind != "ServeReplica":
        return
    stage = name.rpartition(":")[2]
    for line in worker.get("lines", ()):
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

    def show(worker: dict[str, Any]) -> None:
        for line in shown(worker):
            write(line)

    return show


def to_stderr(line: str) -> None:
    """Write a line where logs belong."""
    print(line, file=sys.stderr, flush=True)
