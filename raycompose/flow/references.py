"""References to results that may not exist yet."""

import asyncio
import concurrent.futures
import uuid
import weakref
from collections.abc import Generator
from typing import Any, Generic, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError

from raycompose import _serve
from raycompose.errors import RayComposeError, failed_stage, mark
from raycompose.flow.background import refuse_on_loop, settled, shared_result
from raycompose.flow.deadlines import note_interrupted
from raycompose.flow.failures import users_error
from raycompose.flow.promises import promise

T = TypeVar("T")


class Ref(Generic[T]):
    """A reference to the result of a stage that may still run.

    Annotate a stage's first parameter ``rc.Ref[T]`` and the stage starts before its upstream has
    finished: it does its own preparation, then awaits the reference. It may be awaited as often
    as you like, and passed on.

    Args:
        source: A Ray ``ObjectRef``, or where stages share a process, a future of the result.
        stage: The stage that produces the result, named in the error when it fails.
        upstream: The reference that this stage was given, whose failure becomes its own.
        since_s: When the stage was called, by ``time.perf_counter``.
    """

    def __init__(
        self,
        source: "ObjectRef[T] | concurrent.futures.Future[T]",
        stage: str | None = None,
        upstream: "Ref[Any] | None" = None,
        since_s: float = 0.0,
    ) -> None:
        self._source = source
        self._stage = stage
        self._upstream = upstream
        self._since_s = since_s

    @classmethod
    def to(cls, value: T) -> "Ref[T]":
        """Return a reference to a value that is there already."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        future.set_result(value)
        return cls(future)

    async def sendable(self) -> "Ref[T]":
        """Return a reference that other processes can use, waiting for the result if need be."""
        if isinstance(self._source, ObjectRef) or not ray.is_initialized():
            return self
        if self._source.done() and not isinstance(value := await self, ObjectRef):
            return Ref(ray.put(value), self._stage)
        return Ref(promise(self._source), self._stage, self._upstream)

    async def done(self) -> None:
        """Wait until the stage behind the reference has ended, however it did."""
        try:
            if isinstance(self._source, ObjectRef):
                await _serve.ready(self._source)
            else:
                await settled(self._source)
        except asyncio.CancelledError:
            self._note_interrupted()
            raise

    async def failed(self) -> BaseException | None:
        """Return the error of the stage behind the reference, if it has failed already."""
        if isinstance(self._source, ObjectRef):
            ready, _ = await asyncio.to_thread(ray.wait, [self._source], timeout=0)
            if not ready:
                return None
        elif not self._source.done():
            return None
        try:
            await self
        except Exception as error:
            return error
        return None

    def is_source_of(self, error: BaseException) -> bool:
        """Tell whether ``error`` names the stage behind the reference, or one that it was given."""
        stage = failed_stage(error)
        if stage is None:
            return False
        if stage == self._stage or (self._upstream and self._upstream.is_source_of(error)):
            return True
        source = self._source  # of several stages it is the one further in that has failed
        if isinstance(source, ObjectRef) or not source.done() or source.cancelled():
            return False
        own = source.exception()
        return own is not None and failed_stage(own) == stage

    @property
    def item(self) -> Any:
        """What a stage that takes ``list[ObjectRef]`` finds in its list."""
        return self._source if isinstance(self._source, ObjectRef) else self

    @property
    def object_ref(self) -> "ObjectRef[T]":
        """The Ray ``ObjectRef``.

        Raises:
            RayComposeError: The result is in this process (a fused or local stage makes it).
        """
        if isinstance(self._source, ObjectRef):
            return self._source
        raise RayComposeError(
            f"{self!r} is in this process and has no ObjectRef: 'await' the reference instead"
        )

    def __await__(self) -> Generator[Any, None, T]:
        return self._value().__await__()

    async def _value(self) -> T:
        source = self._source
        try:
            if isinstance(source, ObjectRef):
                value: T = await source
                return value
            return await shared_result(source)
        except asyncio.CancelledError:
            self._note_interrupted()
            raise
        except Exception as error:
            further = await self._upstream.failed() if self._upstream else None
            raise further or self._explained(error) from error.__cause__

    def get(self, timeout_s: float | None = None) -> T:
        """Block until the result is there and return it; for ``def`` stages, which run in threads.

        In plain Ray: ``ray.get(ref, timeout=timeout_s)``.

        Args:
            timeout_s: Seconds to wait at most; ``None``: as long as it takes.

        Raises:
            RayComposeError: On an event loop, which waiting would block: ``await`` it there.
            TimeoutError: The result was not there in time.
        """
        refuse_on_loop("Ref.get()", "'await ref'")
        source = self._source
        try:
            if isinstance(source, ObjectRef):
                value: T = ray.get(source, timeout=timeout_s)
                return value
            return source.result(timeout_s)
        except GetTimeoutError as error:
            raise self._late(timeout_s) from error
        except Exception as error:
            # The stage's own TimeoutError is no other type than that of the wait.
            if isinstance(error, concurrent.futures.TimeoutError) and not self._is_done:
                raise self._late(timeout_s) from error
            raise self._explained(error) from error.__cause__

    def _note_interrupted(self) -> None:
        if self._stage is not None:
            note_interrupted(self._stage)

    @property
    def _is_done(self) -> bool:
        return isinstance(self._source, ObjectRef) or self._source.done()

    def _late(self, timeout_s: float | None) -> TimeoutError:
        return TimeoutError(f"{self!r} was not there within timeout_s={timeout_s}")

    def _explained(self, error: Exception) -> BaseException:
        cause = users_error(error)
        return cause if self._stage is None else mark(cause, self._stage, since_s=self._since_s)

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._source, ObjectRef):
            return Ref, (self._source, self._stage, self._upstream)
        # Ray's local testing mode pickles arguments, though they stay in this process.
        key = uuid.uuid4().hex
        _here[key] = self
        return _found_here, (key,)

    def __repr__(self) -> str:
        return f"Ref(the result of {self._stage!r})" if self._stage else "Ref(a result)"


async def awaited(value: Any) -> Any:
    """Return the value behind a reference; any other value as it is."""
    return await value if isinstance(value, Ref) else value


_here: "weakref.WeakValueDictionary[str, Ref[Any]]" = weakref.WeakValueDictionary()


def _found_here(key: str) -> Ref[Any]:
    try:
        return _here[key]
    except KeyError:
        raise RayComposeError(
            "a reference to a result of another process arrived: it is held by a fused or local "
            "stage there and has no ObjectRef. A Ray task takes its result as a stage, "
            "app.then(task), on every engine"
        ) from None
