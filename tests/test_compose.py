"""Composing: what is a stage, and what a graph looks like."""

import asyncio
import functools
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from fastapi import FastAPI
from ray import cloudpickle, serve
from support.composing import (
    Adder,
    Model,
    Silent,
    _square,
    aadd,
    acounted,
    add,
    counted,
    deployments,
    names,
    square,
    to_text,
)

import raycompose as rc
from raycompose import _serve

EXPORTED = [
    "pipeline",
    "stage",
    "app",
    "parallel",
    "switch",
    "when",
    "split",
    "shadow",
    "each",
    "fallback",
    "assign",
    "pick",
    "optional",
    "race",
    "loop",
    "batched",
    "passthrough",
    "collect",
    "Pipeline",
    "Retry",
    "Hedge",
    "Ref",
    "Stream",
    "Request",
    "Client",
    "Event",
    "run",
    "connect",
    "local",
    "remaining_s",
    "failed_stage",
    "RayComposeError",
    "CompositionError",
    "StageTimeoutError",
    "NoMatchError",
    "LoopError",
    "StageError",
    "HTTPError",
    "__version__",
]


# One concept


@pytest.mark.parametrize(
    "app",
    [
        rc.pipeline(add),
        rc.pipeline(Model.bind()),
        Model.bind().then(add),
        Model.bind() | add,
        rc.stage(add),
        rc.parallel(add, aadd),
        rc.passthrough,
        rc.collect,
        rc.pipeline(Model.bind(), add).options(name="Front"),
        rc.pipeline(Model.bind(), add).fuse(),
    ],
)
def test_a_pipeline_is_an_application(app: Any) -> None:
    """Whatever composes gives a Pipeline, and a Pipeline is a serve.Application."""
    assert isinstance(app, rc.Pipeline)
    assert isinstance(app, serve.Application)


def test_three_ways_to_write_the_same_graph() -> None:
    """``.then``, ``|`` and ``rc.pipeline`` make the same graph."""
    first, last = Model.bind(), Silent.bind()
    by_then = first.then(add).then(last, method="speak")
    by_or = first | add | rc.stage(last, method="speak")
    by_function = rc.pipeline(first, add, rc.stage(last, method="speak"))
    assert by_then.root == by_or.root == by_function.root
    assert names(by_then) == ["Model", "add", "Silent"]


def test_then_takes_the_options_of_stage() -> None:
    """``app.then(target, **options)`` is ``rc.pipeline(app, rc.stage(target, **options))``."""
    model = Model.bind()
    options: Any = {"name": "twice", "method": "double", "timeout_s": 3.0, "retry": 2}
    by_then = rc.pipeline(add).then(model, **options)
    assert by_then.root == rc.pipeline(rc.pipeline(add), rc.stage(model, **options)).root


def test_or_with_a_function_on_the_left() -> None:
    """``function | pipeline`` composes too, as ``rc.pipeline(function, pipeline)``."""
    app = to_text | rc.pipeline(len)
    assert names(app) == ["to_text", "len"]
    assert rc.local(app).call(1234) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda app: app.then(add),
        lambda app: app | add,
        lambda app: add | app,
        lambda app: app.options(name="Other"),
        lambda app: app.fuse(),
        lambda app: rc.pipeline(app, add),
        lambda app: rc.stage(app, name="inner", timeout_s=1),
    ],
    ids=["then", "or", "ror", "options", "fuse", "pipeline", "stage"],
)
def test_pipelines_are_immutable(change: Callable[[Any], Any]) -> None:
    """Every method returns a new pipeline and leaves the old one as it was."""
    app = rc.pipeline(Model.bind(), aadd)
    root, shown, listed = app.root, repr(app), deployments(app)
    changed = change(app)
    assert changed is not app
    assert (app.root, repr(app), deployments(app)) == (root, shown, listed)
    assert (changed.root, changed.given) != (app.root, app.given)


def test_two_continuations_of_one_pipeline_do_not_meet() -> None:
    """Composing twice on one base gives two graphs that know nothing of each other."""
    base = rc.pipeline(add)
    left, right = base.then(aadd), base.then(to_text)
    assert names(left) == ["add", "aadd"]
    assert names(right) == ["add", "to_text"]


# Names


def test_stage_names_are_unique() -> None:
    """Names come from the deployment or the function and are made unique: Model, Model_2."""
    app = rc.pipeline(Model.bind(), Model.bind(), add, add, lambda x: x, lambda x: x)
    assert names(app) == ["Model", "Model_2", "add", "add_2", "lambda", "lambda_2"]


