"""Fusing: stages merged into the pipeline's replica, or all into a deployment of one's own."""

import asyncio
import inspect
import os
from collections.abc import Callable
from typing import Any

import pytest
from ray import serve
from ray.serve.exceptions import BackPressureError
from support import pickle_by_value
from support.adding import Plus, deployed, plus
from support.cluster import HERE
from support.waiting import until

import raycompose as rc
from raycompose import _serve

Deploy = Callable[..., rc.Client]

pickle_by_value(__name__)


def front(app: rc.Pipeline[Any, Any]) -> Any:
    """The deployment that fronts a pipeline, as Ray would deploy it."""
    return app._bound_deployment


# --- Which stages ---------------------------------------------------------------------------------


def test_fusing_all_leaves_one_deployment() -> None:
    """Without names every stage goes into the pipeline's own deployment."""
    inner = rc.pipeline(lambda x: [x], rc.each(plus("C")), sum)
    app = rc.pipeline(plus("A"), rc.parallel(plus("B"), inner), lambda x: x)
    assert deployed(app) == ["A", "B", "C", "Pipeline"]
    assert deployed(app.fuse()) == ["Pipeline"]


def test_fusing_some_leaves_the_others() -> None:
    """Only the named stages are taken in; a second fuse adds to the first."""
    app = plus("A") | plus("B") | plus("C")
    assert deployed(app.fuse("A", "C")) == ["B", "Pipeline"]
    assert deployed(app.fuse("A").fuse("C")) == ["B", "Pipeline"]
    assert deployed(app.fuse("A").fuse()) == ["Pipeline"]
    assert deployed(app) == ["A", "B", "C", "Pipeline"]


def test_fusing_takes_a_deployment_in_wherever_it_is_used() -> None:
    """A deployment of several stages is one, so that fusing one of them fuses all, and once."""
    shared = plus("Shared", ray_actor_options={"num_gpus": 1})
    app = rc.pipeline(shared, rc.stage(shared, name="again"), shared)
    assert deployed(app.fuse("again")) == ["Pipeline"]
    assert front(app.fuse()).ray_actor_options["num_gpus"] == 1


def test_a_deployment_that_a_fused_one_holds_stays_one() -> None:
    """A handle in a fused deployment's arguments still leads to a deployment of its own."""
    app = rc.pipeline(serve.deployment(Plus, name="Outer").bind(plus("Inner")))
    assert deployed(app.fuse()) == ["Inner", "Pipeline"]


@pytest.mark.parametrize("name", ["Model", "a", "sum", "parallel", ""])
def test_fusing_an_unknown_name(name: str) -> None:
    """A name that no deployment stage has is an error that lists those there are."""
    app = plus("A") | rc.parallel(plus("B"), lambda x: x) | sum
    with pytest.raises(rc.CompositionError, match=f"fuse\\('{name}'\\).*it has 'A', 'B'"):
        app.fuse("A", name)


def test_fusing_something_else_than_a_name() -> None:
    """A deployment in the place of its name is refused as an unknown name is."""
    with pytest.raises(rc.CompositionError, match=r"no such deployment stage .*it has 'A', 'B'"):
        rc.pipeline(plus("A"), plus("B")).fuse(serve.deployment(Plus))


# --- What the fused replica asks for --------------------------------------------------------------


def test_resources_are_merged() -> None:
    """The fused replica asks for the largest num_cpus and the sum of everything else."""
    app = rc.pipeline(
        plus("A", ray_actor_options={"num_cpus": 2, "num_gpus": 0.5, "resources": {"left": 1}}),
        plus("B", ray_actor_options={"num_cpus": 3, "memory": 100, "resources": {"left": 2}}),
        plus("C", ray_actor_options={"num_gpus": 1, "memory": 50, "resources": {"right": 1}}),
        plus("D", ray_actor_options={"num_cpus": 0}),
    )
    asked = front(app.fuse()).ray_actor_options
    assert asked["num_cpus"] == 3
    assert asked["num_gpus"] == 1.5
    assert asked["memory"] == 150
    assert asked["resources"] == {"left": 3, "right": 1}


