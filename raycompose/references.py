"""References to results that may not exist yet."""

import asyncio
from collections.abc import Generator
from typing import Any, Generic, TypeVar

import ray
from ray import ObjectRef

from raycompose import _serve, portal
from raycompose.errors import RayComposeError, mark

T = TypeVar("T")


class Ref(Generic[T]):
    """A reference to the result of a stage that may still run.

    Annotate a stage's first parameter ``rc.Ref[T]`` and the stage starts before its upstream has
    finished: it does its own preparation, then awaits the reference.

    Args:
        source: A Ray ``ObjectRef``, or where stages share a process, a future of the result.
        stage: The stage that produces the result, named in the error when it fails.
    """

    def __init__(self, source: "ObjectRef[T] | asyncio.Future[T]", stage: str) -> None:
        self._source = source
        self._stage = stage

    @classmethod
    def to(cls, value: T, stage: str) -> "Ref[T]":
        """Return a reference to a value that is there already."""
        future = asyncio.get_running_loop().create_future()
        future.set_result(value)
        return cls(future, stage)

    async def shared(self) -> "Ref[T]":
        """Return a reference that other processes can use, waiting for the result if need be."""
        if isinstance(self._source, asyncio.Future):
            return Ref(ray.put(await self), self._stage)
        return self

    @property
    def item(self) -> Any:
        """What a stage that takes ``list[ObjectRef]`` finds in its list."""
        return self if isinstance(self._source, asyncio.Future) else self._source

    @property
    def object_ref(self) -> "ObjectRef[T]":
        """The Ray ``ObjectRef``.

        Raises:
            RayComposeError: The result is in this process (a fused or local stage made it).
        """
        if isinstance(self._source, asyncio.Future):
            raise RayComposeError(
                f"the result of stage {self._stage!r} is in this process and has no ObjectRef: "
                "await the reference instead"
            )
        return self._source

    def __await__(self) -> Generator[Any, None, T]:
        return self._value().__await__()

    async def _value(self) -> T:
        source: Any = self._source
        try:
            return await (asyncio.shield(source) if isinstance(source, asyncio.Future) else source)
        except Exception as error:
            raise self._explained(error) from error.__cause__

    def get(self, timeout_s: float | None = None) -> T:
        """Block until the result is there and return it; for ``def`` stages, which run in threads.

        Args:
            timeout_s: Seconds to wait at most; ``None``: as long as it takes.

        Raises:
            RayComposeError: On an event loop, which waiting would block: ``await`` it there.
            TimeoutError: The result was not there in time.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RayComposeError("Ref.get() would block the event loop: use 'await ref' instead")
        source = self._source
        if isinstance(source, asyncio.Future):
            waiting = asyncio.wait_for(self._value(), timeout_s)
            return portal.wait(waiting, source.get_loop())
        try:
            result: T = ray.get(source, timeout=timeout_s)
        except Exception as error:
            raise self._explained(error) from error.__cause__
        return result

    def _explained(self, error: Exception) -> BaseException:
        cause = _serve.unwrap(error)
        mark(cause, self._stage)
        return cause

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self.object_ref, "_stage": self._stage}

    def __repr__(self) -> str:
        return f"Ref(of the result of {self._stage!r})"
