"""What a stage takes and gives is read from its signature."""

from __future__ import annotations

import functools
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from typing import Annotated, Any, List, Optional, Union  # noqa: UP035  # tested

import pydantic
import pytest
import ray
import starlette.requests
from fastapi import Depends, Query
from ray import ObjectRef, serve
from support.annotated import Item, listed, numbers, text

import raycompose as rc
from raycompose.graph.annotations import UNKNOWN
from raycompose.graph.signatures import describe, is_async, is_generator


def of(annotation: Any) -> Callable[[Any], Any]:
    """Return a function of one parameter, annotated as given."""

    def function(x: Any) -> Any:
        return x

    function.__annotations__["x"] = annotation
    return function


# How the input arrives


@pytest.mark.parametrize(
    ("annotation", "takes"),
    [
        (int, "value"),
        (list[int], "value"),
        (Any, "value"),
        (Item, "value"),
        (rc.Ref, "reference"),
        (rc.Ref[int], "reference"),
        (list[ObjectRef], "reference"),
        (List[ObjectRef], "reference"),  # noqa: UP006  # people write it
        (list[ObjectRef[int]], "reference"),
        (rc.Stream, "stream"),
        (rc.Stream[int], "stream"),
        (starlette.requests.Request, "request"),
        (rc.Request, "request"),
        (Optional[starlette.requests.Request], "request"),  # noqa: UP045  # people write it
        (Union[rc.Ref[int], None], "reference"),  # noqa: UP007  # people write it
        (rc.Stream[int] | None, "stream"),
        (Annotated[rc.Ref[int], "note"], "reference"),
        (Annotated[rc.Stream[int] | None, "note"], "stream"),
        (Annotated[int, "note"], "value"),
        (dict[str, ObjectRef], "value"),
        ("rc.Ref[int]", "reference"),
        ("list[ObjectRef]", "reference"),
        ("rc.Stream[int]", "stream"),
        ("starlette.requests.Request", "request"),
        ("there.is_no_such[Name]", "value"),
        ("not an expression", "value"),
    ],
)
def test_the_first_annotation_decides_how_the_input_arrives(annotation: Any, takes: str) -> None:
    """Ref, Stream and Request arrive as such, also inside Optional, Annotated or a string."""
    assert describe(of(annotation)).takes == takes


@pytest.mark.parametrize(
    "annotation",
    [AsyncIterator[int], AsyncIterable[int], Iterator[int], Iterable[int], Iterator],
)
def test_iterators_take_the_stream_when_there_is_one(annotation: Any) -> None:
    """An iterator parameter takes a stream whole; when upstream gives a value, it is the value."""
    function = of(annotation)
    function.__name__ = "taker"
    behind_stream = rc.pipeline(numbers, function)
    assert behind_stream.root.children[1].takes_stream
    rc.pipeline(listed, function)


def test_a_parameter_named_request_takes_the_request() -> None:
    """A parameter *named* request takes the request, unless its annotation says otherwise."""

    def unannotated(request):  # type: ignore[no-untyped-def]
        return request

    def annotated(request: dict[str, int]) -> Any:
        return request

    assert describe(unannotated).takes == "request"
    assert describe(annotated).takes == "value"


def test_only_the_first_parameter_decides() -> None:
    """Later parameters' annotations do not change how the input arrives."""

    def function(x: int, request: starlette.requests.Request, ref: ObjectRef) -> int:
        return x

    assert describe(function).takes == "value"


def test_a_list_of_references_is_told_from_a_ref() -> None:
    """``list[ObjectRef]`` gets the reference in a list, ``rc.Ref`` gets it as it is."""
    assert describe(of(list[ObjectRef])).wraps_ref
    assert not describe(of(rc.Ref[int])).wraps_ref


@pytest.mark.parametrize(
    "annotation",
    [ObjectRef, "ObjectRef", ObjectRef[int], Optional[ObjectRef], Annotated[ObjectRef, 1]],  # noqa: UP045
)
def test_a_bare_object_ref_is_refused(annotation: Any) -> None:
    """A bare ObjectRef cannot work, however it is spelled; the message says rc.Ref[T]."""
    with pytest.raises(rc.CompositionError, match=r"rc\.Ref\[T\]"):
        describe(of(annotation))


