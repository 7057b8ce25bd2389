"""The HTTP edge of a running pipeline: problem details, limits, Server-Timing and metrics."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import ray
import requests
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from support.edge import (
    JSON,
    SECRET,
    TIMEOUT_S,
    Edge,
    Sent,
    deployed_edge,
    held,
    logged,
    problem,
    works,
)
from support.waiting import poll, until

APPS = ("faults", "metered", "value")


METERED: list[dict[str, str]] = [{}] * 5 + [
    {"raise": s} for s in ("inline", "Fused", "Remote") for _ in range(2)
]
"""What is sent to the pipeline whose metrics are read: first, for Ray exports them in a while."""


@pytest.fixture(scope="module")
def edge(cluster: None, end_later: Any) -> Iterator[Edge]:
    """The pipelines that this file asks for, deployed at once."""
    edge = deployed_edge(*APPS)
    for sent in METERED:
        assert edge.post("metered", sent).status == (500 if sent else 200)
    yield edge
    for app in APPS:
        end_later(partial(serve.delete, app))


# A body's length


def chunks(total: int) -> Iterator[bytes]:
    piece = b"x" * min(total, 1 << 20)
    for _ in range(total // len(piece)):
        yield piece


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize(
    ("app", "length", "limit"), [("faults", 1001, 1000), ("value", 100 << 20, 64 << 20)]
)
def test_a_body_over_the_limit_is_a_413(
    edge: Edge, app: str, length: int, limit: int, chunked: bool
) -> None:
    """A body beyond ``max_body_bytes``, set or by default, is refused, however it is sent."""
    body = chunks(length) if chunked else b"x" * length
    answer = edge.send(app, Sent(headers={"content-type": "text/plain"}, body=body))
    assert str(limit) in problem(answer, 413)["detail"]
    works(edge, app)


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_a_body_as_long_as_the_limit_is_taken(edge: Edge, chunked: bool) -> None:
    """``max_body_bytes`` is the longest body that is accepted."""
    body = b'{"a": ""}'.ljust(1000)
    sent = Sent(headers=JSON, body=iter([body[:7], body[7:]]) if chunked else body)
    assert edge.send("faults", sent).json() == {"a": ""}


# Problem details


@pytest.mark.parametrize("stage", ["inline", "Fused", "Remote"])
def test_an_internal_error_is_told_to_the_log_alone(edge: Edge, stage: str) -> None:
    """A 500 names stage and request; the log of the stage's replica has the traceback.

    That of the pipeline's replica names the stage, and has what reached it.
    """
    answer = edge.post("faults", {"raise": stage})
    details = problem(answer, 500)
    assert details["stage"] == stage
    assert "detail" not in details
    for leaked in (SECRET, "ValueError", "Traceback", "misbehave"):
        assert leaked not in answer.body.decode() + str(answer.headers)
    request = details["request_id"]
    assert logged("faults_Faults", rf"request {request} failed in stage '{stage}'\nTraceback ")
    found = logged(
        "faults_Remote" if stage == "Remote" else "faults_Faults",
        rf"{request} (?:(?!INFO ).)*Traceback [^\n]*:\n"
        r"(?:(?!INFO ).)*in misbehave\n(?:(?!INFO ).)*ValueError: (\S*)",
    )
    assert found
    assert found[1] == SECRET
    works(edge, "faults")


def test_an_error_cannot_forge_headers(edge: Edge) -> None:
    """Line ends in an error's detail and headers stay where they are."""
    answer = edge.post("faults", {"then": "refuse"})
    assert problem(answer, 400)["detail"] == "xb\r\nSet-Cookie: a=b"
    assert "set-cookie" not in answer.headers
    assert answer.headers["x-good"] == "b??Set-Cookie: a=b"
    works(edge, "faults")


def test_a_timeout_is_a_504(edge: Edge) -> None:
    """A stage that outlives its ``timeout_s`` answers 504 and is named."""
    assert problem(edge.post("faults", {"then": "timeout"}), 504)["stage"] == "forever"


def test_a_full_stage_is_a_503_until_a_client_leaves(edge: Edge) -> None:
    """Back-pressure answers 503 with ``Retry-After``; who leaves makes room again."""
    body = {"then": "busy"}
    waiting = [until(lambda: held(edge, "faults", body)) for _ in range(2)]
    answer = edge.post("faults", body)
    details = problem(answer, 503)
    assert details["stage"] == "Busy"
    assert int(answer.headers["retry-after"]) >= 1
    works(edge, "faults")  # the stages before it are free
    for connection in waiting:
        connection.close()
    again = until(lambda: held(edge, "faults", body))
    assert again
    again.close()


def test_a_stage_that_dies_is_a_503_that_says_which(edge: Edge) -> None:
    """A replica that dies in a request answers it with 503, and the others answer the next."""
    details = problem(edge.post("faults", {"then": "mortal", "die": True}), 503)
    assert details["stage"] == "Mortal"
    assert "try again" in details["detail"]
    assert logged("faults_Faults", rf"{details['request_id']} failed.*ActorDiedError")
    body = {"then": "mortal"}
    assert edge.post("faults", body).json() == body


# Server-Timing and metrics


@pytest.mark.parametrize(
    ("sent", "stages"),
    [
        ({}, ["inline", "Fused", "Remote"]),
        ({"raise": "Fused"}, ["inline", "Fused"]),
        ({"raise": "Remote"}, ["inline", "Fused", "Remote"]),
    ],
)
def test_server_timing_names_each_kind_of_stage(edge: Edge, sent: Any, stages: list[str]) -> None:
    """A function, a fused and a remote stage that have run are timed, whatever came of them."""
    timing = edge.post("faults", sent).headers["server-timing"]
    timed = dict(re.findall(r"(\w+);dur=([0-9.]+)", timing))
    assert [name for name in timed if name in ("inline", "Fused", "Remote")] == stages
    assert all(0 <= float(ms) < TIMEOUT_S * 1000 for ms in timed.values())


def scraped() -> dict[tuple[str, str], float]:
    """What Ray's own Prometheus endpoint says of one pipeline, by sample and stage."""
    found = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for family in text_string_to_metric_families(requests.get(url, timeout=TIMEOUT_S).text):
            for name, labels, number, *_ in family.samples:
                if labels.get("pipeline") == "Metered" and "_bucket" not in name:
                    found[name.removeprefix("ray_raycompose_"), labels["stage"]] = number
    return found


def test_metrics_are_at_rays_prometheus_endpoint(edge: Edge) -> None:
    """Calls, errors and dropped mirrored calls are counted per stage, of every kind."""
    counts = {
        ("stage_latency_ms_count", "inline"): 11,
        ("stage_latency_ms_count", "Fused"): 9,
        ("stage_latency_ms_count", "Remote"): 7,
        ("stage_errors_total", "inline"): 2,
        ("stage_errors_total", "Fused"): 2,
        ("stage_errors_total", "Remote"): 2,
        ("shadow_dropped_total", "shadow"): 4,
    }
    poll(lambda: counts.items() <= scraped().items())  # Ray writes them down once in a while
    found = scraped()
    assert {key: found.get(key) for key in counts} == counts, found
    sums = [number for (name, _), number in found.items() if name == "stage_latency_ms_sum"]
    assert len(sums) == 3
    assert all(0 < ms < 11 * TIMEOUT_S * 1000 for ms in sums)
