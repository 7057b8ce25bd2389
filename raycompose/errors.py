"""Exceptions, and how they carry the name of the stage that failed.

RayComposeError
├── CompositionError    the graph cannot work; raised by the line that composes it
├── StageTimeoutError   a stage outlived its ``timeout_s`` (also a ``TimeoutError``)
│   └── RequestTimeoutError   a request outlived its deadline; names the stage that was running
├── ApplicationUnavailableError   another application that a stage calls does not run
├── NoMatchError        ``rc.switch`` found no branch for a value
├── LoopError           ``rc.loop`` ran as often as it may, and its predicate never held
├── StageError          stands for a stage's own exception that cannot be sent between processes
│   └── LostAnswerError       and of which not even the text arrived
└── HTTPError           raised by users, in any stage, to answer with an HTTP status
"""

import asyncio
import time
import uuid
from collections.abc import Mapping
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from starlette.exceptions import HTTPException

E = TypeVar("E", bound=BaseException)

_STAGE = "_raycompose_stage"
_REQUEST = "_raycompose_request"
_SEEN = "_raycompose_seen"
_ITEM = "_raycompose_item"
MARKS = (_STAGE, _REQUEST, _SEEN, _ITEM)
_PROCESS = uuid.uuid4().hex


class RayComposeError(Exception):
    """Base of every exception that raycompose itself raises."""


class ApplicationUnavailableError(RayComposeError):
    """An application that a stage calls does not run. HTTP 503.

    Args:
        app: The application's name.
        deployment: The deployment that was asked for; ``None``: its ingress.
    """

    def __init__(self, app: str, deployment: str | None = None) -> None:
        super().__init__(app, deployment)
        self.app = app
        self.deployment = deployment

    def __str__(self) -> str:
        part = f", or has no deployment {self.deployment!r}" if self.deployment else ""
        return f"the application {self.app!r} is not running{part}: deploy it"


UNAVAILABLE: tuple[type[Exception], ...] = (
    ApplicationUnavailableError,
    DeploymentUnavailableError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    ReplicaUnavailableError,
    WorkerCrashedError,
)
"""Faults of the place that ran a stage rather than of the stage: answered with 503."""

TRANSIENT: tuple[type[Exception], ...] = (BackPressureError, *UNAVAILABLE)
"""Faults that are safe to try again, elsewhere or later."""


class Hinting:
    """Its ``AttributeError`` for what users try in vain says what to do instead."""

    _INSTEAD: ClassVar[Mapping[str, str]] = {}

    if not TYPE_CHECKING:  # it gives no attribute, whatever a type checker makes of it

        def __getattr__(self, name: str) -> Any:
            if hint := self._INSTEAD.get(name):
                message = f"{type(self).__name__!r} object has no attribute {name!r}: {hint}"
                raise AttributeError(message, name=name, obj=self)
            return object.__getattribute__(self, name)  # raises again, a property's own error too


class CompositionError(RayComposeError):
    """The graph cannot work as written. Raised where it is composed, never at request time."""


class StageTimeoutError(RayComposeError, TimeoutError):
    """A stage ran past its ``timeout_s`` and was cancelled. HTTP 504.

    Args:
        stage: The name of the stage, as ``rc.failed_stage`` returns it.
        timeout_s: The limit that passed, in seconds.
    """

    def __init__(self, stage: str, timeout_s: float) -> None:
        super().__init__(stage, timeout_s)
        self.stage = stage
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"stage {self.stage!r} did not finish within timeout_s={self.timeout_s:g}"


class RequestTimeoutError(StageTimeoutError):
    """A request ran out of time, and what was running for it was cancelled. HTTP 504.

    Args:
        stage: The name of the stage that was running; ``None`` when none was.
        timeout_s: The request's limit, in seconds.
    """

    stage: str | None  # type: ignore[assignment]  # as a StageTimeoutError whenever there is one

    def __init__(self, stage: str | None, timeout_s: float) -> None:
        super().__init__(stage, timeout_s)  # type: ignore[arg-type]  # as above

    def __str__(self) -> str:
        where = f": stage {self.stage!r} was running" if self.stage is not None else ""
        return f"the request did not finish within its {self.timeout_s:g} s{where}"


