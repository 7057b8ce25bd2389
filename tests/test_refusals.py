"""Composing: what is refused, where it is written, and what the message says."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray
from fastapi import FastAPI
from ray import serve
from support.composing import (
    Adder,
    Model,
    Silent,
    Undecorated,
    aadd,
    add,
    counted,
    names,
    refusal,
    square,
    takes_bare_ref,
    to_list,
    to_mapping,
    to_text,
    total,
)

import raycompose as rc

ACCEPTED = ("bind", "deployment", "function", "@ray.remote", "actor", "pipeline", "dict")


@pytest.mark.parametrize(
    ("target", "got"),
    [
        (42, "42 (int)"),
        (None, "None (NoneType)"),
        ("package.module:app", "'package.module:app' (str)"),
        ([add], "(list)"),
        (object(), "(object)"),
    ],
)
@pytest.mark.parametrize(
    "compose",
    [
        rc.stage,
        rc.pipeline,
        lambda target: rc.pipeline(add, target),
        lambda target: rc.pipeline(add).then(target),
        lambda target: Model.bind() | target,
        lambda target: rc.parallel(add, target),
        lambda target: rc.each(target),
        lambda target: rc.stage({"a": target}),
    ],
    ids=["stage", "pipeline", "behind", "then", "or", "parallel", "each", "dict"],
)
def test_what_is_not_a_stage_is_refused(
    compose: Callable[[Any], Any], target: Any, got: str
) -> None:
    """A target that is no stage is refused with what was got and all that is accepted."""
    message = refusal(lambda: compose(target))
    assert got in message
    assert [word for word in ACCEPTED if word not in message] == []


def test_a_class_is_told_how_to_become_a_deployment() -> None:
    """A class without @serve.deployment is named, with the decorator that it needs."""
    message = refusal(lambda: rc.pipeline(add, Undecorated))
    assert "class Undecorated" in message
    assert "@serve.deployment" in message
    assert ".bind()" in message


@pytest.mark.parametrize(
    ("compose", "which"),
    [
        (lambda: rc.parallel(a=len, timeout_s=3), "in rc.parallel(): 'timeout_s': not a stage"),
        (lambda: rc.switch("k", {"a": len, "b": 3}), "in rc.switch(): 'b': not a stage"),
        (lambda: rc.assign(n=3), "in rc.assign(): 'n': not a stage"),
    ],
)
def test_a_branch_that_is_no_stage_is_named(compose: Any, which: str) -> None:
    """By the key under which it was given: it may have been meant as an option."""
    assert refusal(compose).startswith(which)


def test_a_list_is_told_to_be_given_one_by_one() -> None:
    """``rc.pipeline([a, b])`` says how to write it."""
    with pytest.raises(rc.CompositionError, match=r"one by one, with a \* before"):
        rc.pipeline([len, str])


def test_a_string_is_told_to_give_the_object() -> None:
    """An import path is refused with the advice to give the object."""
    assert "object itself" in refusal(lambda: rc.stage("package:app"))


def test_a_coroutine_is_told_to_give_the_function() -> None:
    """A coroutine (an async function that was called) is refused with what to give instead."""
    coroutine = aadd(1)
    try:
        message = refusal(lambda: rc.stage(coroutine))
    finally:
        coroutine.close()
    assert "coroutine" in message
    assert "function itself, without calling it" in message


def test_an_actor_handle_is_told_to_give_a_method(cluster: None) -> None:
    """An actor handle is refused with the advice to give one of its methods."""
    actor = ray.remote(Adder).options(num_cpus=0).remote(1)
    try:
        message = refusal(lambda: rc.stage(actor))
        assert "actor.method" in message
        assert names(rc.pipeline(actor.method)) == ["method"]
    finally:
        ray.kill(actor)


def test_an_actor_class_is_refused() -> None:
    """A ``@ray.remote`` class is no stage: it must be instantiated, and a method given."""
    message = refusal(lambda: rc.stage(ray.remote(Undecorated)))
    assert "Undecorated" in message
    assert "actor" in message


@pytest.mark.parametrize("method", ["predict", "bias", "_missing"])
def test_a_missing_method_is_refused_with_those_that_exist(method: str) -> None:
    """A method that the deployment does not have is named, with the methods that it has."""
    message = refusal(lambda: rc.stage(Model.bind(), method=method))
    assert "'Model'" in message
    assert repr(method) in message
    assert "double" in message


def test_a_deployment_without_call_is_told_to_choose_a_method() -> None:
    """A deployment with no ``__call__`` is told its methods and how to choose one."""
    message = refusal(lambda: rc.pipeline(add, Silent.bind()))
    assert "'Silent'" in message
    assert "speak" in message
    assert "method=" in message


def test_method_on_a_function_is_refused() -> None:
    """``method=`` belongs to deployments: with a function it is refused, deployed or not."""
    assert "method='x'" in refusal(lambda: rc.stage(add, method="x"))
    message = refusal(lambda: rc.stage(square.bind(), method="x"))
    assert "'_square' is a function" in message


@pytest.mark.parametrize(
    "target",
    [takes_bare_ref, serve.deployment(takes_bare_ref).bind(), ray.remote(takes_bare_ref)],
    ids=["function", "deployment", "task"],
)
def test_a_bare_object_ref_parameter_is_refused(target: Any) -> None:
    """A bare ObjectRef parameter is refused, naming the stage, the parameter and rc.Ref[T]."""
    message = refusal(lambda: rc.pipeline(add, target))
    assert "'takes_bare_ref'" in message
    assert "'x'" in message
    assert "rc.Ref[T]" in message


@pytest.mark.parametrize(
    "compose",
    [
        lambda: rc.pipeline(to_text, total),
        lambda: rc.pipeline(to_text).then(total),
        lambda: rc.pipeline(add, rc.pipeline(to_text), rc.pipeline(total, add)),
        lambda: rc.pipeline(rc.stage(to_text, timeout_s=1), rc.stage(total, retry=2)),
        lambda: rc.pipeline(to_text, rc.passthrough, total),
        lambda: rc.pipeline(to_text, rc.shadow(lambda x: x), total),
        lambda: rc.pipeline(to_text, rc.shadow(total)),
        lambda: rc.pipeline(rc.loop(to_text, until=bool), rc.parallel(total)),
        lambda: rc.pipeline(rc.race(to_text, to_text), total),
    ],
)
def test_types_that_cannot_fit_are_refused(compose: Callable[[], Any]) -> None:
    """``-> str`` into ``list`` is refused, naming both stages and both types."""
    message = refusal(compose)
    assert "'to_text'" in message
    assert "str" in message
    assert "'total'" in message
    assert "list[int]" in message


def spread(a: int, b: int = 0) -> int:
    return a + b


def spread_one(x: dict[str, int]) -> int:
    return len(x)


def to_rows(x: int) -> list[dict[str, int]]:
    return [{"a": x}]


def to_ref(x: int) -> rc.Ref[dict]:  # type: ignore[type-arg]  # people write it
    raise NotImplementedError


def to_words(x: int) -> list[str]:
    return [str(x)]


def iterated(xs: Iterator[str]) -> list[str]:
    return list(xs)


def means(xs: np.ndarray | None) -> float:
    return 0.0 if xs is None else float(np.mean(xs))


def none_or_number(x: int = None) -> int:  # type: ignore[assignment]  # noqa: RUF013
    return x or 0


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda: rc.parallel(a=add) | total, "'parallel' returns dict, but 'total' takes list"),
        (lambda: rc.parallel(add, add) | add, "'parallel' returns tuple, but 'add' takes int"),
        (lambda: rc.race(add, add, need=2) | add, "'race' with need=2 returns tuple, but 'add'"),
        (lambda: rc.assign(a=total) | to_text, "'assign' returns dict, but 'to_text' takes int"),
        (lambda: rc.pick("a", "b") | to_text, "'pick' returns dict, but 'to_text' takes int"),
        (lambda: rc.each(add) | add, "'each' returns list, but 'add' takes int"),
        (lambda: rc.optional(add) | add, "'optional' has a default of type None, but 'add' takes"),
        (lambda: rc.optional(add, default="x") | add, "default of type str, but 'add' takes int: "
                                                      "give it a default= that fits"),
        (lambda: rc.pipeline(to_text, rc.each(add)), "'to_text' returns str, but 'each' takes a"),
        (lambda: rc.pipeline(to_list, rc.each(rc.pipeline(total))),
         "an item of what 'to_list' returns int, but 'total' takes list[int]"),
        (lambda: rc.pipeline(to_text, rc.pick("a")), "'to_text' returns str, but 'pick' takes a"),
        (lambda: rc.pipeline(to_text, rc.assign(a=add)), "'to_text' returns str, but 'assign'"),
        (lambda: rc.pipeline(to_text, rc.parallel(rc.each(add))), "but 'each' takes a list"),
        (lambda: rc.parallel(a=add) | rc.pick("b"), "'pick' finds no 'b'; the mapping before it "
                                                    "has 'a'"),
        (lambda: rc.parallel(a=add) | rc.passthrough | rc.pick("b"), "'pick' finds no 'b'"),
        (lambda: rc.parallel(a=add) | rc.stage(rc.passthrough, name="same") | rc.pick("b"),
         "'pick' finds no 'b'"),
        (lambda: rc.pipeline(to_ref, rc.each(add)), "returns dict, but 'each' takes a list"),
    ],
)  # fmt: skip
def test_combinators_are_held_against_their_neighbors(
    compose: Callable[[], Any], message: str
) -> None:
    """What a combinator gives and takes is known, whatever its branches are."""
    assert message in refusal(compose)


@pytest.mark.parametrize(
    "stages",
    [
        (to_text, lambda x: x, total),
        (add, to_text),
        (to_list, rc.passthrough, total),
        (to_list, rc.each(add), total),
        (to_list, rc.each(lambda x: to_text(x))),
        (rc.optional(to_list, default=()), total),
        (rc.loop(add, until=lambda x: x > 3), add),
        (rc.race(add, add, need=2), total),
        (to_mapping, rc.pick("a")),
        (to_mapping, rc.assign(b=lambda x: 1), rc.pick("b")),
        (rc.parallel(a=add), rc.pick("a"), to_text),
        (rc.shadow(to_text), total),
        (rc.parallel(to_text, add), total),
        (counted, add),
        (counted, rc.collect, total),
    ],
)
def test_types_that_may_fit_are_allowed(stages: tuple[Any, ...]) -> None:
    """Unannotated or unclear neighbours, and items of a stream, are allowed."""
    assert isinstance(rc.pipeline(*stages), rc.Pipeline)


def test_stage_that_takes_a_stream_behind_a_value_is_refused() -> None:
    """A stage that takes a stream cannot stand behind one that gives a single value."""
    message = refusal(lambda: rc.pipeline(add, rc.collect))
    assert "'collect'" in message
    assert "'add'" in message
    assert "yield" in message


@pytest.mark.parametrize(
    "compose",
    [
        lambda app: rc.pipeline(add, app),
        lambda app: rc.pipeline(add).then(app).then(add),
        lambda app: app | add,
        lambda app: rc.parallel(add, app),
    ],
)
def test_a_fastapi_ingress_is_no_stage(compose: Callable[[Any], Any]) -> None:
    """A FastAPI ingress is refused as a stage, with how to bind the pipeline into it instead."""

    class Api:
        pass

    ingress: Any = serve.deployment(serve.ingress(FastAPI())(Api))
    message = refusal(lambda: compose(ingress.bind()))
    assert "'Api'" in message
    assert "FastAPI" in message
    assert "Api.bind(app.embed())" in message


def test_front_options_on_a_sub_pipeline_are_refused() -> None:
    """Options of a front deployment have no meaning inside a pipeline, and say so."""
    inner = rc.pipeline(Model.bind(), add).options(num_replicas=2)
    for compose in (
        lambda: rc.pipeline(add, inner),
        lambda: rc.pipeline(add).then(inner),
        lambda: rc.parallel(add, inner),
    ):
        message = refusal(compose)
        assert "options" in message
        assert "whole pipeline" in message
    assert "num_replicas" in refusal(lambda: rc.pipeline(add, inner))


@pytest.mark.parametrize(
    ("options", "word", "accepted"),
    [
        ({"pass_by": "ref"}, "pass_by='ref'", "'reference'"),
        ({"pass_by": 3}, "pass_by=3", "'value'"),
        ({"timeout_s": 0}, "timeout_s=0", "seconds above 0"),
        ({"timeout_s": -1.5}, "timeout_s=-1.5", "seconds above 0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan", "seconds above 0"),
        ({"timeout_s": True}, "timeout_s=True", "seconds above 0"),
        ({"timeout_s": "5"}, "timeout_s='5'", "seconds above 0"),
        ({"retry": 0}, "retry=0", "1 or more"),
        ({"retry": True}, "retry=True", "whole number"),
        ({"retry": 2.5}, "retry=2.5", "rc.Retry"),
        ({"retry": "3"}, "retry='3'", "rc.Retry"),
        ({"name": 3}, "name=3", "name"),
    ],
)
def test_bad_stage_options_are_refused(options: Any, word: str, accepted: str) -> None:
    """An option's wrong value is refused with the stage, the value and what is accepted."""
    message = refusal(lambda: rc.stage(Model.bind(), **options))
    assert word in message
    assert accepted in message
    assert "Model" in message


