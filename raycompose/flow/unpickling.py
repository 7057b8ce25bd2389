"""Exceptions as they were pickled, whatever arguments their constructors ask for."""

import io
import pickle
from typing import Any, ClassVar

from raycompose.errors import StageError, reborn


def unpickled_error(data: bytes) -> BaseException:
    """Return a pickled exception.

    Python pickles an exception as its class and its ``args``. One whose ``__init__`` takes other
    arguments (keywords, say, as everybody gives them to ``HTTPException``) is made without it.

    Args:
        data: A pickle of an exception.
    """
    try:
        error = _Unpickler(io.BytesIO(data)).load()
    except Exception as failure:  # whatever a user's __reduce__ or __setstate__ may raise
        return StageError("Exception", f"it cannot be unpickled: {failure}")
    return error if isinstance(error, BaseException) else StageError("Exception", repr(error))


_Python: Any = pickle._Unpickler  # noqa: SLF001  # the one that is written in Python


class _Unpickler(_Python):  # type: ignore[misc]  # it has no types
    """Makes exceptions without their ``__init__`` where it does not take their ``args``."""

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], args)

    dispatch: ClassVar[dict[int, Any]] = {**_Python.dispatch, pickle.REDUCE[0]: load_reduce}


def _made(kind: Any, args: tuple[Any, ...]) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        return kind(*args)
    try:
        return kind(*args)
    except Exception:  # whatever it raises for arguments that it does not take
        return reborn(kind, args, {})