class NoMatchError(RayComposeError):
    """``rc.switch`` got a key that no branch has, and there is no ``default``. HTTP 422.

    Args:
        node: The name of the switch.
        key: What the switch looked for, as text.
        keys: The keys that its branches have, as text.
    """

    def __init__(self, node: str, key: str, keys: tuple[str, ...]) -> None:
        super().__init__(node, key, keys)
        self.node = node
        self.key = key
        self.keys = keys

    def __str__(self) -> str:
        return f"{self.node!r} has no branch for {self.key}; it has {', '.join(self.keys)}"


class LoopError(RayComposeError):
    """``rc.loop`` ran its body ``max_iterations`` times, and the predicate never held. HTTP 500.

    Args:
        loop: The name of the loop.
        max_iterations: How often the body ran.
    """

    def __init__(self, loop: str, max_iterations: int) -> None:
        super().__init__(loop, max_iterations)
        self.loop = loop
        self.max_iterations = max_iterations

    def __str__(self) -> str:
        return f"{self.loop!r} did not end within max_iterations={self.max_iterations}"


class StageError(RayComposeError):
    """Stands for an exception of a stage that cannot be sent between processes.

    Its type's name and its message survive. An exception can be sent when its ``__init__`` passes
    all its arguments to ``super().__init__``, and when what it holds can be pickled.

    Args:
        type_name: The exception's type.
        message: What it said.
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name
        self.message = message

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message} (the exception itself cannot be pickled)"


class LostAnswerError(StageError):
    """Stands for what a stage answered by gRPC and Ray Serve could not pickle: an exception.

    Args:
        said: What gRPC said of it.
    """

    def __init__(self, said: str) -> None:
        super().__init__("Exception", f"{said}; the log of the stage's replica has its traceback")

    def __reduce__(self) -> tuple[Any, ...]:
        return reborn, (type(self), self.args, self.__dict__)


class HTTPError(RayComposeError, HTTPException):
    """Raise it in any stage, in any replica, to answer the request with that HTTP status.

    Also a Starlette ``HTTPException``, so a FastAPI ingress with an embedded pipeline answers it.

    Args:
        status: The HTTP status code, 400 to 599.
        detail: What the client is told. Anything that JSON can hold.
        headers: Response headers to add, for example ``{"Retry-After": "5"}``.
    """

    def __init__(
        self, status: int, detail: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        if not isinstance(status, int) or not 400 <= status <= 599:
            raise ValueError(
                f"HTTPError(status, detail) needs a status from 400 to 599, got {status!r}"
            )
        Exception.__init__(self, status, detail, headers)  # what pickling keeps
        self.status = self.status_code = status
        self.detail = detail
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        # Whatever arguments the __init__ of a subclass takes.
        return reborn, (type(self), self.args, self.__dict__)

    def __repr__(self) -> str:
        return f"HTTPError({self.status!r}, {self.detail!r})"

    def __str__(self) -> str:
        return f"HTTP {self.status}: {self.detail}" if self.detail else f"HTTP {self.status}"


def reborn(kind: type[E], args: tuple[Any, ...], state: Mapping[str, Any]) -> E:
    """Return an exception with these arguments and attributes, without running its ``__init__``.

    Nor its ``__new__`` and ``__setattr__``: those of Python's own exception that it derives from.
    """
    python: Any = _pythons(kind)
    error: E = python.__new__(kind, *args)
    python.__init__(error, *args)
    slots = _slots(kind)
    for name, value in state.items():
        if name in slots:
            slots[name].__set__(error, value)
        else:
            error.__dict__[name] = value
    return error


def arguments_of(error: BaseException) -> tuple[Any, ...]:
    """Return what Python's own part of an exception is made of: ``OSError`` has more than args."""
    arguments: tuple[Any, ...] = _pythons(type(error)).__reduce__(error)[1]
    return arguments


def state_of(error: BaseException) -> dict[str, Any]:
    """Return an exception's attributes, those in ``__slots__``, too."""
    slots = _slots(type(error)).items()
    held = {name: slot.__get__(error) for name, slot in slots if hasattr(error, slot.__name__)}
    return {**held, **error.__dict__}


def _pythons(kind: type[BaseException]) -> Any:
    while kind.__module__ != "builtins":
        kind = kind.__base__  # type: ignore[assignment]  # up to Python's own there always is one
    return kind


def _slots(kind: type[BaseException]) -> dict[str, MemberDescriptorType]:
    return {
        name: slot
        for base in kind.__mro__
        if "__slots__" in vars(base)  # Python's own have such attributes, but no slots
        for name, slot in vars(base).items()
        if isinstance(slot, MemberDescriptorType)
    }