def test_resources_of_the_named_stages_alone() -> None:
    """What stays in its own replica asks for itself; the front of those asks for no CPU."""
    app = plus("A", ray_actor_options={"num_cpus": 2}) | plus(
        "B", ray_actor_options={"num_cpus": 3}
    )
    assert front(app).ray_actor_options["num_cpus"] == 0
    assert front(app.fuse("A")).ray_actor_options["num_cpus"] == 2
    assert front(app.fuse("B")).ray_actor_options["num_cpus"] == 3


def test_resources_by_default() -> None:
    """A deployment that says nothing asks for one CPU, fused too, as in Ray Serve."""
    assert front(rc.pipeline(plus("A")).fuse()).ray_actor_options["num_cpus"] == 1


@pytest.mark.parametrize("order", ["fuse first", "options first"])
def test_resources_that_are_given(order: str) -> None:
    """What .options(...) gives stands, whether before or after fuse(); the rest is merged."""
    app = plus("A", ray_actor_options={"num_cpus": 2, "num_gpus": 1}) | plus("B")
    given = {"ray_actor_options": {"num_cpus": 7}}
    fused = app.fuse().options(**given) if order == "fuse first" else app.options(**given).fuse()
    assert front(fused).ray_actor_options["num_cpus"] == 7
    assert front(fused).ray_actor_options["num_gpus"] == 1


CONFLICTS: dict[str, list[dict[str, Any]]] = {
    "runtime_env": [{"ray_actor_options": {"runtime_env": {"env_vars": {"X": x}}}} for x in "12"],
    "accelerator_type": [{"ray_actor_options": {"accelerator_type": x}} for x in ("L4", "T4")],
    "autoscaling_config": [{"autoscaling_config": {"max_replicas": n}} for n in (2, 3)],
    "placement_group_bundles": [{"placement_group_bundles": [{"CPU": n}]} for n in (1, 2)],
}


def conflicting(option: str) -> rc.Pipeline[Any, Any]:
    first, second = CONFLICTS[option]
    app: rc.Pipeline[Any, Any] = plus("A", **first) | plus("B", **second) | plus("C")
    return app


SOLUTIONS: dict[str, dict[str, Any]] = {
    "runtime_env": {"ray_actor_options": {"runtime_env": {"env_vars": {"X": "3"}}}},
    "accelerator_type": {"ray_actor_options": {"accelerator_type": "L4"}},
    "autoscaling_config": {"autoscaling_config": {"max_replicas": 5}},
    "placement_group_bundles": {"placement_group_bundles": [{"CPU": 3}]},
}


@pytest.mark.parametrize("option", SOLUTIONS)
def test_what_cannot_be_merged_is_refused(option: str) -> None:
    """What two stages set and nothing can merge is an error that names it, them and the remedy."""
    with pytest.raises(rc.CompositionError, match=f"{option}.*'A', 'B'.*options\\(.*{option}"):
        front(conflicting(option).fuse())
    assert front(conflicting(option).fuse("A", "C")).name == "Pipeline"


@pytest.mark.parametrize("order", ["fuse first", "options first", "in two steps"])
@pytest.mark.parametrize("option", SOLUTIONS)
def test_what_cannot_be_merged_may_be_given(option: str, order: str) -> None:
    """An option that .options(...) gives is no conflict, in whichever order things are said."""
    app, given = conflicting(option), SOLUTIONS[option]
    if order == "fuse first":
        fused = app.fuse().options(**given)
    elif order == "options first":
        fused = app.options(**given).fuse()
    else:
        fused = app.fuse().options(name="Front").options(**given)
    deployment = front(fused)
    if "ray_actor_options" in given:
        assert given["ray_actor_options"].items() <= deployment.ray_actor_options.items()
    elif option == "autoscaling_config":
        assert _serve.autoscaling_config(deployment).max_replicas == 5
    else:
        assert _serve.chosen(deployment, option)[option] == given[option]


def test_autoscaling_gives_way_to_replicas() -> None:
    """A number of replicas, too, settles how a pipeline of several autoscaled stages scales."""
    deployment = front(conflicting("autoscaling_config").fuse().options(num_replicas=4))
    assert deployment.num_replicas == 4
    assert _serve.autoscaling_config(deployment) is None