@pytest.mark.parametrize(
    ("annotation", "default"),
    [(Annotated[int, Depends(int)], 1), (int, Depends(int)), (int, Query(1))],
)
def test_what_fastapi_would_fill_in_is_refused(annotation: Any, default: Any) -> None:
    """A stage would be given FastAPI's marker in the place of a value."""

    def stage(x: int, filled: Any = default) -> int:
        return x

    stage.__annotations__["filled"] = annotation
    with pytest.raises(rc.CompositionError, match=r"'filled' is FastAPI's .*app\.embed\(\)"):
        rc.stage(stage)


@pytest.mark.parametrize("pass_by", ["value", "reference", "stream", "request"])
def test_pass_by_overrides_the_annotation(pass_by: Any) -> None:
    """``pass_by=`` decides whatever the annotation says, but for a bare ObjectRef."""
    app = rc.stage(of(int), pass_by=pass_by)
    assert app.root.first is not None
    assert app.root.first.signature.takes == pass_by


# Reading signatures


def test_annotations_written_as_strings_are_resolved() -> None:
    """This module's annotations are strings (PEP 563), and are resolved all the same."""

    def function(a: Item, b: list[int] = [], *, c: rc.Ref[str] | None = None) -> Iterator[Item]:  # noqa: B006
        yield a

    assert isinstance(function.__annotations__["a"], str)
    signature = describe(function)
    assert [p.annotation for p in signature.parameters] == [Item, list[int], rc.Ref[str] | None]
    assert (signature.returns, signature.streams) == (Item, True)


def test_string_annotations_may_name_a_local_that_the_function_uses() -> None:
    """A local class in a string annotation resolves where the function itself refers to it."""

    class Local:
        pass

    def function(x: Local) -> Local:
        assert isinstance(x, Local)
        return x

    signature = describe(function)
    assert (signature.accepts, signature.returns) == (Local, Local)


def test_string_annotations_that_do_not_resolve_are_unknown() -> None:
    """A name that exists for the type checker alone leaves the stage unannotated, not broken."""

    def function(x: OnlyForChecker, y: int) -> AlsoUnknown:  # type: ignore[name-defined]  # noqa: F821
        return x

    signature = describe(function)
    assert (signature.accepts, signature.returns) == (UNKNOWN, UNKNOWN)
    assert [p.annotation for p in signature.parameters] == [UNKNOWN, int]
    assert rc.local(rc.pipeline(function, lambda x: x)).call(1, 2) == 1


def test_reading_a_signature_changes_nothing_in_the_module() -> None:
    """Resolving names leaves the function's module as it was."""
    before = set(globals())
    describe(test_reading_a_signature_changes_nothing_in_the_module)
    assert set(globals()) == before


class Worker:
    """Methods of every kind."""

    def plain(self, x: int) -> str:
        return str(x)

    async def later(self, x: int) -> str:
        return str(x)

    def items(self, x: int) -> Iterator[str]:
        yield str(x)

    async def later_items(self, x: int) -> AsyncIterator[str]:
        yield str(x)

    @staticmethod
    def static(x: int) -> str:
        return str(x)

    @classmethod
    def of_class(cls, x: int) -> str:
        return str(x)

    def __call__(self, x: int) -> str:
        return str(x)


class AsyncWorker:
    async def __call__(self, x: int) -> str:
        return str(x)


class GeneratingWorker:
    async def __call__(self, x: int) -> AsyncGenerator[str, None]:
        yield str(x)


@pytest.mark.parametrize(
    "function",
    [
        Worker().plain,
        Worker().later,
        Worker().static,
        Worker().of_class,
        Worker.static,
        Worker.of_class,
        Worker(),
        AsyncWorker(),
        functools.partial(Worker.plain, Worker()),
        functools.partial(functools.partial(Worker().plain)),
        functools.partial(Worker()),
    ],
)
def test_callables_of_every_kind_are_read(function: Any) -> None:
    """Methods of every kind, callable objects and partials have their own parameters."""
    signature = describe(function)
    assert [p.name for p in signature.parameters] == ["x"]
    assert (signature.accepts, signature.returns) == (int, str)
    assert signature.known
    assert not signature.streams


@pytest.mark.parametrize("name", ["plain", "later", "static", "of_class", "__call__"])
def test_methods_of_a_deployment_are_read_without_self(name: str) -> None:
    """A deployment's method is read from its class, without self where it has one, and runs."""
    app = rc.stage(serve.deployment(Worker).bind(), method=name)
    assert app.root.first is not None
    assert app.root.first.signature.accepts is int
    assert [p.name for p in app.root.first.signature.parameters] == ["x"]
    assert rc.local(app).call(3) == "3"


