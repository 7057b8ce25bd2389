"""Other applications as stages: by name, by handle, and what stands in for them."""

# mypy does not see what Ray's decorators add: .bind.
# mypy: disable-error-code="attr-defined"

import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import requests
from ray import serve
from support import pickle_by_value
from support.cluster import HERE
from support.waiting import poll

import raycompose as rc

pickle_by_value(__name__)


@serve.deployment(**HERE)
class Doubler:
    def __init__(self, version: int = 1) -> None:
        self.version = version

    async def __call__(self, x: Any) -> Any:
        return x * 2

    async def numbers(self, x: int) -> AsyncIterator[int]:
        for number in range(x):
            yield number

    async def fail(self, x: Any) -> Any:
        raise ValueError(f"not {x}")


@serve.deployment(**HERE)
class Tripler:
    async def __call__(self, x: Any) -> Any:
        return x * 3


@serve.deployment(**HERE)
class Outer:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def __call__(self, x: Any) -> Any:
        return await self.inner.remote(x)


def graph() -> Any:
    llm = rc.app("llm")
    return rc.switch(
        "do",
        {
            "call": (lambda v: v["x"]) | llm,
            "deployment": rc.pipeline(lambda v: v["x"], rc.app("llm", "Doubler")),
            "fail": rc.pipeline(lambda v: v["x"], rc.app("llm", "Doubler", method="fail")),
            "tried": rc.pipeline(lambda v: v["x"], rc.stage(llm, retry=5, name="tried")),
            "else": rc.pipeline(lambda v: v["x"], rc.fallback(llm, lambda x: "no llm")),
            "reference": rc.pipeline(lambda v: v["x"], llm, by_reference),
            "thread": rc.pipeline(lambda v: v["x"], from_a_thread),
        },
    )


async def by_reference(ref: rc.Ref[Any]) -> Any:
    return [await ref]


def from_a_thread(x: Any) -> Any:
    return serve.get_app_handle("llm").remote(x).result(timeout_s=30)


def run(app: Any, name: str = "llm") -> None:
    serve.run(app, name=name, route_prefix=f"/{name}")


@pytest.fixture(scope="module")
def client(deploy: Any) -> Iterator[Any]:
    yield deploy(graph())  # the application that it calls is not there yet
    serve.delete("llm")


def ask(client: Any, do: str, x: Any = 7) -> Any:
    return requests.post(client.url, json={"do": do, "x": x}, timeout=60)


def test_an_application_comes_goes_and_comes_back(client: Any) -> None:
    """Absent it is 503, naming it; deployed it is found, deleted it is 503 again, and so on."""
    for do in ("call", "deployment", "reference"):
        absent = ask(client, do)
        assert (absent.status_code, absent.json()["stage"][:3]) == (503, "llm")
        assert absent.json()["detail"] == "the application 'llm' is not running"
    assert ask(client, "else").text == "no llm"
    run(Doubler.bind())
    assert ask(client, "call").json() == ask(client, "deployment").json() == 14
    assert ask(client, "reference").json() == [14]
    serve.delete("llm")
    poll(lambda: ask(client, "call").status_code == 503 or None)
    assert ask(client, "call").json()["detail"] == "the application 'llm' is not running"
    run(Tripler.bind())  # with another ingress
    assert ask(client, "call").json() == 21
    gone = ask(client, "deployment")
    assert (gone.status_code, "'llm'" in gone.json()["detail"]) == (503, True)
    run(Doubler.bind())
    poll(lambda: ask(client, "call").json() == 14 or None)
    assert ask(client, "deployment").json() == 14


def test_a_function_may_use_the_same_application(client: Any) -> None:
    """Ray Serve gives out one handle for a name; the pipeline's calls leave it as it is."""
    run(Doubler.bind())
    assert [ask(client, do).json() for do in ("call", "thread", "call")] == [14, 14, 14]


def test_redeployed_under_traffic_no_request_is_lost(client: Any) -> None:
    """While the other application is deployed anew, requests wait rather than fail."""
    patient = Doubler.options(graceful_shutdown_timeout_s=20)  # its requests end first
    versions = itertools.count(2)
    run(patient.bind(next(versions)))
    assert ask(client, "call").json() == 14
    answers, stop = [], threading.Event()

    def traffic() -> None:
        while not stop.is_set():
            answers.append(ask(client, "call"))

    threads = [threading.Thread(target=traffic) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        run(patient.bind(next(versions)))
    stop.set()
    for thread in threads:
        thread.join()
    assert {(answer.status_code, answer.json()) for answer in answers} == {(200, 14)}
    assert len(answers) > 20


def test_its_errors_are_the_users_own(client: Any) -> None:
    """What the other application raises arrives with its type, in the stage of its name."""
    run(Doubler.bind())
    with pytest.raises(ValueError, match="not 7") as caught:
        client.call({"do": "fail", "x": 7})
    assert rc.failed_stage(caught.value) == "llm_3"


def test_a_deleted_part_of_it_is_not_taken_for_it(deploy: Any, client: Any) -> None:
    """When the application runs, but something that it calls does not, it is not called twice."""
    run(Doubler.bind(), "inner")
    run(Outer.bind(serve.get_app_handle("inner")), "outer")
    outer = deploy(rc.pipeline(rc.app("outer")))
    assert outer.call(1) == 2
    serve.delete("inner")
    with pytest.raises(Exception, match="inner"):
        outer.call(1)
    serve.delete("outer")


def test_a_handle_is_a_stage(deploy: Any, client: Any) -> None:
    """A ``DeploymentHandle`` is called as a deployment of the pipeline's own is."""
    run(Doubler.bind())
    handle = serve.get_app_handle("llm")
    app = rc.switch(
        "do",
        {
            "call": rc.pipeline(lambda v: v["x"], handle),
            "fail": rc.pipeline(lambda v: v["x"], rc.stage(handle, method="fail", name="f")),
            "stream": rc.pipeline(
                lambda v: v["x"], handle.options(method_name="numbers", stream=True), rc.collect
            ),
        },
    )
    by_handle = deploy(app)
    assert by_handle.call({"do": "call", "x": 4}) == 8
    assert by_handle.call({"do": "stream", "x": 4}) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="not 4") as caught:
        by_handle.call({"do": "fail", "x": 4})
    assert rc.failed_stage(caught.value) == "f"
    with rc.local(rc.pipeline(handle, lambda x: x + 1)) as local:  # a Ray runs here
        assert local.call(1) == 3
    assert deploy(app.fuse()).call({"do": "call", "x": 4}) == 8


