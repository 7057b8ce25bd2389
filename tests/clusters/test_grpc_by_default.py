"""References and pipelines on a cluster whose handles call by gRPC by default."""

import pytest
from support.scripts import found_by, start


@pytest.mark.cluster
def test_everything_works_where_grpc_is_the_default() -> None:
    """With RAY_SERVE_USE_GRPC_BY_DEFAULT=1 for the whole cluster everything gives the same."""
    found = found_by(start("references_by_grpc.py", RAY_SERVE_USE_GRPC_BY_DEFAULT="1"))
    assert found == {
        "Ray's own conversion": "RuntimeError",
        "by_ref": ["ObjectRef", "x"],
        "by_ref_sync": ["x"],
        "structure": {"a": [1, [2]], "b": 3},
        "to_object_ref": "X",
        "to_object_ref_sync": "X",
        "to_object_ref_gen": [0, 1, 2],
        "to_object_ref_gen_sync": [0, 1, 2],
        "inside a replica": "got value",
        "pipeline": "got value",
        "pipeline, listed": "got value",
        "pipeline, task first": "got value",
        "failed upstream": ["Refused", "Slow"],
        "task between": "VALUE!",
        "stream": [0, 1, 2],
    }