def test_what_agrees_is_kept() -> None:
    """One autoscaled stage, or the same runtime_env on several, is no conflict."""
    environment = {"env_vars": {"X": "1"}}
    options = {"ray_actor_options": {"runtime_env": environment}}
    app = plus("A", **options) | plus("B", **options, autoscaling_config={"max_replicas": 7})
    deployment = front(app.fuse())
    assert deployment.ray_actor_options["runtime_env"] == environment
    assert _serve.autoscaling_config(deployment).max_replicas == 7


ACTORS: dict[str, Any] = {x: [{"name": x, "actor_class": "x:Y"}] for x in "ab"}

# What fuse() does with each option of two stages: what they set, and what the front then has.
MERGED: dict[str, tuple[Any, Any, Any]] = {
    "max_replicas_per_node": (3, 2, 2),
    "num_replicas": (3, 2, 3),
    "graceful_shutdown_wait_loop_s": (3, 1, 3),
    "graceful_shutdown_timeout_s": (3, 30, 30),
    "health_check_period_s": (3, 12, 12),
    "health_check_timeout_s": (3, 40, 40),
    "max_constructor_retry_count": (3, 30, 30),
    "deployment_actors": (ACTORS["a"], ACTORS["b"], ACTORS["a"] + ACTORS["b"]),
    "user_config": (1, 2, {"A": 1, "B": 2}),
}
# What both may set alike, and two values that cannot be merged.
AGREED: dict[str, tuple[Any, Any]] = {
    "logging_config": ({"log_level": "DEBUG"}, {"log_level": "ERROR"}),
    "request_router_config": ({"initial_backoff_s": 0.1}, {"initial_backoff_s": 0.2}),
    "max_surge_percent": (10, 20),
    "gang_scheduling_config": ({"gang_size": 1}, {"gang_size": 2}),
}
# What one alone may set.
ALONE: dict[str, tuple[Any, Any]] = {
    "autoscaling_config": ({"max_replicas": 2}, {"max_replicas": 3}),
    "placement_group_bundles": ([{"CPU": 1}], [{"CPU": 2}]),
    "placement_group_strategy": ("PACK", "SPREAD"),
    "placement_group_bundle_label_selector": ([{"a": "b"}], [{"a": "c"}]),
}
OF_THE_STAGE = {"max_ongoing_requests", "max_queued_requests", "backpressure_config"}
"""What the front does not get, because the stage keeps it."""
NO_OPTION = {"self", "func_or_class", "name", "version", "_init_args", "_init_kwargs", "_internal"}


def test_every_option_of_ray_serve_is_known() -> None:
    """An option that a new Ray Serve brings is merged or refused, never dropped unseen."""
    options = set(inspect.signature(serve.Deployment.options).parameters) - NO_OPTION
    apart = {"ray_actor_options"} | OF_THE_STAGE
    assert options == {*MERGED, *AGREED, *ALONE} | apart


def config(app: rc.Pipeline[Any, Any], option: str) -> Any:
    value = _serve.chosen(front(app), option)[option]
    return [dict(actor) for actor in value] if option == "deployment_actors" else value


@pytest.mark.parametrize("option", MERGED)
def test_an_option_is_merged(option: str) -> None:
    """The front gets what the fused stages ask for together, and what one of them asks for."""
    a, b, merged = MERGED[option]
    found = config(rc.pipeline(plus("A", **{option: a}), plus("B", **{option: b})).fuse(), option)
    if option == "deployment_actors":
        found = [{k: actor[k] for k in ("name", "actor_class")} for actor in found]
    assert found == merged


@pytest.mark.parametrize("option", [*AGREED, *ALONE])
def test_an_option_is_kept_or_refused(option: str) -> None:
    """What one stage sets the front gets; what two set differently is refused, unless given."""
    a, b = {**AGREED, **ALONE}[option]
    with_bundles = "placement" in option and option != "placement_group_bundles"
    more: dict[str, Any] = {"placement_group_bundles": [{"CPU": 1}]} if with_bundles else {}
    replicas = {"num_replicas": 2} if option == "gang_scheduling_config" else {}
    one, other = plus("A", **{option: a}, **more), plus("B", **{option: b}, **more, **replicas)
    alone = config(rc.pipeline(one, plus("C")).fuse(), option)
    assert alone == _serve.chosen(_serve.deployment_of(one), option)[option]
    name = "placement_group_bundles" if with_bundles else option
    with pytest.raises(rc.CompositionError, match=f"{name}.*'A', 'B'"):
        front(rc.pipeline(one, other).fuse())
    if option in AGREED:
        same = plus("B", **{option: a})
        assert config(rc.pipeline(one, same).fuse(), option) == alone