def test_a_unique_name_never_meets_one_that_was_given() -> None:
    """A name that was given is not given again to a stage that would be renamed to it."""
    app = rc.pipeline(rc.stage(add, name="Model_2"), Model.bind(), Model.bind())
    assert len(set(names(app))) == 3
    assert names(app)[:2] == ["Model_2", "Model"]


def test_names_of_other_callables() -> None:
    """A partial is named by its function, a callable object by its class, or by ``name=``."""
    app = rc.pipeline(
        functools.partial(add, n=2), Adder(1), Adder(1).method, rc.stage(add, name="plus")
    )
    assert names(app) == ["add", "Adder", "method", "plus"]


def test_a_deployment_renamed_by_options_gives_its_name() -> None:
    """``X.options(name=...)`` is the stage's name too."""
    assert names(rc.pipeline(Model.options(name="Detector").bind(), add)) == ["Detector", "add"]


def test_names_are_unique_in_branches_too() -> None:
    """Stages in branches share the pipeline's names."""
    app = rc.pipeline(add, rc.parallel(add, rc.when(bool, add)))
    assert names(app) == ["add", "add_2", "add_3"]


# Deployments


def test_the_same_application_twice_is_one_deployment() -> None:
    """The same Application object used twice in a graph is one deployment, two are two."""
    model = Model.bind()
    assert deployments(rc.pipeline(model, add, model)) == ["Model", "Pipeline"]
    assert deployments(rc.pipeline(model, Model.bind())) == ["Model", "Model_1", "Pipeline"]


def test_the_same_application_in_branches_is_one_deployment() -> None:
    """One Application in several branches, or under several methods, is one deployment."""
    model = Model.bind()
    app = rc.parallel(a=model, b=rc.stage(model, method="double"), c=rc.pipeline(add, model))
    assert deployments(app) == ["Model", "Pipeline"]


def test_nested_pipelines_are_flattened() -> None:
    """A pipeline in a pipeline is part of its graph: no extra deployment, no extra node."""
    inner = rc.pipeline(Model.bind(), add)
    app = rc.pipeline(rc.pipeline(inner, aadd), rc.pipeline(to_text))
    assert deployments(app) == ["Model", "Pipeline"]
    assert names(app) == ["Model", "add", "aadd", "to_text"]
    assert len(app.root.children) == 4


def test_nested_pipelines_in_branches_add_no_deployment() -> None:
    """Pipelines as branches of combinators bring their stages' deployments and no others."""
    a = rc.pipeline(Model.bind(), add)
    b = rc.stage(rc.pipeline(Model.options(name="B").bind(), add), timeout_s=1)
    app = rc.pipeline(rc.parallel(a, b), rc.each(rc.pipeline(Model.options(name="C").bind())))
    assert sorted(deployments(app)) == ["B", "C", "Model", "Pipeline"]


def test_a_deployment_keeps_its_own_configuration() -> None:
    """A bound deployment is a stage untouched: its options and arguments are Ray's to read."""
    model = Model.options(num_replicas=3, max_ongoing_requests=7).bind(5)
    built = _serve.build(rc.pipeline(model, add), "x").deployments[0]
    assert (built.name, built.num_replicas, built.max_ongoing_requests) == ("Model", 3, 7)
    assert built.init_args == (5,)


def test_the_front_deployment_does_not_throttle_its_stages() -> None:
    """The deployment that fronts a pipeline asks for no CPU, and accepts many requests at once."""
    front = _serve.build(rc.pipeline(Model.bind(), add), "x").deployments[-1]
    assert front.name == "Pipeline"
    assert front.ray_actor_options["num_cpus"] == 0
    assert front.max_ongoing_requests >= 100


def test_options_are_those_of_the_front_deployment() -> None:
    """``.options`` sets the front deployment's options, and later ones win."""
    app = rc.pipeline(Model.bind()).options(name="Front", num_replicas=2)
    front = _serve.build(app.options(num_replicas=4), "x").deployments[-1]
    assert (front.name, front.num_replicas) == ("Front", 4)
    kept = _serve.build(app.then(add), "x").deployments[-1]
    assert (kept.name, kept.num_replicas) == ("Front", 2)


def test_a_pipeline_binds_into_another_deployment() -> None:
    """A pipeline goes where any application goes: into another deployment's ``bind``."""
    outer = Model.options(name="Outer").bind(rc.pipeline(Model.bind(), add))
    assert deployments(outer) == ["Model", "Pipeline", "Outer"]


# What a stage may be


def test_a_deployment_that_is_not_bound_is_bound() -> None:
    """``X`` is used as ``X.bind()``."""
    assert deployments(rc.pipeline(Model, add)) == ["Model", "Pipeline"]
    assert rc.local(rc.pipeline(Model, add)).call(1) == 3


