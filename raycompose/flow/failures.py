"""What a failed call behind a handle or an ``ObjectRef`` tells its caller."""

import ast
import re
import sys
from typing import Any

from ray import cloudpickle
from ray.exceptions import ObjectLostError, TaskCancelledError
from starlette.exceptions import HTTPException

from raycompose import _serve
from raycompose.errors import MARKS, StageError, add_note, arguments_of, reborn, state_of

_ADVICE: tuple[tuple[type[Exception], str, str], ...] = (
    (ObjectLostError, "",
     "the process that held the result is gone: run the stage again (retry=...)"),
    (TaskCancelledError, "",
     "the call behind this reference was cancelled, so it has no result"),
    (TypeError, "generator' object",
     "a replica can send neither a generator that it returns nor a StreamingResponse: "
     "yield the items in the stage itself, and the pipeline streams them"),
)  # fmt: skip


def users_error(error: BaseException) -> BaseException:
    """Return the exception that the user's code raised, out of Ray's wrapping.

    Where Ray could not send it and only its text arrived, what stands for it. An error of Ray's
    own whose message leaves open what to do gets a note that says so.
    """
    cause = _serve.unwrap(error)
    if (text := _serve.text_of_unsendable(cause)) is not None:
        return restored(text)
    for kind, text, note in _ADVICE:
        if (
            isinstance(cause, kind)
            and text in str(cause)
            and note not in getattr(cause, "__notes__", ())
        ):
            add_note(cause, note)
    return cause


class Sent(Exception):  # a wrapping: what arrives is the error in it
    """An exception on its way to another process, where it arrives as its own type.

    It is made there without its ``__init__``, and with what of it can be pickled.

    Args:
        error: What arrives.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        args = arguments_of(self.error)
        args = args if _pickles(args) else (str(self.error),)
        state = {name: v for name, v in state_of(self.error).items() if _pickles(v)}
        return reborn, (type(self.error), args, state)


def sendable(error: BaseException) -> BaseException:
    """Return the error, or what arrives as it, or stands for it, where it cannot be sent as is."""
    for candidate in (error, Sent(error)):
        if _pickles(candidate):
            return candidate
    stand_in = StageError(f"{type(error).__module__}.{type(error).__qualname__}", str(error))
    stand_in.__dict__.update(
        {k: v for k, v in error.__dict__.items() if k in (*MARKS, "__notes__")}
    )
    return stand_in


def _pickles(value: Any) -> bool:
    try:
        cloudpickle.loads(cloudpickle.dumps(value))
    except Exception:  # whatever a user's __reduce__ or __init__ may raise
        return False
    return True


def restored(text: str) -> Exception:
    r"""Return what stands for an exception of which only Ray's text of its traceback arrived.

    >>> restored("Traceback ...:\n  File ...\nstarlette.exceptions.HTTPException: 409: taken")
    HTTPException(status_code=409, detail='taken')
    >>> str(restored("Traceback ...:\n  File ...\nmine.Odd: no luck"))
    'mine.Odd: no luck (the exception itself cannot be pickled)'
    """
    type_name, message = _last_raised(re.sub("\x1b\\[[0-9;]*m", "", text).strip())
    kind = _class_named(type_name)
    if kind is None:
        return StageError(type_name, message)
    if not issubclass(kind, HTTPException):
        return reborn(kind, (message,), {})
    http = re.fullmatch(r"(\d\d\d): (.*)", message, re.DOTALL)
    if http is None:
        return StageError(type_name, message)
    status, detail = int(http[1]), _literal(http[2])
    return reborn(
        kind, (status, detail), {"status_code": status, "detail": detail, "headers": None}
    )


_CHAIN = re.compile(
    r"\n\n+(?:During handling of the above exception, another exception occurred"
    r"|The above exception was the direct cause of the following exception):\n\n"
)


def _last_raised(text: str) -> tuple[str, str]:
    """The type and the message of the exception that a traceback's text ends with.

    It stands behind the frames, which are indented: its message may have lines that look like it.
    """
    told = re.match(r"Exception ([\w.<>]+) isn't serializable: ", text)  # Ray's own words
    lines = [line for line in _CHAIN.split(text)[-1].splitlines() if line.strip()]
    for n in range(1, len(lines)):
        raised = re.match(r"([A-Za-z_][\w.<>]*)(?:: |$)", lines[n])
        if raised and lines[n - 1].startswith("  ") and raised[1] != "ray.exceptions.RayTaskError":
            name, message = raised[1], "\n".join([lines[n][raised.end() :], *lines[n + 1 :]])
            if told is None or told[1].endswith(name):
                return (told[1] if told else name), message.strip()
    return (told[1], "") if told else ("Exception", text)


def _class_named(name: str) -> type[Exception] | None:
    """The exception class of this name, among the modules that this process has imported."""
    module, _, qualname = name.rpartition(".")
    found = getattr(sys.modules.get(module or "builtins"), qualname, None)
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    return HTTPException if name.endswith("HTTPException") else None


def _literal(text: str) -> Any:
    """The object or list that a detail's text shows, else the text."""
    try:
        return ast.literal_eval(text) if text[:1] in ("{", "[") else text
    except (ValueError, SyntaxError):
        return text
