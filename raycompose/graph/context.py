"""What one request carries through the graph."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ray.serve.exceptions import RequestCancelledError

from raycompose import _serve
from raycompose.errors import mark
from raycompose.flow import concurrency
from raycompose.graph import metrics


@dataclass(slots=True)
class Context:
    """One request's way through the graph. It holds data alone, so it travels with a stream.

    Args:
        pipeline: The name of the deployment that fronts the pipeline.
        request_id: Ray Serve's id of the request.
        multiplexed_model_id: Passed on to every stage; Ray Serve itself drops it at each hop.
        http_scope: The ASGI scope of the HTTP request, reduced to what can be sent on.
        timings_s: Seconds spent in each stage, summed over its calls.
    """

    pipeline: str = "Pipeline"
    request_id: str = ""
    multiplexed_model_id: str = ""
    http_scope: Mapping[str, Any] | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    _undo: list[Callable[[], Any]] = field(default_factory=list)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> "Future[Any]":
        """Run a coroutine beside the request; it is cancelled when the request fails."""
        future = concurrency.start(coroutine)
        self.on_failure(future.cancel)
        return future

    def on_failure(self, undo: Callable[[], Any]) -> None:
        """Have ``undo`` called when the request fails, to cancel what nothing awaits."""
        self._undo.append(undo)

    def abandon(self) -> None:
        """Cancel all that was started beside the request."""
        while self._undo:
            self._undo.pop()()

    def detached(self) -> "Context":
        """Return a context of the same request for what runs apart from it."""
        return dataclasses.replace(self, timings_s={}, _undo=[])

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """Time what runs inside, and name the stage in what it raises."""
        started = time.perf_counter()
        failed = False
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as raised:
            if isinstance(raised, RequestCancelledError) and not _serve.in_replica():
                # What Ray's local testing mode makes of the cancelling of an await. Its arguments
                # tell anyio whose cancelling that was.
                raise asyncio.CancelledError(*getattr(raised.__context__, "args", ())) from raised
            failed = True
            error = _reportable(raised)
            mark(error, stage)
            if error is raised:
                raise
            raise error from raised
        finally:
            took_s = time.perf_counter() - started
            self.timings_s[stage] = self.timings_s.get(stage, 0.0) + took_s
            metrics.stage_called(self.pipeline, stage, took_s, failed=failed)

    def __reduce__(self) -> tuple[Any, ...]:
        sent = (self.pipeline, self.request_id, self.multiplexed_model_id, self.http_scope)
        return Context, sent


def _reportable(raised: BaseException) -> Exception:
    """The error itself, unless asyncio, or a generator on its way, would take it for a signal.

    A KeyboardInterrupt, say, would end the loop, and with it every other request.
    """
    if isinstance(raised, Exception) and not isinstance(raised, StopIteration | StopAsyncIteration):
        return raised
    return RuntimeError(f"the stage raised {raised!r}, which is not an error")