def test_a_deployment_of_a_function() -> None:
    """A deployment made from a function is a stage like any other."""
    assert rc.local(rc.pipeline(square.bind(), add)).call(3) == 10
    assert names(rc.pipeline(square, square.bind())) == ["_square", "_square_2"]


def test_method_chooses_the_deployments_method() -> None:
    """``method=`` names the deployment's method that the stage calls."""
    app = rc.pipeline(rc.stage(Model.bind(), method="double"), rc.stage(Silent, method="speak"))
    assert rc.local(app).call(4) == 8


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (add, 4),
        (aadd, 4),
        (lambda x: x * 10, 30),
        (functools.partial(add, n=5), 8),
        (functools.partial(functools.partial(add), n=5), 8),
        (Adder(2), 5),
        (Adder(2).method, 23),
        (abs, 3),
    ],
)
def test_functions_of_every_kind_run_inline(target: Any, expected: int) -> None:
    """Functions, async functions, lambdas, partials, methods, objects and builtins are stages."""
    app = rc.pipeline(target)
    assert rc.local(app).call(3) == expected
    assert deployments(app) == ["Pipeline"]


@pytest.mark.parametrize("target", [counted, acounted, functools.partial(counted)])
def test_generators_stream(target: Any) -> None:
    """A generator function is a stage that streams."""
    assert list(rc.local(rc.pipeline(target)).stream(3)) == [0, 1, 2]


def test_a_remote_function_runs_in_this_process_on_the_local_engine() -> None:
    """A ``@ray.remote`` function is a stage, named by its function; locally it is called here."""
    app = rc.pipeline(ray.remote(_square), add)
    assert names(app) == ["_square", "add"]
    assert rc.local(app).call(3) == 10


def test_a_dict_is_a_parallel() -> None:
    """A dict of targets is ``rc.parallel(**dict)``, in the order written."""
    app = rc.pipeline(add, {"b": aadd, "a": Model.bind()})
    assert list(rc.local(app).call(1).items()) == [("b", 3), ("a", 3)]
    assert rc.stage({"b": aadd}).root == rc.parallel(b=aadd).root


def test_arguments_reach_the_first_stage_unchanged() -> None:
    """The call's positional and keyword arguments go to the first stage as they are."""
    client = rc.local(rc.pipeline(add, aadd))
    assert (client.call(1), client.call(1, 5), client.call(1, n=7), client.call(x=0)) == (
        3,
        7,
        9,
        2,
    )


def test_a_pipeline_shows_its_stages() -> None:
    """The representation names the stages in order."""
    assert repr(Model.bind().then(add).then(add)) == "Pipeline(Model | add | add_2)"


# Pickling


def test_a_graph_with_lambdas_pickles() -> None:
    """A graph with lambdas survives cloudpickle, and still runs."""
    offset = 5
    app = rc.pipeline(Model.bind(), lambda x: x + offset, {"a": lambda x: x, "b": Adder(1)})
    again = pickle.loads(cloudpickle.dumps(app))
    assert isinstance(again, rc.Pipeline)
    assert names(again) == names(app)
    assert rc.local(again).call(1) == {"a": 7, "b": 8}


def test_a_pipeline_that_has_run_pickles() -> None:
    """Running a pipeline locally, and building it, keeps nothing in it that does not pickle."""
    app = rc.pipeline(Model.bind(), add).fuse()
    assert rc.local(app).call(1) == 3
    deployments(app)
    assert rc.local(pickle.loads(cloudpickle.dumps(app))).call(1) == 3


def test_the_same_application_is_still_one_after_pickling() -> None:
    """An application used twice is one deployment after pickling as well."""
    model = Model.bind()
    again = pickle.loads(cloudpickle.dumps(rc.pipeline(model, add, model)))
    assert deployments(again) == ["Model", "Pipeline"]