def test_a_partial_hides_what_it_has_filled_in() -> None:
    """The first parameter of a partial is the first that is still open."""

    def function(model: str, x: int, *, scale: float = 1.0) -> int:
        return x

    signature = describe(functools.partial(function, "m"))
    assert (signature.parameters[0].name, signature.accepts) == ("x", int)


def test_what_has_no_signature_is_unknown() -> None:
    """A builtin without a signature is no error: nothing is known of it."""
    signature = describe(iter)
    assert not signature.known
    assert signature.parameters == ()
    assert signature.takes == "value"


@pytest.mark.parametrize(
    ("function", "generates"),
    [
        (Worker().items, True),
        (Worker().later_items, True),
        (GeneratingWorker(), True),
        (functools.partial(Worker().items), True),
        (Worker().plain, False),
        (Worker().later, False),
        (Worker(), False),
        (len, False),
        (lambda: (yield), True),
    ],
)
def test_generators_are_recognised(function: Any, generates: bool) -> None:
    """Sync and async generator functions stream, in whatever wrapping."""
    assert is_generator(function) is generates
    assert describe(function).streams is generates


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Worker().later, True),
        (Worker().later_items, True),
        (AsyncWorker(), True),
        (GeneratingWorker(), True),
        (functools.partial(Worker().later), True),
        (Worker().plain, False),
        (Worker().items, False),
        (Worker(), False),
    ],
)
def test_async_callables_are_recognised(function: Any, expected: bool) -> None:
    """What runs on the event loop is told from what runs in a thread."""
    assert is_async(function) is expected


@pytest.mark.parametrize(
    ("returns", "item"),
    [
        (Iterator[int], int),
        (Iterable[int], int),
        (Generator[int, None, None], int),
        (AsyncIterator[int], int),
        (AsyncGenerator[int, None], int),
        (typing.Iterator[int], int),  # people write it
        (Iterator, UNKNOWN),
        (Any, UNKNOWN),
    ],
)
def test_a_generators_result_is_its_items(returns: Any, item: Any) -> None:
    """A streaming stage gives the type of its items."""

    def function(x: int) -> Any:
        yield x

    function.__annotations__["return"] = returns
    assert describe(function).returns == item


class Batching:
    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def __call__(self, xs: list[int]) -> list[int]:
        return [x * 2 for x in xs]

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def items(self, xs: list[int]) -> AsyncIterator[list[int]]:
        for n in range(2):
            yield [x + n for x in xs]


def test_a_batched_method_is_not_read_as_taking_lists() -> None:
    """A ``@serve.batch`` method is called with single items, so its list annotation is no type."""
    signature = describe(Batching.__call__, skip_self=True)
    assert (signature.accepts, signature.returns) == (UNKNOWN, UNKNOWN)
    assert not signature.streams
    assert is_async(Batching.__call__)
    assert describe(Batching.items, skip_self=True).streams
    rc.pipeline(text, serve.deployment(Batching).bind(), text)


def test_a_batched_stage_runs_on_the_local_engine() -> None:
    """A ``@serve.batch`` method is called with single items on the local engine too."""
    app = rc.pipeline(serve.deployment(Batching).bind(), lambda x: x + 1)
    assert list(rc.local(rc.each(app)).call([1, 2, 3])) == [3, 5, 7]


def test_a_batched_generator_streams_on_the_local_engine() -> None:
    """A ``@serve.batch`` generator gives each caller its own items."""
    app = rc.stage(serve.deployment(Batching).bind(), method="items")
    assert list(rc.local(app).stream(5)) == [5, 6]


@pytest.mark.parametrize(
    ("function", "several"),
    [
        (lambda: 0, False),
        (lambda x: 0, False),
        (lambda x, y: 0, True),
        (lambda x, y=1: 0, True),
        (lambda x, *, y: 0, True),
        (lambda *xs: 0, False),
        (lambda x, *xs: 0, True),
        (lambda **xs: 0, True),
    ],
)
def test_takes_several(function: Any, several: bool) -> None:
    """A callable takes several by name: more than one parameter, or ``**kwargs``."""
    assert describe(function).takes_several is several


def test_a_tasks_function_is_read() -> None:
    """A ``@ray.remote`` function is read from the Python function that it wraps."""
    app = rc.pipeline(ray.remote(text))
    assert app.root.first is not None
    assert app.root.first.signature.returns is str


