"""Exceptions: their tree, their way through processes, and the stage that they name."""

import pickle
import re
import traceback
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import RayTaskError

import raycompose as rc
from raycompose import errors
from raycompose.errors import is_client_error, mark

EXAMPLES = [
    rc.RayComposeError("text"),
    rc.CompositionError("text"),
    rc.StageTimeoutError("slow", 1.5),
    rc.NoMatchError("switch", "'c'", ("'a'", "'b'")),
    rc.HTTPError(404),
    rc.HTTPError(404, "detail"),
    rc.HTTPError(422, {"field": ["wrong"]}, {"X-Kind": "1"}),
]


def documented() -> dict[str, str]:
    """Return the tree in the module's docstring, as child: parent."""
    parents, tree = ["Exception"], {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([│├└─ ]*)(\w+Error)\b", line)
        if found:
            depth = len(found[1]) // 4
            del parents[depth + 1 :]
            tree[found[2]] = parents[-1]
            parents.append(found[2])
    return tree


def test_the_documented_tree_agrees_with_the_classes() -> None:
    """The hierarchy that the docstring draws is that of the classes, with none left out."""
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type)
        and issubclass(kind, BaseException)
        and kind.__module__ == errors.__name__
    }
    assert documented() == {name: kind.__bases__[0].__name__ for name, kind in classes.items()}
    # StageError stands for others' exceptions; the rest are for users to raise and to catch.
    assert all(getattr(rc, name) is kind for name, kind in classes.items() if name != "StageError")


def test_a_stage_timeout_is_a_timeout_error() -> None:
    """``except TimeoutError`` catches a stage that ran too long."""
    assert issubclass(rc.StageTimeoutError, TimeoutError)


@pytest.mark.parametrize("error", EXAMPLES, ids=repr)
@pytest.mark.parametrize("through", [pickle, cloudpickle], ids=lambda module: module.__name__)
def test_exceptions_pickle_and_keep_their_fields(error: Exception, through: Any) -> None:
    """Every exception crosses processes with type, text, fields, stage and notes."""
    mark(error, "Model")
    again = pickle.loads(through.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert vars(again) == vars(error)
    assert rc.failed_stage(again) == "Model"


@pytest.mark.parametrize("error", EXAMPLES, ids=repr)
def test_exceptions_cross_ray(error: Exception) -> None:
    """Every exception comes out of Ray's own RayTaskError as it was."""
    wrapped = RayTaskError("f", "traceback", error)
    cause: Any = wrapped.as_instanceof_cause()
    assert cause.cause is error
    assert isinstance(cause, type(error))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (rc.StageTimeoutError("slow", 1.5), ("'slow'", "timeout_s=1.5")),
        (rc.NoMatchError("switch", "'c'", ("'a'", "'b'")), ("'switch'", "'c'", "'a', 'b'")),
        (rc.HTTPError(404, "gone"), ("404", "gone")),
        (rc.HTTPError(404), ("404",)),
    ],
)
def test_messages_say_what_and_where(error: Exception, words: tuple[str, ...]) -> None:
    """An exception's text has the stage, the offending value and what was accepted."""
    assert [word for word in words if word not in str(error)] == []


@pytest.mark.parametrize("status", [399, 200, 600, 0, -1])
def test_an_http_error_has_an_error_status(status: int) -> None:
    """A status that is no error is refused, with what is accepted."""
    with pytest.raises(ValueError, match=f"400 to 599, got {status}"):
        rc.HTTPError(status)


def test_the_users_own_subclass_of_http_error_keeps_its_status() -> None:
    """A subclass of HTTPError answers with its status, and pickles when its arguments do."""

    class NotReady(rc.HTTPError):
        def __init__(self, *args: Any) -> None:
            super().__init__(*(args or (503, "warming up")))

    again = pickle.loads(cloudpickle.dumps(NotReady()))
    assert (again.status, again.detail) == (503, "warming up")


# The stage that failed


class Broken(Exception):
    """The user's own."""


class Slotted(Exception):
    __slots__ = ("code",)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("__") or name == "__notes__":
            raise AttributeError(name)
        super().__setattr__(name, value)


def notes(error: BaseException) -> list[str]:
    found: list[str] = getattr(error, "__notes__", [])
    return found


def failing(x: Any) -> Any:
    raise Broken(x)


async def afailing(x: Any) -> Any:
    raise Broken(x)


