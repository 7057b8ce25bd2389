"""Stages pinned to different nodes, and what becomes of results whose node is gone.

The nodes are made by a script with a cluster of its own, which runs once for this file.
"""

from typing import Any

import pytest
from support.scripts import found_by, start

pytestmark = pytest.mark.cluster
SIZE = 2_000_000


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What came out of the script, by case."""
    result: dict[str, Any] = found_by(start("nodes_of_a_cluster.py"))
    return result


WAYS = ("by value", "by reference", "in a list", "task", "task by reference", "by hand")


@pytest.mark.parametrize("way", WAYS)
def test_a_value_goes_from_one_of_two_nodes_to_the_other(found: dict[str, Any], way: str) -> None:
    """By value and by reference, of deployments and tasks, a result is taken on another node."""
    assert found["two nodes"][way] == ["left", "head", SIZE]


@pytest.mark.parametrize("way", WAYS)
def test_a_value_goes_between_two_of_three_nodes(found: dict[str, Any], way: str) -> None:
    """So does one of a node that joined the cluster later."""
    assert found["three nodes"][way] == ["right", "head", SIZE]


@pytest.mark.parametrize("way", ["value chain", "reference chain"])
def test_a_value_goes_through_all_nodes(found: dict[str, Any], way: str) -> None:
    """Three stages in a row run where each is pinned to, on two nodes and on three."""
    assert found["two nodes"][way] == ["left", "head", "left", SIZE]
    assert found["three nodes"][way] == ["right", "head", "left", SIZE]


@pytest.mark.parametrize(("nodes", "first"), [("two nodes", "left"), ("three nodes", "right")])
def test_a_stream_goes_from_one_node_to_another(
    found: dict[str, Any], nodes: str, first: str
) -> None:
    """A stage that takes a stream gets its items from a replica on another node."""
    assert found[nodes]["stream"] == [[first, "head", SIZE]] * 2


@pytest.mark.parametrize("what", ["of a call", "of a task", "with result()", "of a stage"])
def test_a_result_whose_node_is_gone_is_a_clear_error(found: dict[str, Any], what: str) -> None:
    """Taking it raises ObjectLostError, soon, and says to run the stage again."""
    error = found["lost"][what]
    assert "ObjectLostError" in error["types"]
    assert "run the stage again" in error["text"]
    assert error["in time"]


def test_a_lost_result_names_the_stage_that_made_it(found: dict[str, Any]) -> None:
    """In a pipeline the error names the stage whose result is gone, not the one that took it."""
    assert found["lost"]["of a stage"]["stage"] == "first"
