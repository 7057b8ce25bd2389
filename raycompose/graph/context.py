"""What one request carries through the graph."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

from ray.serve.exceptions import RequestCancelledError

from raycompose import _serve
from raycompose.errors import failed_stage, mark
from raycompose.flow import background
from raycompose.flow.deadlines import note_interrupted
from raycompose.flow.request import sendable
from raycompose.flow.streams import Stream
from raycompose.graph import metrics
from raycompose.graph.engines import Engine


@dataclass(slots=True)
class Context:
    """One request's way through the graph. It holds data alone, so it travels with a stream.

    Args:
        pipeline: The name of the deployment that fronts the pipeline.
        request_id: Ray Serve's id of the request.
        multiplexed_model_id: Passed on to every stage; Ray Serve itself drops it at each hop.
        session_id: The same, for Ray's routers that keep a session on its replica.
        http_scope: The ASGI scope of the HTTP request.
        engine: What runs the graph.
        timings_s: Seconds spent in each stage, summed over its calls.
        undo: What cancels what was started beside the scope.
    """

    pipeline: str = "Pipeline"
    request_id: str = ""
    multiplexed_model_id: str = ""
    session_id: str = ""
    http_scope: Mapping[str, Any] | None = None
    engine: Engine = field(default_factory=Engine)
    timings_s: dict[str, float] = field(default_factory=dict)
    undo: list[Callable[[], Any]] = field(default_factory=list)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> "Future[Any]":
        """Run a coroutine beside the request; it is cancelled when the scope fails."""
        future = background.start(coroutine)
        self.on_failure(future.cancel)
        return future

    def on_failure(self, undo: Callable[[], Any]) -> None:
        """Have ``undo`` called when the scope fails, to cancel what nothing awaits."""
        self.undo.append(undo)

    def scope(self) -> "Context":
        """Return a context of the same request for a part of it.

        An attempt, a branch or an item may fail without its request, and a stream has many items:
        what was started beside one of them is abandoned with it.
        """
        return dataclasses.replace(self, undo=[])

    def abandon(self) -> None:
        """Cancel all that was started beside the scope."""
        while self.undo:
            self.undo.pop()()

    def given_to(self, result: Any) -> Any:
        """Return a result; a stream then has the scope, which ends with it.

        What was started beside a stream is abandoned when the stream fails or is closed before its
        end.
        """
        if not isinstance(result, Stream):
            return result
        return Stream(partial(_held, result, self), portable=result.portable)

    def detached(self) -> "Context":
        """Return a context of the same request for what runs apart from it."""
        return dataclasses.replace(self, timings_s={}, undo=[])

    def at(self, stage: str) -> "Call":
        """Time what runs inside, and name the stage in what it raises."""
        return Call(self, stage)

    def record(self, stage: str, took_s: float) -> None:
        """Add a call of a stage to the timings and the metrics."""
        self.timings_s[stage] = self.timings_s.get(stage, 0.0) + took_s
        metrics.stage_called(self.pipeline, stage, took_s)

    def end(self, stage: str, began: float, raised: BaseException | None = None) -> None:
        """Record a call of a stage that has ended, and name the stage in what it raised."""
        self.record(stage, time.perf_counter() - began)
        if raised is not None:
            note_interrupted(stage)
            if not isinstance(raised, asyncio.CancelledError | GeneratorExit):
                raise_named(raised, stage, self.request_id, began)

    def count_failure(self, error: BaseException) -> None:
        """Add an error that the request ends with to the metrics of its stage, if it names one."""
        if (stage := failed_stage(error)) is not None:
            metrics.count("stage_errors", self.pipeline, stage)

    def __reduce__(self) -> tuple[Any, ...]:
        ids = (self.pipeline, self.request_id, self.multiplexed_model_id, self.session_id)
        scope = self.http_scope and sendable(self.http_scope)
        return Context, (*ids, scope, self.engine)


async def _held(stream: Stream[Any], scope: Context) -> AsyncGenerator[Any, None]:
    try:
        async with aclosing(stream):
            async for item in stream:
                yield item
    except BaseException:
        scope.abandon()
        raise


class Call:
    """A call of a stage, as a context manager.

    Args:
        ctx: The request's.
        stage: The stage's name.
    """

    __slots__ = ("_began", "_ctx", "_stage")

    def __init__(self, ctx: Context, stage: str) -> None:
        self._ctx = ctx
        self._stage = stage

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ctx.end(self._stage, self._began, raised)


def raise_named(raised: BaseException, stage: str, request_id: str, since_s: float = 0.0) -> None:
    """Raise what stands for what a stage raised, unless that may go on as it is, named.

    The arguments are ``mark``'s.
    """
    if _is_cancelling(raised):
        # Its arguments tell anyio whose cancelling that was.
        raise asyncio.CancelledError(*getattr(raised.__context__, "args", ())) from raised
    error = mark(_reportable(raised), stage, request_id, since_s)
    if error is not raised:
        raise error from raised


def _is_cancelling(raised: BaseException | None) -> bool:
    """Whether it is what Ray's local testing mode makes of the cancelling of an await."""
    return isinstance(raised, RequestCancelledError) and not _serve.in_replica()


def _reportable(raised: BaseException) -> Exception:
    """The error itself, unless asyncio, or a generator on its way, would take it for a signal.

    A KeyboardInterrupt, say, would end the loop, and with it every other request.
    """
    if isinstance(raised, Exception) and not isinstance(raised, StopIteration | StopAsyncIteration):
        return raised
    return RuntimeError(f"the stage raised {raised!r}, which is not an error")