def failed_stage(error: BaseException) -> str | None:
    """Return the name of the stage that raised ``error``, or ``None`` if no stage did.

    Works at every caller: in the pipeline, behind a ``DeploymentHandle``, and across processes,
    because the name travels in the exception's ``__dict__``, which pickling keeps.

    Args:
        error: An exception that came out of a pipeline.
    """
    stage = getattr(error, _STAGE, None)
    return stage if isinstance(stage, str) else None


def mark(error: E, stage: str, request_id: str = "", since_s: float = 0.0) -> E:
    """Name the stage that raised an error, unless a stage further in already has.

    One object may be raised again, in another stage or another request.

    Args:
        error: What a stage raised.
        stage: Its name.
        request_id: The request in which it did, if it has an id.
        since_s: When the stage was called, by ``time.perf_counter``. What was named, or handed on,
            before that in this process was not raised further in.

    Returns:
        The error; a copy of one that names the stage that raised it before.
    """
    state = error.__dict__  # setattr fails on a frozen dataclass
    if _STAGE in state:
        process, seen_s = state.get(_SEEN, ("", 0.0))
        raised_again = process == _PROCESS and seen_s < since_s
        if raised_again or (request_id and state.get(_REQUEST, request_id) != request_id):
            error, state = _unmarked(error)
    state[_SEEN] = (_PROCESS, time.perf_counter())
    if request_id:
        state[_REQUEST] = request_id
    if _STAGE not in state:
        state[_STAGE] = stage
        add_note(error, f"raised in stage {stage!r}")
    return error


def mark_item(error: BaseException, index: int, node: str) -> None:
    """Say which item of a list it is that failed.

    Args:
        error: What it failed with.
        index: The item's, from 0; of lists in lists the outermost's is told.
        node: The name of the node that went through the list.
    """
    error.__dict__[_ITEM] = index
    add_note(error, f"at index {index} of the input of {node!r}")


def failed_item(error: BaseException) -> int | None:
    """Return the index of the item of a list that failed, or ``None`` where there was no list."""
    index = getattr(error, _ITEM, None)
    return index if isinstance(index, int) else None


def _unmarked(error: E) -> tuple[E, dict[str, Any]]:
    """Return a copy of an error that names no stage, and the copy's state."""
    kept = {k: v for k, v in state_of(error).items() if k not in MARKS and k != "__notes__"}
    again = reborn(type(error), arguments_of(error), kept).with_traceback(error.__traceback__)
    for name in ("__cause__", "__suppress_context__"):
        object.__setattr__(again, name, getattr(error, name))
    return again, again.__dict__


def add_note(error: BaseException, note: str) -> None:
    """``BaseException.add_note`` (PEP 678), which is new in Python 3.11."""
    notes = [*getattr(error, "__notes__", ()), note]
    error.__dict__["__notes__"] = notes


def refuse_signal(raised: BaseException, who: str = "the stage") -> None:
    """Raise an error in the place of a signal of Python that users' code raises by itself.

    Other exceptions are left alone. A ``SystemExit`` or a ``KeyboardInterrupt`` would end the
    event loop, and with it every other request; the rest would be taken for a cancelling.

    Args:
        raised: What came out of users' code.
        who: Which code that was.
    """
    if isinstance(raised, Exception):
        return
    if isinstance(raised, SystemExit):
        raise RuntimeError(f"{who} called sys.exit({raised.code!r})") from raised
    if not isinstance(raised, GeneratorExit | asyncio.CancelledError):
        raise RuntimeError(f"{who} raised {raised!r}, which is not an error") from raised
    try:
        task: Any = asyncio.current_task()
    except RuntimeError:  # the loop has ended, and what it ran is closed
        return
    cancelled = not hasattr(task, "cancelling") or task.cancelling()  # Python 3.10 cannot tell
    if isinstance(raised, GeneratorExit) or not cancelled:
        raise RuntimeError(f"{who} raised {raised!r}, although nothing cancelled it") from raised


def is_client_error(error: BaseException) -> bool:
    """Tell whether the sender of the request is at fault (4xx), so that trying again is no help."""
    if isinstance(error, HTTPException):
        return error.status_code < 500
    return isinstance(error, NoMatchError)