@pytest.mark.parametrize("stage", [failing, afailing])
def test_the_callers_exception_is_the_users_own(stage: Any) -> None:
    """``except Broken`` works at the caller, and the exception names its stage."""
    with pytest.raises(Broken) as caught:
        rc.local(rc.pipeline(lambda x: x, stage, lambda x: x)).call(5)
    assert caught.value.args == (5,)
    assert rc.failed_stage(caught.value) == stage.__name__


def test_a_failure_has_a_note_in_the_traceback() -> None:
    """A note (PEP 678) names the stage wherever Python prints the traceback."""
    with pytest.raises(Broken) as caught:
        rc.local(rc.pipeline(failing)).call(5)
    assert "'failing'" in "".join(notes(caught.value))
    assert "'failing'" in "".join(traceback.format_exception(caught.value))
    assert "raise Broken(x)" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "app",
    [
        rc.pipeline(rc.parallel(lambda x: x, failing)),
        rc.pipeline(rc.parallel(a=rc.pipeline(lambda x: x, failing))),
        rc.pipeline(rc.when(bool, failing)),
        rc.pipeline(rc.switch(lambda x: "a", {"a": failing})),
        rc.pipeline(rc.fallback(failing)),
        rc.pipeline(rc.stage(rc.pipeline(failing, len), name="outer", timeout_s=5)),
        rc.pipeline(rc.stage(failing, retry=2)),
        rc.pipeline(rc.split((failing, 100))),
        rc.pipeline(lambda x: [x], rc.each(failing)),
    ],
    ids=["parallel", "dict", "when", "switch", "fallback", "limits", "retry", "split", "each"],
)
def test_the_innermost_stage_is_named_once(app: Any) -> None:
    """Inside every combinator the failed stage is the one that raised, in a single note."""
    with pytest.raises(Broken) as caught:
        rc.local(app).call(5)
    assert rc.failed_stage(caught.value) == "failing"
    assert len([n for n in notes(caught.value) if "raised in stage" in n]) == 1


def test_a_stage_with_a_name_of_its_own_is_named_by_it() -> None:
    """``name=`` and the made-unique names are what ``failed_stage`` gives."""
    with pytest.raises(Broken) as caught:
        rc.local(rc.pipeline(lambda x: x, lambda x: failing(x))).call(5)
    assert rc.failed_stage(caught.value) == "lambda_2"
    with pytest.raises(Broken) as caught:
        rc.local(rc.stage(failing, name="mine")).call(5)
    assert rc.failed_stage(caught.value) == "mine"


def test_an_error_of_no_stage_names_none() -> None:
    """``failed_stage`` of any other exception is None."""
    assert rc.failed_stage(ValueError("x")) is None
    assert rc.failed_stage(rc.CompositionError("x")) is None


def test_an_exception_that_takes_no_attributes_still_gets_through() -> None:
    """An exception that cannot carry the stage's name keeps its type."""

    def stage(x: Any) -> Any:
        raise Slotted("text")

    with pytest.raises(Slotted, match="text"):
        rc.local(rc.pipeline(stage)).call(1)


def test_one_exception_object_raised_twice_names_the_stage_that_raised() -> None:
    """An exception object that is raised at every request gets one note, not one per request."""
    shared = Broken("always the same object")

    def stage(x: Any) -> Any:
        raise shared

    client = rc.local(rc.pipeline(stage))
    for _ in range(3):
        with pytest.raises(Broken):
            client.call(1)
    assert len(notes(shared)) == 1


def test_the_first_failure_of_a_fallback_has_the_others_as_notes() -> None:
    """When all targets of a fallback fail, the first error is raised with the others in notes."""

    def second(x: Any) -> Any:
        raise KeyError("second")

    with pytest.raises(Broken) as caught:
        rc.local(rc.fallback(failing, second)).call(5)
    assert any("KeyError('second')" in note for note in notes(caught.value))


def test_a_wrong_call_of_a_combinator_says_what_to_pass() -> None:
    """A pipeline that begins with a combinator takes one value, and says so."""
    with pytest.raises(TypeError, match=r"'parallel', which takes exactly one value.*2 positional"):
        rc.local(rc.parallel(len)).call(1, 2)


@pytest.mark.parametrize(
    ("error", "blames_sender"),
    [
        (rc.HTTPError(400), True),
        (rc.HTTPError(499), True),
        (rc.HTTPError(500), False),
        (rc.NoMatchError("s", "k", ()), True),
        (rc.StageTimeoutError("s", 1), False),
        (ValueError(), False),
    ],
)
def test_client_errors_are_told_from_the_servers(error: Exception, blames_sender: bool) -> None:
    """A 4xx is the sender's fault, so that trying again elsewhere is no help."""
    assert is_client_error(error) is blames_sender
