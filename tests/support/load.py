"""A steady load from several clients at once, what becomes of each request, and stages to kill."""

import asyncio
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import raycompose as rc
from support.waiting import until

LIMIT_S = 30.0
"""A request that has no answer by then is lost."""

Asked = dict[str, Any]
Send = Callable[[Asked], tuple[str, Any]]
"""Sends one request and tells its fate, with the value or what is known of the error."""


class Square:
    """Squares a number, notes on which replica, and ends its process when asked to, once."""

    def __init__(self, notes: str, seconds: float = 0.2, version: int = 1) -> None:
        self.notes = Path(notes)
        self.seconds = seconds
        self.version = version

    async def __call__(self, asked: Asked) -> Asked:
        with (self.notes / str(os.getpid())).open("a") as begun:
            begun.write(f"{asked['n']}\n")
        if asked.get("poison"):
            try:
                with (self.notes / f"poison-{asked['n']}").open("x") as poisoned:
                    poisoned.write(str(os.getpid()))
            except FileExistsError:
                pass  # it has had its effect
            else:
                os._exit(1)
        await asyncio.sleep(self.seconds)
        square = asked["n"] ** 2
        value = {**asked, "square": square, "pid": os.getpid(), "version": self.version}
        return {**value, "data": bytes(asked.get("size", 0))}


def begun(notes: Path) -> dict[int, set[int]]:
    """The requests that each replica has begun, by process id."""
    files = (path for path in notes.iterdir() if path.name.isdigit())
    return {int(path.name): {int(n) for n in path.read_text().split()} for path in files}


class Taker:
    """Gives what it is given a reference to."""

    async def __call__(self, ref: rc.Ref[Asked]) -> Asked:
        return await ref


def fronted(value: Asked) -> Asked:
    """An inline stage: adds which replica runs the pipeline, and measures the data."""
    return {**value, "front": os.getpid(), "data": len(value["data"])}


@dataclass
class Request:
    """One request of a load.

    Args:
        asked: What was sent.
        fate: "right", for an answer to this very input; "honest", for an error that says what
            happened; "bare", for any other error that was answered; else "lost".
        answer: The value, or what is known of the error.
        took_s: Until the answer.
    """

    asked: Asked
    fate: str = "lost"
    answer: Any = "no answer"
    took_s: float = LIMIT_S


def is_right(asked: Asked, value: Any) -> bool:
    """Whether a value is the answer to this very input."""
    n, size = asked["n"], asked.get("size", 0)
    return (value["n"], value["square"], value["data"]) == (n, n**2, size)


def over_http(url: str | None) -> Send:
    """Send over a connection of its own, which stays open; an error says what it is by RFC 9457."""
    where = urlsplit(str(url))
    connection = HTTPConnection(str(where.hostname), where.port, timeout=LIMIT_S)
    headers = {"content-type": "application/json"}

    def send(asked: Asked) -> tuple[str, Any]:
        try:
            connection.request("POST", where.path or "/", json.dumps(asked), headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, HTTPException) as error:
            connection.close()
            return "lost", repr(error)
        if response.status == 200:
            value = json.loads(body)
            return "right" if is_right(asked, value) else "lost", value
        if response.headers.get_content_type() == "application/problem+json":
            after = {"retry_after": response.getheader("retry-after")}
            return "honest", {**json.loads(body), **after}
        return "bare", {"status": response.status, "text": body.decode(errors="replace")[:500]}

    return send


def by_handle(client: rc.Client) -> Send:
    """Send by ``DeploymentHandle``; an error is an exception that names the stage."""

    def send(asked: Asked) -> tuple[str, Any]:
        try:
            value = client.call(asked, timeout_s=LIMIT_S)
        except TimeoutError as error:
            return "lost", repr(error)
        except Exception as error:
            stage = rc.failed_stage(error)
            return "honest" if stage else "bare", {"error": type(error).__name__, "stage": stage}
        return "right" if is_right(asked, value) else "lost", value

    return send


class Load:
    """Clients that send at a steady pace, each one request at a time, and what came of it.

    Args:
        ask: What to send as request number n, besides n itself.
        pace_s: The time between two requests of one client, unless the answer takes longer.
    """

    _numbers = itertools.count(1)

    def __init__(self, ask: Callable[[int], Asked], pace_s: float = 0.0) -> None:
        self.ask = ask
        self.pace_s = pace_s
        self.requests: list[Request] = []
        self.took_s = 0.0
        self._over = threading.Event()

    @contextmanager
    def from_clients(self, *sends: Send) -> Iterator["Load"]:
        """Keep the load up for as long as the block runs."""
        started = time.monotonic()
        clients = [threading.Thread(target=self._keep, args=(s,), daemon=True) for s in sends]
        for client in clients:
            client.start()
        try:
            yield self
        finally:
            self.took_s = time.monotonic() - started
            self._over.set()
            for client in clients:
                client.join(2 * LIMIT_S)

    def _keep(self, send: Send) -> None:
        while not self._over.is_set():
            request = self.send(send)
            self._over.wait(self.pace_s - request.took_s)

    def send(self, send: Send, **more: Any) -> Request:
        """Send one request and count it."""
        n = next(self._numbers)
        request = Request({"n": n, **self.ask(n), **more})
        self.requests.append(request)
        started = time.monotonic()
        request.fate, request.answer = send(request.asked)
        request.took_s = time.monotonic() - started
        return request

    def of(self, fate: str, **asked: Any) -> list[Request]:
        """The requests of one fate, of all those asked so."""
        return [
            r for r in list(self.requests) if r.fate == fate and asked.items() <= r.asked.items()
        ]

    def counts(self, **asked: Any) -> dict[str, int]:
        """How many had which fate, of all those asked so."""
        fates = {fate: len(self.of(fate, **asked)) for fate in ("right", "honest", "bare", "lost")}
        return {"sent": sum(fates.values()), **fates}

    def now(self, key: str, quiet_s: float = 0.5) -> set[Any]:
        """The values of a key in the right answers to requests sent from now on for a while."""
        before = len(self.requests)
        time.sleep(quiet_s)
        return {r.answer[key] for r in self.requests[before:] if r.fate == "right"}

    def until_two(self, key: str, but: set[Any]) -> set[Any]:
        """Wait until the answers have two values of a key, but for those given, and return them."""
        found: set[Any] = until(lambda: len(now := self.now(key) - but) == 2 and now)
        return found


def clients(client: rc.Client) -> list[Send]:
    """Six clients over HTTP and two by handle."""
    return [*(over_http(client.url) for _ in range(6)), by_handle(client), by_handle(client)]


def median_s(requests: list[Request]) -> float:
    """The median of the times until the answer."""
    return median(request.took_s for request in requests)