@pytest.mark.parametrize("option", ["method", "pass_by", "stream"])
def test_options_of_a_stage_do_not_fit_a_pipeline(option: str) -> None:
    """method=, pass_by= and stream= belong to a stage: on a pipeline they are refused."""
    value: Any = {"method": "double", "pass_by": "value", "stream": True}[option]
    message = refusal(lambda: rc.stage(rc.pipeline(Model.bind(), add), **{option: value}))
    assert "is a pipeline" in message
    assert f"{option}=" in message


def test_an_unknown_option_is_a_type_error() -> None:
    """A misspelt option is the TypeError that Python gives for any call."""
    options: Any = {"timeout": 3}
    with pytest.raises(TypeError, match="timeout"):
        rc.stage(add, **options)
    with pytest.raises(TypeError, match="timeout"):
        rc.pipeline(add).then(add, **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"nope": 1}, "nope"), ({"num_replicas": -1}, "num_replicas")],
)
def test_bad_front_options_are_refused_at_once(options: Any, named: str) -> None:
    """A front option that Ray refuses is a CompositionError where it is written."""
    assert named in refusal(lambda: rc.pipeline(add).options(**options))


@pytest.mark.parametrize(
    "options", [{"debug": "yes"}, {"max_body_bytes": -1}, {"max_body_bytes": "1"}]
)
def test_bad_edge_settings_are_refused_at_once(options: Any) -> None:
    """debug= and max_body_bytes= are checked as the other options are."""
    assert next(iter(options)) in refusal(lambda: rc.pipeline(add).options(**options))


