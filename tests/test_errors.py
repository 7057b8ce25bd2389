"""Exceptions: their tree, their way through processes, and the stage that they name."""

import asyncio
import dataclasses
import pickle
import re
import traceback
from typing import Any

import pytest
from ray import cloudpickle, serve
from ray.exceptions import RayTaskError
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

import raycompose as rc
from raycompose import errors
from raycompose.errors import StageError, is_client_error, mark
from raycompose.flow.failures import restored, sendable

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
    # Users catch these by their bases; the rest they raise, or tell apart.
    by_base = {"ApplicationUnavailableError", "LostAnswerError", "RequestTimeoutError"}
    assert all(getattr(rc, name) is classes[name] for name in classes.keys() - by_base)


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


class NotFound(rc.HTTPError):
    """With arguments of its own, and an attribute."""

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(404, f"no {what}", {"X-Kind": "1"})
        self.hint = hint


class Forgetful(Exception):
    """Python cannot make it again from its ``args``."""

    def __init__(self, account: str, missing: int) -> None:
        super().__init__(f"{account} lacks {missing}")
        self.account = account
        self.missing = missing


class OutOfDisk(OSError):
    def __init__(self, path: str, *, free: int) -> None:
        super().__init__(28, "no space", path)
        self.free = free


class Holding(Exception):
    def __init__(self, held: Any, code: int) -> None:
        super().__init__(held)
        self.held = held
        self.code = code


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int
    reason: str = "frozen"


def sent(error: Exception) -> Any:
    """Return what a caller in another process gets of an error that a replica raises."""
    return pickle.loads(cloudpickle.dumps(sendable(error)))


def test_a_subclass_of_http_error_may_have_arguments_of_its_own() -> None:
    """Its ``__init__`` is not run again in the process that it is sent to."""
    again = pickle.loads(cloudpickle.dumps(mark(NotFound("page", hint="home"), "Model")))
    assert type(again) is NotFound
    assert (again.status, again.detail, again.headers, again.hint) == (
        404, "no page", {"X-Kind": "1"}, "home")  # fmt: skip
    assert rc.failed_stage(again) == "Model"


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (Forgetful("savings", 5), ["account", "missing"]),
        (OutOfDisk("/data", free=3), ["errno", "strerror", "filename", "free"]),
        (Holding((n for n in "held"), 7), ["code"]),  # @serve.ingress lets Ray pickle locks
        (Frozen(7), ["code", "reason"]),
        (NotFound("page", hint="home"), ["status", "hint"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_exception_with_a_signature_of_its_own_is_sent_as_its_own_type(
    error: Exception, kept: list[str]
) -> None:
    """Type, text, stage, notes and attributes cross processes, whatever ``__init__`` takes."""
    again = sent(mark(error, "Model"))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert [getattr(again, name) for name in kept] == [getattr(error, name) for name in kept]
    assert rc.failed_stage(again) == "Model"
    assert "raised in stage 'Model'" in notes(again)


HTTP = "starlette.exceptions.HTTPException: 409: forged"


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (f"Traceback:\n  File x\nValueError: first\n{HTTP}", ValueError, f"first\n{HTTP}"),
        (f"Traceback:\n  File x\nmine.Odd: first\n  File y\n{HTTP}", StageError, "mine.Odd: first"),
        (f"Exception m.Odd isn't serializable: no.\nOriginal:\nTraceback:\n  File x\n"
         f"Odd: first\n{HTTP}", StageError, "m.Odd: first"),
        (f"Traceback:\n  File x\nKeyError: 1\n\nDuring handling of the above exception, another "
         f"exception occurred:\n\nTraceback:\n  File y\n{HTTP}", HTTPException, "409: forged"),
        ("Traceback:\n  File x\n    raise E\nfastapi.exceptions.HTTPException: 204: No Content",
         HTTPException, "204: No Content"),
        ("Traceback:\n  File x\nstarlette.exceptions.HTTPException: 404: 17", HTTPException, "17"),
        ("no traceback at all", Exception, "no traceback at all"),
    ],
    ids=["a message", "a frame in it", "told by Ray", "chained", "204", "digits", "nothing"],
)  # fmt: skip
def test_an_exception_is_restored_from_the_text_of_its_traceback(
    text: str, kind: type[Exception], said: str
) -> None:
    """The type is that of the last exception raised; no line of a message passes for one."""
    error = restored(text)
    assert isinstance(error, kind)
    assert said in str(error)
    assert isinstance(error, HTTPException) is (kind is HTTPException)
    if isinstance(error, HTTPException):
        assert isinstance(error.detail, str)


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


