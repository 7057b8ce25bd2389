"""What a failed call behind a handle or an ``ObjectRef`` tells its caller."""

from ray.exceptions import ObjectLostError, TaskCancelledError

from raycompose import _serve
from raycompose.errors import add_note, restored

_ADVICE: dict[type[Exception], str] = {
    ObjectLostError: "the process that held the result is gone: run the stage again (retry=...)",
    TaskCancelledError: "the call behind this reference was cancelled, so it has no result",
}


def users_error(error: BaseException) -> BaseException:
    """Return the exception that the user's code raised, out of Ray's wrapping.

    Where Ray could not send it and only its text arrived, what stands for it. An error of Ray's
    own whose message leaves open what to do gets a note that says so.
    """
    cause = _serve.unwrap(error)
    if (text := _serve.text_of_unsendable(cause)) is not None:
        return restored(text)
    for kind, note in _ADVICE.items():
        if isinstance(cause, kind) and note not in getattr(cause, "__notes__", ()):
            add_note(cause, note)
    return cause