def test_options_that_do_not_go_together() -> None:
    """What Ray refuses of the merged options is an error that says whose they are."""
    placed = plus("A", placement_group_bundles=[{"CPU": 1}])
    with pytest.raises(rc.CompositionError, match=r"fuse\(\): .*max_replicas_per_node"):
        front(rc.pipeline(placed, plus("B", max_replicas_per_node=1)).fuse())
    twice = [plus(name, deployment_actors=ACTORS["a"]) for name in "AB"]
    with pytest.raises(rc.CompositionError, match=r"deployment_actors.*'A', 'B'"):
        front(rc.pipeline(*twice).fuse())


def test_user_configs_are_kept_apart() -> None:
    """The front's user_config has each fused stage's own under the stage's name."""
    app = plus("A", user_config={"a": 1}) | plus("B") | plus("C", user_config=3)
    assert front(app.fuse()).user_config == {"A": {"a": 1}, "C": 3}
    assert front(app).user_config is None


# --- Options of the front -------------------------------------------------------------------------


def test_front_defaults() -> None:
    """The front is named Pipeline, asks for no CPU and does not throttle its stages."""
    deployment = front(rc.pipeline(plus("A")))
    assert deployment.name == "Pipeline"
    assert deployment.num_replicas == 1
    assert deployment.ray_actor_options["num_cpus"] == 0
    assert deployment.max_ongoing_requests >= 1000


def test_front_options() -> None:
    """options() sets what Deployment.options sets, one at a time or together, on a new pipeline."""
    app = rc.pipeline(plus("A"))
    changed = app.options(name="Front", num_replicas=3).options(max_ongoing_requests=7)
    deployment = front(changed.options(ray_actor_options={"resources": {"left": 1}}))
    assert (deployment.name, deployment.num_replicas) == ("Front", 3)
    assert deployment.max_ongoing_requests == 7
    assert deployment.ray_actor_options["resources"] == {"left": 1}
    assert deployment.ray_actor_options["num_cpus"] == 0
    assert front(app).name == "Pipeline"


def test_front_options_stay() -> None:
    """What follows, fuses or limits a pipeline keeps its options."""
    app = rc.pipeline(plus("A")).options(name="Front", num_replicas=2)
    for further in (app | plus("B"), app.then(plus("B")).fuse("B"), rc.stage(app, timeout_s=1)):
        assert (front(further).name, front(further).num_replicas) == ("Front", 2)


@pytest.mark.parametrize(
    "options", [{"replicas": 2}, {"num_replicas": -1}, {"max_ongoing_requests": "many"}]
)
def test_front_options_that_do_not_exist(options: dict[str, Any]) -> None:
    """An option that Ray does not know, or a value it refuses, is an error where it is written."""
    with pytest.raises(rc.CompositionError, match=next(iter(options))):
        rc.pipeline(plus("A")).options(**options)


@pytest.mark.parametrize("compose", [lambda sub: plus("B") | sub, rc.each, lambda sub: {"a": sub}])
def test_front_options_of_a_part(compose: Callable[[Any], Any]) -> None:
    """A pipeline with options that becomes a part of another would lose them, so it is refused."""
    sub = rc.pipeline(plus("A")).options(num_replicas=2)
    with pytest.raises(rc.CompositionError, match=r"\.options\(\.\.\.\) on the whole pipeline"):
        rc.pipeline(compose(sub))


# --- What a fused stage keeps, without a cluster --------------------------------------------------


class Peak:
    """Knows how many of its calls ran at once."""

    def __init__(self) -> None:
        self.running = 0
        self.peak = 0

    async def __call__(self, x: Any) -> int:
        self.running += 1
        self.peak = max(self.peak, self.running)
        await asyncio.sleep(0.02)
        self.running -= 1
        return self.peak