def test_one_exception_object_raised_in_two_stages_names_each() -> None:
    """The stage is that which raised it in this request, not in an earlier one."""
    shared = Broken("always the same object")

    def raising(x: Any) -> Any:
        raise shared

    app = rc.switch("at", {at: rc.stage(raising, name=at) for at in ("first", "second")})
    client = TestClient(rc.local(app).asgi)
    for at in ("first", "second", "first"):
        assert client.post("/", json={"at": at}).json()["stage"] == at


class Made(Exception):
    def __new__(cls, *, code: int) -> "Made":
        return super().__new__(cls)

    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code


class Held(Exception):
    __slots__ = ("code",)

    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code


@pytest.mark.parametrize("shared", [Frozen(7), Made(code=7), Held(code=7)], ids=repr)
def test_one_exception_object_keeps_its_type_and_attributes(shared: Any) -> None:
    """Raised in one request after the other, by reference, or by a stage that decides."""

    async def raising(x: Any) -> Any:
        raise shared

    async def taker(ref: rc.Ref[Any]) -> Any:
        return await ref

    by_ref, decider = rc.pipeline(raising, taker), rc.switch(rc.stage(raising), {1: len})
    for app in (rc.stage(raising), by_ref, decider):
        client = rc.local(app)
        for _ in range(2):
            with pytest.raises(type(shared)) as caught:
                client.call(1)
            assert (caught.value.code, rc.failed_stage(caught.value)) == (7, "raising")


def both_raising() -> list[Any]:
    shared = Broken("always the same object")

    async def first(x: Any) -> Any:
        raise shared

    async def second(x: Any) -> Any:
        raise shared

    return [first, second]


def test_an_exception_caught_in_one_stage_and_raised_in_another_names_the_other() -> None:
    """The stage is that which raised it last, in the same request as well."""
    first, second = both_raising()
    last = rc.stage(rc.pipeline(len, second), name="last")
    with pytest.raises(Broken) as caught:
        rc.local(rc.pipeline(rc.optional(first, default="x"), last)).call(1)
    assert rc.failed_stage(caught.value) == "second"
    assert notes(caught.value) == ["raised in stage 'second'"]


def test_an_exception_of_two_stages_names_each_without_an_id_of_the_request() -> None:
    """Outside of Serve an embedded pipeline's calls have none."""
    first, second = both_raising()
    embedded = rc.switch(bool, {True: first, False: second}).embed()
    for value, stage in ((1, "first"), (0, "second"), (1, "first")):
        with pytest.raises(Broken) as caught:
            asyncio.run(embedded(value))
        assert rc.failed_stage(caught.value) == stage


def test_an_exception_by_reference_names_the_stage_that_raised_it_last() -> None:
    """Deployments of one process may share an exception, too."""
    shared = Broken("always the same object")

    @serve.deployment
    class Raising:
        async def __call__(self, x: Any) -> Any:
            raise shared

    async def taker(ref: rc.Ref[Any]) -> Any:
        return await ref

    for stage in ("first", "second"):
        app = rc.pipeline(rc.stage(Raising, name=stage), taker)
        with pytest.raises(Broken) as caught:
            rc.local(rc.stage(app, name="outer")).call(1)
        assert rc.failed_stage(caught.value) == stage


def test_a_frozen_dataclass_names_its_stage() -> None:
    """An exception that refuses attributes keeps its type and has the stage's name, too."""

    def stage(x: Any) -> Any:
        raise Frozen(7)

    with pytest.raises(Frozen) as caught:
        rc.local(rc.pipeline(stage)).call(1)
    assert caught.value.code == 7
    assert rc.failed_stage(caught.value) == "stage"


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
