"""Why a deployment failed: the user's own traceback, out of the text that Ray keeps of it."""

from raycompose.client.logs import Frames

_TRACEBACK = "Traceback (most recent call last):"


def users_traceback(message: str) -> str:
    """Return the traceback of the user's code in Ray's text of a failure, or the text's last line.

    >>> users_traceback("The deployment failed to start 3 times in a row. See logs.")
    'The deployment failed to start 3 times in a row. See logs.'
    """
    _, found, text = message.partition(f"Error: {_TRACEBACK}\n")
    if not found:
        _, found, text = message.rpartition(f"{_TRACEBACK}\n")
    if not found:
        return last_line(message)
    lines = list(filter(Frames().shows, text.splitlines()))
    if not any(line.startswith("  File ") for line in lines):  # none: a file that is missing, say
        return "\n".join(line for line in lines if line.strip()) or last_line(message)
    return "\n".join([_TRACEBACK, *lines]).rstrip()


def last_line(message: str) -> str:
    """Return what a text ends with: of a traceback, the exception."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "Ray gives no reason"