@pytest.mark.parametrize("limit", [1, 3])
def test_max_ongoing_requests_bounds_a_hosted_stage(limit: int) -> None:
    """A stage takes as many calls at once as its deployment says, in all its places together."""
    peak = serve.deployment(Peak, max_ongoing_requests=limit).bind()
    app = rc.each(rc.parallel(peak, peak), max_concurrency=10)
    results = rc.local(app.fuse()).call(list(range(10)))
    assert max(max(pair) for pair in results) == limit


def test_max_queued_requests_refuses_the_rest() -> None:
    """A call beyond max_queued_requests is back-pressure, as from a replica."""
    peak = serve.deployment(Peak, max_ongoing_requests=1, max_queued_requests=2).bind()
    app = rc.each(peak, max_concurrency=10, return_exceptions=True)
    results = rc.local(app.fuse()).call(list(range(10)))
    refused = [isinstance(result, BackPressureError) for result in results]
    assert refused == [False] * 3 + [True] * 7


def test_a_failed_call_gives_its_place_back() -> None:
    """A call that fails, or that is cancelled, leaves its place to the next."""

    class Fragile:
        async def __call__(self, what: str) -> str:
            if what == "fail":
                raise ValueError(what)
            if what == "hang":
                await asyncio.Event().wait()
            return what

    fragile = serve.deployment(Fragile, max_ongoing_requests=1).bind()
    client = rc.local(rc.stage(fragile, timeout_s=0.1).fuse())
    for what, error in (("fail", ValueError), ("hang", rc.StageTimeoutError)):
        with pytest.raises(error):
            client.call(what)
    assert client.call("fine") == "fine"


def test_user_config_reaches_a_hosted_stage_once() -> None:
    """The stage's reconfigure is called once, with its user_config, before any request."""

    class Configured:
        def __init__(self) -> None:
            self.configs: list[Any] = []

        async def reconfigure(self, config: Any) -> None:
            self.configs.append(config)

        def __call__(self, x: Any) -> Any:
            return self.configs

    configured = serve.deployment(Configured, user_config={"threshold": 5}).bind()
    assert rc.local(rc.pipeline(configured).fuse()).call(0) == [{"threshold": 5}]


# --- What a fused stage keeps, in a replica -------------------------------------------------------


class Configured:
    def __init__(self) -> None:
        self.configs: list[Any] = []

    def reconfigure(self, config: Any) -> None:
        self.configs.append(config)

    def __call__(self, x: Any) -> tuple[int, list[Any]]:
        return os.getpid(), self.configs


class Batched:
    def __init__(self, name: str) -> None:
        self.name = name

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=10)  # type: ignore[untyped-decorator, unused-ignore]
    async def __call__(self, items: list[int]) -> list[Any]:
        return [(self.name, item, len(items)) for item in items]


class Models:
    def __init__(self) -> None:
        self.loaded: list[str] = []

    @serve.multiplexed(max_num_models_per_replica=2)  # type: ignore[untyped-decorator, unused-ignore]
    async def model(self, model_id: str) -> str:
        self.loaded.append(model_id)
        return model_id.upper()

    async def __call__(self, x: Any) -> tuple[str, str, int]:
        model = await self.model(serve.get_multiplexed_model_id())
        return serve.get_multiplexed_model_id(), model, len(self.loaded)


def pid(x: Any) -> int:
    return os.getpid()


@pytest.fixture(scope="module")
def replica(deploy: Deploy) -> rc.Client:
    """One pipeline, fused but for ``Remote`` and ``Far``, that runs what ``{"do": ...}`` says."""
    peak = serve.deployment(Peak, max_ongoing_requests=3, **HERE).bind()
    configured = serve.deployment(Configured, user_config=[1], **HERE).bind()
    batched = serve.deployment(Batched, max_ongoing_requests=20, **HERE)
    models = serve.deployment(Models, **HERE)
    near = serve.deployment(pid, name="Near", **HERE).bind()
    far = serve.deployment(pid, name="Far", **HERE).bind()
    app = rc.switch(
        "do",
        {
            "peak": rc.pipeline(lambda v: list(range(10)), rc.each(peak, max_concurrency=10)),
            "config": configured,
            "batch": rc.pipeline(
                lambda v: list(range(8)),
                rc.each(rc.parallel(batched.bind("one"), batched.bind("two")), max_concurrency=8),
            ),
            "models": rc.parallel(models.bind(), models.options(name="Remote").bind()),
            "pids": rc.parallel(near, far, pid),
        },
    )
    return deploy(app.fuse("Peak", "Configured", "Batched", "Batched_2", "Models", "Near"))


