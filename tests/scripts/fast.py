"""Run by test_fast.py: the conformance cases on a Ray that rc.run(fast=True) has started."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import requests
from conformance import test_conformance as conformance
from conformance.cases import STREAMING, UNARY, app
from support.cluster import free_port, start_less

import raycompose as rc
from raycompose import _serve
from raycompose.client import fast
from raycompose.client.session import session


def failures(check: Callable[..., None], client: rc.Client, cases: list[Any]) -> list[str]:
    """The names of the cases that do not hold."""
    failed = []
    for case in cases:
        try:
            check(client, case)
        except BaseException as error:  # what pytest.fail raises, too
            failed.append(f"{case.name}: {error!r}"[:300])
    return failed


def main() -> dict[str, Any]:
    start_less()
    settings = (fast.OPTIMIZED, fast.HAPROXY)
    before = [os.environ.get(name) for name in settings]
    session.open(16, fast=True, include_dashboard=False)  # as rc.run does, with CPUs to spare
    session.start_serve(http_options={"port": free_port()})
    found: dict[str, Any] = {"environment": [os.environ.get(name) for name in settings] == before}
    with (
        rc.run(app(UNARY), name="unary", route_prefix="/unary", fast=True) as unary,
        rc.run(app(STREAMING), name="streaming", route_prefix="/streaming", fast=True) as streaming,
    ):
        found["settings"] = _serve.settings_in_force(settings)
        found["notice"] = fast.notice()
        found["results"] = failures(conformance.test_gives_the_result, unary, UNARY)
        found["answers"] = failures(conformance.test_answers_over_http, unary, UNARY)
        found["items"] = failures(conformance.test_gives_the_items, streaming, STREAMING)
        found["streams"] = failures(conformance.test_streams_over_http, streaming, STREAMING)
        found["problem"] = requests.post(unary.url or "", data=b"{", timeout=30).json()["status"]

        async def inside() -> Any:  # as in a notebook's cell
            return unary.call({"case": UNARY[0].name, "input": UNARY[0].input})

        found["inside"] = asyncio.run(inside()) == UNARY[0].result
    return found


if __name__ == "__main__":
    json.dump(main(), sys.stdout)
    print()