def test_an_empty_pipeline_is_refused() -> None:
    """A pipeline has at least one stage, and the message says what one is."""
    message = refusal(lambda: rc.pipeline())
    assert "at least one stage" in message
    assert "bind" in message


@pytest.mark.parametrize("targets", [{}, {1: add}, {"a": add, None: add}])
def test_a_dict_needs_names(targets: Any) -> None:
    """An empty dict of targets, or one whose keys are not names, is refused."""
    refusal(lambda: rc.stage(targets))


def test_a_sub_pipeline_may_have_a_name_and_limits() -> None:
    """``rc.stage(pipeline, name=..., timeout_s=...)`` wraps the sub-pipeline under that name."""
    app = rc.pipeline(add, rc.stage(rc.pipeline(aadd, to_text), name="inner", timeout_s=5))
    assert names(app) == ["add", "aadd", "to_text"]
    assert "inner" in repr(app)
    assert rc.local(app).call(1) == "3"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("num_replica", r"no option 'num_replica'; did you mean 'num_replicas'\?"),
        ("timeout", r"no option 'timeout'; did you mean 'timeout_s'\?"),
        ("colour", r"no option 'colour'$"),
    ],
)
def test_an_option_that_there_is_not_is_named(option: str, message: str) -> None:
    """With the one that was meant, where one is near."""
    assert re.search(message, refusal(lambda: rc.pipeline(add).options(**{option: 1})))


def test_a_method_that_there_is_not_is_named_beside_those_there_are() -> None:
    """``__call__`` is one of them."""
    said = refusal(lambda: rc.stage(Model.bind(), method="predict"))
    assert "has no method 'predict'. Its methods: __call__, double." in said