class Named(pydantic.BaseModel):
    n: int


@pytest.mark.parametrize(
    ("annotation", "resolved"),
    [
        (list["Named"], list[Named]),
        (Optional["Named"], Optional[Named]),  # noqa: UP045  # people write it
        ("list[Named]", list[Named]),
        (dict[str, list["Named"]], dict[str, list[Named]]),
        (list["Missing"], UNKNOWN),  # type: ignore[name-defined]  # noqa: F821
        ("Missing", UNKNOWN),
    ],
)
def test_names_inside_an_annotation_are_resolved(annotation: Any, resolved: Any) -> None:
    """``list["Item"]`` is read when composing; what is not defined is unclear."""
    assert describe(of(annotation)).parameters[0].annotation == resolved


# A mapping of a call's arguments


def two(a: Any, b: Any) -> Any:
    return [a, b]


def with_default(a: Any, b: Any = "b") -> Any:
    return [a, b]


def by_position(a: Any = 1, b: Any = 2, /) -> Any:
    return [a, b]


def keyword_only(*, a: Any, b: Any = "b") -> Any:
    return [a, b]


def any_more(a: Any, **more: Any) -> Any:
    return [a, more]


@pytest.mark.parametrize(
    ("function", "value", "call"),
    [
        (two, {"a": 1, "b": 2}, ((), {"a": 1, "b": 2})),
        (two, {"a": 1}, (({"a": 1},), {})),
        (two, [1, 2], (([1, 2],), {})),
        (with_default, {"a": 1}, ((), {"a": 1})),
        (with_default, {"a": 1, "c": 1}, (({"a": 1, "c": 1},), {})),
        (with_default, {}, (({},), {})),
        (by_position, {"b": 5}, ((1, 5), {})),
        (by_position, {"a": 5}, ((5,), {})),
        (keyword_only, {"a": 5}, ((), {"a": 5})),
        (any_more, {"a": 1}, (({"a": 1},), {})),
        (lambda x: x, {"x": 1}, (({"x": 1},), {})),
        (lambda *xs: xs, {"xs": 1}, (({"xs": 1},), {})),
    ],
)
def test_a_mapping_of_the_arguments_is_spread(function: Any, value: Any, call: Any) -> None:
    """A mapping is spread where it fits a callable that takes several; else it is one value."""
    assert describe(function).arguments(value) == call


@pytest.mark.parametrize("stage", [two, with_default, keyword_only])
def test_parallel_gives_a_stage_of_several_its_arguments(stage: Any) -> None:
    """``parallel(a=..., b=...)`` before ``def f(a, b)`` gives each parameter its result."""
    both = rc.parallel(a=lambda x: x + 1, b=lambda x: x * 2)
    assert rc.local(rc.pipeline(both, stage)).call(5) == [6, 10]
    assert rc.local(rc.pipeline(rc.stage(both, name="both"), rc.stage(stage, retry=2))).call(5) == [
        6, 10]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (rc.parallel(a=len, c=len), "with a, c, which .*: missing: b; unknown: c"),
        (rc.parallel(a=len), "with a, which .*: missing: b"),
        (rc.parallel(len, len), "also requires b"),
        (rc.pipeline(lambda x: {"a": x, "b": x}), "also requires b"),
        (rc.when(bool, {"a": len, "b": len}), "also requires b"),
    ],
)
def test_what_may_not_fit_several_parameters_is_refused(before: Any, why: str) -> None:
    """A stage that requires several is refused where the names are not known, or do not fit."""
    with pytest.raises(rc.CompositionError, match=why):
        rc.pipeline(before, two)


def test_a_mapping_is_not_spread_over_a_reference() -> None:
    """Only values are spread: a first parameter by reference would get the whole."""

    async def stage(r: rc.Ref[Any], s: str) -> str:
        return s

    with pytest.raises(rc.CompositionError, match="first parameter by reference, so a mapping"):
        rc.pipeline(rc.parallel(r=len, s=len), stage)


def test_a_first_stage_of_several_is_called_the_same_way_everywhere() -> None:
    """``call({...})`` spreads an object over the parameters, as HTTP does."""
    client = rc.local(rc.pipeline(two))
    assert client.call({"a": 1, "b": 2}) == client.call(1, 2) == client.call(a=1, b=2) == [1, 2]