def test_a_graph_from_main_pickles(tmp_path: Path) -> None:
    """A graph whose classes and lambdas live in ``__main__`` runs in a process without them."""
    made = tmp_path / "made.py"
    made.write_text(
        textwrap.dedent("""
        import sys
        from ray import cloudpickle, serve
        import raycompose as rc

        @serve.deployment
        class Model:
            def __call__(self, x: int) -> int:
                return x + OFFSET

        OFFSET = 10
        helper = lambda x: x * 2
        app = Model.bind() | (lambda x: helper(x)) | {"a": helper, "b": repr}
        with open(sys.argv[1], "wb") as file:
            cloudpickle.dump(app, file)
        """)
    )
    pickled = tmp_path / "app.pickle"
    use = f"""
import pickle, raycompose as rc
with open({str(pickled)!r}, "rb") as file:
    print(rc.local(pickle.load(file)).call(1))
"""
    subprocess.run([sys.executable, str(made), str(pickled)], check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", use], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout.strip().splitlines()[-1] == "{'a': 44, 'b': '22'}"


# The package


def test_exported_names_agree_with_the_contract() -> None:
    """``raycompose.__all__`` holds exactly the contract's names, and each of them exists."""
    later = {name for name in rc.__all__ if "object_ref" in name or name.startswith(("by_", "res"))}
    assert set(rc.__all__) - later == set(EXPORTED)
    assert [name for name in EXPORTED if not hasattr(rc, name)] == []
    assert len(set(rc.__all__)) == len(rc.__all__)


def test_no_task_is_left_behind_by_composing() -> None:
    """Composing inside a running event loop starts nothing there."""

    async def compose() -> int:
        rc.pipeline(Model.bind(), add, {"a": aadd})
        return len(asyncio.all_tasks())

    assert asyncio.run(compose()) == 1


class Needs:
    def __init__(self, path: str, *, size: int = 1) -> None:
        raise AssertionError("composing constructs nothing")

    def __call__(self, x: int) -> int:
        return x


class NeedsNothing:
    def __call__(self, x: int) -> int:
        return x


@pytest.mark.parametrize(
    ("args", "kwargs", "problem"),
    [
        ((), {}, r"missing a required argument: 'path'; it takes \(self, path: str, \*, size"),
        (("a", "b"), {}, "too many positional arguments"),
        (("a",), {"width": 2}, "unexpected keyword argument 'width'"),
    ],
)
def test_arguments_that_a_constructor_does_not_take(args: Any, kwargs: Any, problem: str) -> None:
    """Missing and unknown arguments of bind() are refused where it is composed, at any depth."""
    app = serve.deployment(Needs).bind(*args, **kwargs)
    with pytest.raises(rc.CompositionError, match=f"'Needs' cannot be constructed.*{problem}"):
        rc.pipeline(app)
    with pytest.raises(rc.CompositionError, match=problem):
        rc.parallel(a=serve.deployment(Needs, name="Outer").bind(app))
    ingress: Any = serve.deployment(serve.ingress(FastAPI())(NeedsApi))
    with pytest.raises(rc.CompositionError, match="'NeedsApi' cannot be constructed"):
        rc.stage(ingress.bind(), method="ask")
    with pytest.raises(rc.CompositionError, match="'NeedsApi' cannot be constructed"):
        rc.local(ingress.bind())


class NeedsApi:
    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    async def ask(self, x: int) -> int:
        return x


def test_arguments_that_a_constructor_takes() -> None:
    """What fits is composed: keywords, defaults, and a class without a constructor."""
    rc.pipeline(serve.deployment(Needs).bind("a", size=2), serve.deployment(NeedsNothing).bind())
    rc.pipeline(serve.deployment(Needs).bind(path="a"))
    with pytest.raises(rc.CompositionError, match=r"'NeedsNothing' cannot.*it takes none"):
        rc.pipeline(serve.deployment(NeedsNothing).bind(1))
    with pytest.raises(rc.CompositionError, match="missing a required argument: 'path'"):
        rc.pipeline(serve.deployment(Needs))


def holding(held: Any) -> Any:
    return lambda x: (held, x)[1]


def test_a_stage_that_cannot_be_sent_is_named() -> None:
    """It works in this process; on its way to a replica the error says which stage holds what."""
    app = rc.pipeline(Model.bind(), rc.stage(holding(n for n in range(1)), name="locked"))
    assert rc.local(app).call(2) == rc.local(rc.pipeline(Model.bind())).call(2)
    with pytest.raises(rc.CompositionError, match=r"'locked' cannot be sent .*generator") as caught:
        app.bind_front()
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_decider_that_cannot_be_sent_is_an_error_of_the_pipeline() -> None:
    """It is no stage."""
    app = rc.switch(holding(n for n in range(1)), {1: Model.bind()})
    with pytest.raises(rc.CompositionError, match="the pipeline cannot be sent to a replica"):
        app.bind_front()


def test_a_stage_of_keyword_arguments_alone_gets_no_plain_value() -> None:
    """The message names them, and what gives a mapping."""

    def scaled(*, a: int, b: int = 2) -> int:
        return a * b

    with pytest.raises(rc.CompositionError, match=r"keyword arguments alone \(a, b\)"):
        rc.pipeline(Model.bind(), scaled)
    assert rc.local(rc.parallel(a=len, b=len) | rc.pipeline(scaled)).call("xyz") == 9
