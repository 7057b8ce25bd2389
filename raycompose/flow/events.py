"""Items of a stream with the other fields of a server-sent event."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """An item of a stream that says what its server-sent event is called, or numbered.

    Where items are not sent as server-sent events, its ``data`` alone is.

    Args:
        data: The item: text as it is, anything else as JSON.
        event: The event's type, by which a browser's ``EventSource`` dispatches it.
        id: The event's id, which a browser sends as ``Last-Event-ID`` when it connects again.

    Raises:
        ValueError: ``event`` or ``id`` is not a text of one line.
    """

    data: Any
    event: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("event", self.event), ("id", self.id)):
            if value is not None and not (isinstance(value, str) and value.isprintable()):
                raise ValueError(f"rc.Event({name}={value!r}): must be a str of one line")