def test_another_application_streams(deploy: Any, client: Any) -> None:
    """``stream=True`` calls a generator; absent it is 503 before the first item."""
    streaming = deploy(
        rc.pipeline(rc.app("llm", "Doubler", method="numbers", stream=True), lambda x: x + 1)
    )
    run(Doubler.bind())
    assert list(streaming.stream(3)) == [1, 2, 3]
    serve.delete("llm")
    poll(lambda: requests.post(streaming.url, json=3, timeout=60).status_code == 503 or None)


def test_another_pipeline_is_a_stage(deploy: Any) -> None:
    """A pipeline that runs on its own, a streaming one too."""
    run(rc.pipeline(Doubler, lambda x: list(range(x))) | rc.each(lambda x: x + 1), "other")
    assert deploy(rc.pipeline(rc.app("other"), sum)).call(2) == 10
    serve.delete("other")


def test_an_application_that_calls_itself_is_refused(cluster: None) -> None:
    """It would wait for itself: its deployment fails, and says why."""
    with pytest.raises(RuntimeError):
        serve.run(rc.pipeline(rc.app("myself")), name="myself", route_prefix="/myself")
    message = serve.status().applications["myself"].deployments["Pipeline"].message
    serve.delete("myself")
    assert "it would call itself" in message


# --- Without Serve --------------------------------------------------------------------------------


APP = rc.pipeline(lambda x: x + 1, rc.app("llm"), rc.app("tools", "Search", method="find"))


class Search:
    def find(self, x: int) -> str:
        return f"found {x}"


class Hinted:
    def find(self, x: int) -> str:
        return f"hint {x}"


@pytest.mark.parametrize(
    ("apps", "result"),
    [
        ({"llm": lambda x: x * 10, "tools": serve.deployment(Search)}, "found 20"),
        ({"llm": rc.pipeline(lambda x: x, lambda x: -x), "tools": lambda x: x}, -2),
        ({"llm": abs, "tools": abs, "tools/Search": serve.deployment(Hinted).bind()}, "hint 2"),
    ],
)
def test_something_stands_in(apps: Any, result: Any) -> None:
    """``rc.local(app, apps=)`` runs whatever ``rc.stage`` takes in the other's place."""
    with rc.local(APP, apps=apps) as client:
        assert client.call(1) == result


def test_a_stand_in_goes_by_the_applications_name() -> None:
    """Errors name the stage, as they will when deployed."""

    def fails(x: Any) -> Any:
        raise ValueError("no")

    with rc.local(APP, apps={"llm": fails, "tools": abs}) as client:
        with pytest.raises(ValueError, match="no") as caught:
            client.call(1)
        assert rc.failed_stage(caught.value) == "llm"


def test_names_inside_a_stand_in_are_made_unique() -> None:
    """A deployment in it that is called as one of the pipeline's own is another."""
    stand_in = rc.pipeline(Tripler.options(name="Doubler").bind(), lambda x: x + 1)
    app = rc.pipeline(Doubler.bind(), rc.app("llm"))
    with rc.local(app, apps={"llm": stand_in}) as client:
        assert client.call(1) == 7


@pytest.mark.parametrize(
    ("apps", "message"),
    [
        ({"llm": abs, "tools": abs, "x": abs}, "'x', which the pipeline does not call; it calls"),
        ({"llm": "abs", "tools": abs}, "not a stage"),
        ({"llm": lambda x: (yield x), "tools": abs}, "streams, unlike rc.app"),
    ],
)
def test_a_wrong_stand_in_is_refused(apps: Any, message: str) -> None:
    """Names that are not called, what is no stage, and a stream for a value."""
    with pytest.raises(rc.RayComposeError, match=message):
        rc.local(APP, apps=apps)


@pytest.mark.parametrize("wrong", [("",), (1,), (None,), ("llm", ""), ("llm", 3)])
def test_a_wrong_name_is_refused(wrong: Any) -> None:
    """Names are non-empty texts."""
    with pytest.raises(rc.CompositionError, match="must be a non-empty str"):
        rc.app(*wrong)


def test_it_is_drawn_and_checked_without_a_cluster() -> None:
    """What runs elsewhere is in the pictures, by name, and cannot be fused."""
    tree = str(APP.graph)
    assert "llm  application" in tree
    assert "tools  application Search .find()" in tree
    assert "another application" in APP.graph.svg()
    assert repr(APP) == "Pipeline(lambda | llm | tools)"
    with pytest.raises(rc.CompositionError, match="no such deployment stage"):
        APP.fuse("llm")