def test_fused_stages_run_in_the_pipelines_process(replica: rc.Client) -> None:
    """A fused stage is in the process where functions run; another is not."""
    near, far, here = replica.call({"do": "pids"})
    assert near == here != far


def test_max_ongoing_requests_bounds_a_fused_stage(replica: rc.Client) -> None:
    """In the fused replica a stage takes as many calls at once as its deployment says."""
    assert max(replica.call({"do": "peak"})) == 3


def test_user_config_reaches_a_fused_stage_once(replica: rc.Client) -> None:
    """In the fused replica reconfigure has been called once, with the stage's own user_config."""
    _, configs = replica.call({"do": "config"})
    assert configs == [[1]]


def test_batches_are_batches_of_one_stage(replica: rc.Client) -> None:
    """@serve.batch collects calls in a fused replica, and two stages of one class do not mix."""
    results = replica.call({"do": "batch"}, timeout_s=60)
    assert results == [(("one", x, 4), ("two", x, 4)) for x in range(8)]


def test_the_model_id_reaches_fused_and_remote_stages(replica: rc.Client) -> None:
    """The caller's multiplexed model id is there in every stage, and @serve.multiplexed caches."""
    for model_id, loaded in (("a", 1), ("b", 2), ("a", 2)):
        handle = replica.handle.options(multiplexed_model_id=model_id)
        fused, remote = handle.remote({"do": "models"}).result(timeout_s=30)
        assert fused == (model_id, model_id.upper(), loaded)
        assert remote[:2] == (model_id, model_id.upper())


class Ailing:
    def __init__(self) -> None:
        self.healthy = True

    async def check_health(self) -> None:
        if not self.healthy:
            raise RuntimeError("unwell")

    async def __call__(self, order: str) -> int:
        if order == "fall ill":
            self.healthy = False
        return os.getpid()


def test_an_unhealthy_stage_makes_the_fused_replica_unhealthy(deploy: Deploy) -> None:
    """Ray Serve replaces a fused replica when a stage's check_health raises."""
    often = {"health_check_period_s": 0.1, "health_check_timeout_s": 5}
    ailing = serve.deployment(Ailing, **often, **HERE).bind()
    client = deploy(rc.pipeline(ailing).fuse())
    sick = client.call("fall ill")

    def replaced() -> bool:
        try:
            return bool(client.call("how are you", timeout_s=5) != sick)
        except Exception:  # no replica at this moment
            return False

    until(replaced, within_s=60)


def test_reconfiguring_and_status_of_a_fused_pipeline(cluster: None) -> None:
    """Serve sees one deployment, and deploying a new user_config reaches the stage it names."""
    app = rc.pipeline(serve.deployment(Configured, user_config="old", **HERE).bind()).fuse()
    with rc.run(app, name="reconfigured", route_prefix="/reconfigured") as client:
        assert list(serve.status().applications["reconfigured"].deployments) == ["Pipeline"]
        assert client.call(0)[1][-1] == "old"
        again = app.options(user_config={"Configured": "new"})
        rc.run(again, name="reconfigured", route_prefix="/reconfigured")
        until(lambda: client.call(0)[1][-1] == "new", within_s=30)


@pytest.mark.parametrize("name", ["Configured", "Nobody"])
def test_user_config_names_a_fused_stage(name: str) -> None:
    """A user_config for a stage that is not in the replica is an error that lists those there."""
    app = rc.pipeline(serve.deployment(Configured).bind()).fuse()
    client: Any = rc.local(app)
    if name == "Configured":
        asyncio.run(client._ingress.reconfigure({name: "new"}))
        assert client.call(0)[1] == ["new"]
    else:
        with pytest.raises(rc.RayComposeError, match=r"'Nobody'.*fused are 'Configured'"):
            asyncio.run(client._ingress.reconfigure({name: "new"}))
