"""A pipeline goes wherever a Serve application goes."""

# mypy does not see that @serve.deployment adds .bind.
# mypy: disable-error-code="attr-defined"

from typing import Any

import pytest
from ray import serve
from ray.serve.exceptions import RayServeException
from support import pickle_by_value
from support.cluster import Deploy

import raycompose as rc

pickle_by_value(__name__)
NO_CPU = {"num_cpus": 0}


@serve.deployment(ray_actor_options=NO_CPU)
class Doubler:
    def __call__(self, value: int) -> int:
        return value * 2


@serve.deployment(ray_actor_options=NO_CPU)
class Outer:
    def __init__(self, pipeline: Any, factor: int) -> None:
        self.pipeline = pipeline
        self.factor = factor

    async def __call__(self, value: int) -> int:
        result: int = await self.pipeline.remote(value)
        return result * self.factor


def add_one(value: int) -> int:
    return value + 1


@pytest.fixture
def app() -> rc.Pipeline[Any, Any]:
    doubler = Doubler.bind()
    return rc.pipeline(doubler, add_one)


def test_a_pipeline_bound_into_another_deployment_is_called_by_its_handle(
    app: rc.Pipeline[Any, Any], deploy: Deploy
) -> None:
    """``Outer.bind(pipeline)`` gets the handle of the pipeline's front deployment."""
    client = deploy(Outer.bind(app, 10))
    assert client.call(3) == 70
    names = serve.status().applications[client.handle.app_name].deployments
    assert sorted(names) == ["Doubler", "Outer", "Pipeline"]


def test_a_pipeline_runs_in_ray_s_local_testing_mode(app: rc.Pipeline[Any, Any]) -> None:
    """``serve.run`` without a cluster works as it does for any application."""
    handle = serve.run(app, _local_testing_mode=True)
    assert handle.remote(3).result() == 7


def test_two_pipelines_run_at_once_under_two_names(
    app: rc.Pipeline[Any, Any], deploy: Deploy
) -> None:
    """Each answers at its own route, by its own handle, and ends without the other."""
    first, second = deploy(app), deploy(app.then(add_one))
    assert (first.call(1), second.call(1)) == (3, 4)
    assert first.url != second.url
    assert rc.connect(first.handle.app_name).call(2) == 5
    with pytest.raises(RayServeException, match=rf"{first.handle.app_name}.*RAY_ADDRESS"):
        rc.connect("nobody's")
