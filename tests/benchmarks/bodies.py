"""Decoding request bodies, against ``json.loads``."""

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from starlette.requests import Request

from benchmarks.registry import registry
from benchmarks.results import Line, at_most
from benchmarks.rounds import Bench, Way
from benchmarks.samples import Sample
from raycompose.errors import HTTPError
from raycompose.http.decoding import Decoder

KB = 1000
_RECORD = {"id": 12345, "name": "a name", "score": 0.123456, "tags": ["a", "b"], "ok": True}
BODIES = {
    "a JSON text of 448 kB": json.dumps("a line of text, " * 28 * KB).encode(),
    "an array of objects, 448 kB": json.dumps([_RECORD] * (448 * KB // 93)).encode(),
    "1 MB of digits, too long for a Python int": b"1" * (1000 * KB),
}
DIGITS = json.dumps("1" * (1000 * KB)).encode()
"""What json.loads is given for the last: it refuses the number itself after 4,300 digits."""


async def decode_ms(way: str, body: str, times: int) -> Sample:
    """Milliseconds of decoding a body, the fastest of so many times."""
    content, took_s = BODIES[body], []
    decode = Decoder(None, 64_000 * KB)
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "headers": headers, "query_string": b""}

    async def receive() -> Any:
        return {"type": "http.request", "body": content, "more_body": False}

    for _ in range(times):
        began = time.perf_counter()
        if way == "json.loads":
            json.loads(content if not content.startswith(b"1") else DIGITS)
        else:
            try:
                await decode(Request(scope, receive))
            except HTTPError as error:
                if error.status != 400 or not content.startswith(b"1"):
                    raise
        took_s.append(time.perf_counter() - began)
    return Sample(1000 * min(took_s))


@registry.row("11", "decoding bodies, against json.loads")
def bodies(bench: Bench) -> Iterator[Line]:
    """A long text, an array of objects, and a number that is too long."""
    bench.sites.keep(("bodies", "no ray"))
    ask = partial(bench.sites.get("bodies", "no ray").ask, "decode_ms")
    times = max(3, int(bench.seconds * 10))
    for body in BODIES:
        ways: dict[str, Way] = {
            way: partial(ask, way, body=body, times=times) for way in ("ours", "json.loads")
        }
        found = bench.alternate(ways)
        yield Line("11", body, "ms", found["ours"], found["json.loads"], "json.loads", at_most(2))
