"""What an engine that runs a graph keeps between requests, for each node."""

import uuid
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

S = TypeVar("S")


class Engine:
    """A graph that was opened in some process. Sent elsewhere, it is the same one there, too.

    A stream that is iterated in another replica brings copies of nodes along: their limits hold in
    that process, as those of the graph do in its own.

    Args:
        key: Tells it apart from all others; by default a new one.
    """

    def __init__(self, key: str | None = None) -> None:
        self._key = key or uuid.uuid4().hex
        self._states: dict[str, Any] = {}
        _here[self._key] = self

    def state(self, node: str, make: Callable[[], S]) -> S:
        """Return what the node of that name keeps, made when it is first asked for."""
        if node not in self._states:
            self._states[node] = make()
        state: S = self._states[node]
        return state

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self._key,)


_here: "weakref.WeakValueDictionary[str, Engine]" = weakref.WeakValueDictionary()


def _same(key: str) -> Engine:
    return _here.get(key) or Engine(key)
