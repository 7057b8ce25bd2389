"""``fast=True``: the same graph means the same under Ray Serve's settings for high throughput."""

import sys
from typing import Any

import pytest
from support.scripts import found_by, start

from raycompose.client import fast

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def found() -> Any:
    return found_by(start("fast.py"), within_s=280)


@pytest.mark.skipif(sys.platform != "linux", reason="Ray brings HAProxy for Linux alone")
def test_a_ray_that_is_started_has_the_settings(found: Any) -> None:
    """HAProxy and optimised replicas are on there; this process's environment is as it was."""
    assert found["settings"] == {fast.OPTIMIZED: True, fast.HAPROXY: True}
    assert found["notice"] == "The high-throughput settings are in force on this cluster."
    assert found["environment"]


@pytest.mark.parametrize("what", ["results", "answers", "items", "streams"])
def test_the_same_cases_hold(found: Any, what: str) -> None:
    """By handle and through HAProxy, unary and streaming."""
    assert found[what] == []


def test_blocking_calls_work_inside_a_loop(found: Any) -> None:
    """The calling process works as it always does; a malformed body is 400."""
    assert found["inside"]
    assert found["problem"] == 400


def test_a_cluster_without_the_settings_says_so(cluster: None) -> None:
    """On a running cluster a line says what is not in force, and how to have it."""
    notice = fast.notice()
    assert "without throughput-optimised replicas and gRPC between them and HAProxy" in notice
    assert f"{fast.OPTIMIZED}=1 {fast.HAPROXY}=1" in notice
