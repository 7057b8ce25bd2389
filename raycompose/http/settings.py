"""What ``.options(...)`` sets of the edge rather than of the deployment."""

from dataclasses import dataclass
from typing import Literal, get_args

from raycompose.graph.limits import is_count, is_duration

Form = Literal["sse", "ndjson", "raw"]


@dataclass(frozen=True)
class Settings:
    """The settings of a pipeline's edge.

    Args:
        pipeline: The front deployment's name.
        debug: Show an internal error's message and traceback to HTTP clients.
        max_body_bytes: The longest request body that is accepted.
        timeout_s: Seconds that a request may take; ``None``: as long as it takes.
        stream: The form of a stream over HTTP; ``None``: as the client accepts, and the items are.
    """

    pipeline: str = "Pipeline"
    debug: bool = False
    max_body_bytes: int = 64 * 1024 * 1024
    timeout_s: float | None = None
    stream: Form | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.debug, bool):
            raise ValueError(f"debug={self.debug!r} must be True or False")
        if not is_count(self.max_body_bytes):
            raise ValueError(
                f"max_body_bytes={self.max_body_bytes!r} must be a whole number, 1 or more"
            )
        if self.timeout_s is not None and not is_duration(self.timeout_s):
            raise ValueError(f"timeout_s={self.timeout_s!r} must be a number of seconds above 0")
        if self.stream is not None and self.stream not in get_args(Form):
            accepted = ", ".join(map(repr, get_args(Form)))
            raise ValueError(f"stream={self.stream!r} must be one of {accepted}, or None")
