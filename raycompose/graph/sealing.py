"""A graph as it was composed, to be sent: what has run is never pickled again.

Ray pickles a replica's arguments when it starts, to look for handles in them, and whenever the
controller restarts. What scripts and notebooks define travels by value, and may have become
unpicklable in the meantime: a class that got a lock in its constructor, a function's global that
holds a connection.
"""

import io
import pickle
from typing import Any, Generic, TypeVar

from ray import cloudpickle
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

T = TypeVar("T")
_APART = (Application, DeploymentHandle)


class Sealed(Generic[T]):
    """A value pickled once, with the applications in it beside it, where Ray finds them.

    In a replica Ray has put handles in the place of the applications.

    Args:
        value: What to seal.
    """

    def __init__(self, value: T) -> None:
        pickler = _Pickler()
        pickler.dump(value)
        self._pickled = pickler.buffer.getvalue()
        self._apart = pickler.apart

    def open(self) -> T:
        """Return the value: a new one each time."""
        unpickler = _Unpickler(io.BytesIO(self._pickled))
        unpickler.apart = self._apart
        value: T = unpickler.load()
        return value

    def release(self) -> None:
        """Drop what was pickled: the handles beside it are all that Ray still looks for."""
        self._pickled = b""


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]  # Ray's types are not followed
    def __init__(self) -> None:
        self.buffer = io.BytesIO()
        self.apart: list[Any] = []
        super().__init__(self.buffer)

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, _APART):
            return None
        for position, known in enumerate(self.apart):
            if known is value:
                return position
        self.apart.append(value)
        return len(self.apart) - 1


class _Unpickler(pickle.Unpickler):
    apart: list[Any]

    def persistent_load(self, pid: Any) -> Any:
        return self.apart[pid]
