"""Load: callers that each send their next request when they have the answer to the last."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import urlsplit

import httptools  # as uvloop, of uvicorn, and so of Ray Serve
import uvloop

from benchmarks.samples import Sample, Tally
from benchmarks.sites import MeasuringError, python

PAYLOAD: dict[str, Any] = {"user": 17, "text": "hello world", "scores": [0.25, 0.5, 0.25]}
"""What is sent where nothing else is said."""
_PATIENCE_S = 30.0
"""How long after the end an answer is waited for."""
_PAUSE_S = 0.01
"""Between a failure and the next request, lest refused connections become a busy loop."""


async def closed_loop(call: Callable[[], Awaitable[None]], callers: int, seconds: float) -> Sample:
    """Call from so many tasks at once, for so long; what raises has failed."""
    tally, end = Tally(), time.perf_counter() + seconds

    async def caller() -> None:
        while (began := time.perf_counter()) < end:
            try:
                await call()
            except Exception as error:  # that there was one is what is measured
                tally.failed(repr(error))
                await asyncio.sleep(_PAUSE_S)
            else:
                tally.succeeded(time.perf_counter() - began)

    tasks = {asyncio.ensure_future(caller()) for _ in range(callers)}
    _, unanswered = await asyncio.wait(tasks, timeout=seconds + _PATIENCE_S)
    for task in unanswered:
        task.cancel()
        tally.failed(f"no answer {_PATIENCE_S:g} s after the end")
    return tally.sample()


async def calls_per_s(client: Any, callers: int, seconds: float) -> Sample:
    """Calls a second of an application that returns what it is given."""
    handle = client.handle

    async def call() -> None:
        if await handle.remote(PAYLOAD) != PAYLOAD:
            raise ValueError("not the right answer")

    return await closed_loop(call, callers, seconds)


def over_http(
    url: str,
    clients: int,
    seconds: float,
    body: Any = PAYLOAD,
    answer: Any = None,
    accept: str = "*/*",
) -> Sample:
    """Requests a second over HTTP, sent by a process of their own.

    Args:
        url: Where to send them.
        clients: How many connections, each with one request at a time.
        seconds: How long.
        body: What is sent, as JSON.
        answer: The right answer as text, or what it is as JSON; ``None``: what was sent.
        accept: The ``Accept`` header.

    Raises:
        MeasuringError: The process failed.
    """
    command, env = python("-m", "benchmarks.load")
    asked = {"url": url, "clients": clients, "seconds": seconds, "body": body, "accept": accept}
    asked["answer"] = body if answer is None else answer
    ran = subprocess.run(command, env=env, input=json.dumps(asked), capture_output=True, text=True)
    if ran.returncode:
        raise MeasuringError(f"no load on {url}: {ran.stderr[-1000:]}")
    return Sample(**json.loads(ran.stdout))


class Connection(asyncio.Protocol):
    """A connection, with one request at a time.

    Written on the transport itself: the libraries take as much time as what is measured.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; return the answer's status and body."""
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._transport.write(request)
        status: int = await self._answer
        return status, b"".join(self._parts)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        """Keep a part of the answer's body."""
        self._parts.append(part)

    def on_message_complete(self) -> None:
        """Hand the answer over."""
        self._answer.set_result(self._parser.get_status_code())

    def connection_lost(self, error: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the server closed it"))

    def close(self) -> None:
        """Close it."""
        self._transport.close()

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return not self._transport.is_closing()


class Sender:
    """Sends one request again and again, each time on a connection that is free."""

    def __init__(self, url: str, body: Any, answer: Any, accept: str) -> None:
        target = urlsplit(url)
        self._address = target.hostname or "", target.port or 80
        sent = json.dumps(body).encode()
        self._request = (
            f"POST {target.path} HTTP/1.1\r\nHost: {target.netloc}\r\nAccept: {accept}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
        ).encode() + sent
        self._answer = answer
        self._right = {answer.encode()} if isinstance(answer, str) else set()
        self._free: list[Connection] = []

    async def __call__(self) -> None:
        """Send it, and judge the answer.

        Raises:
            ValueError: The answer is not right.
            OSError: There is none.
        """
        connection = self._free.pop() if self._free else await self._connect()
        status, body = await connection.ask(self._request)
        if connection.is_open:
            self._free.append(connection)
        if status != 200 or not (body in self._right or self._is_right(body)):
            raise ValueError(f"HTTP {status}: {body[:200]!r}")

    def _is_right(self, body: bytes) -> bool:
        """Decode an answer that is new: later ones are compared with it."""
        if isinstance(self._answer, str) or json.loads(body) != self._answer:
            return False
        self._right.add(body)
        return True

    def close(self) -> None:
        """Close the connections."""
        for connection in self._free:
            connection.close()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, *self._address)
        return connection


def main(clients: int, seconds: float, **sent: Any) -> None:
    """Make the load, and print what was found."""
    found = uvloop.run(closed_loop(Sender(**sent), clients, seconds))
    print(json.dumps(found.to_dict()))


if __name__ == "__main__":
    main(**json.load(sys.stdin))
