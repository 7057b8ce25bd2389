"""Affinity: the session id of a stage's calls, and Ray Serve's routers that go by it."""

# mypy does not see what Ray's decorators add: .bind.
# mypy: disable-error-code="attr-defined"

import os
from collections import defaultdict
from typing import Any

import pytest
import requests
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.context import _get_serve_request_context  # what a replica was told
from starlette.testclient import TestClient
from support import pickle_by_value
from support.cluster import HERE

import raycompose as rc

pickle_by_value(__name__)

STICKY = RequestRouterConfig(
    request_router_class="ray.serve.experimental.consistent_hash_router:ConsistentHashRouter",
    request_router_kwargs={"num_fallback_replicas": 0},  # not even when its replica is slow to say
)


@serve.deployment(**HERE)
class Asked:
    """Tells which session it was called in."""

    async def __call__(self, x: Any) -> str:
        return str(_get_serve_request_context().session_id)


@serve.deployment(
    num_replicas=3,
    max_ongoing_requests=100,
    request_router_config=STICKY,
    **HERE,
)
class Cached:
    """Tells which of the replicas has the user's cache."""

    async def __call__(self, x: Any) -> int:
        return os.getpid()


def by_length(x: dict[str, Any]) -> int:
    return len(x["user"])


def fails(x: Any) -> Any:
    raise LookupError("no user")


def nothing(x: Any) -> None:
    return None


@pytest.fixture(scope="module")
def client(deploy: Any) -> Any:
    asked = Asked.bind()
    return deploy(
        rc.switch(
            "do",
            {
                "own": asked,
                "two stages": rc.pipeline(asked, asked),
                "key": rc.stage(asked, affinity="user"),
                "function": rc.stage(asked, affinity=by_length, retry=2, timeout_s=20),
                "later": rc.stage(asked, affinity="user") | (lambda _: {"x": 1}) | asked,
                "reference": rc.pipeline(
                    rc.stage(asked, affinity="user"), rc.stage(asked, pass_by="reference")
                ),
                "cached": rc.stage(Cached.bind(), affinity="user"),
            },
        )
    )


def post(client: Any, body: Any, **headers: str) -> Any:
    return requests.post(client.url, json=body, headers=headers, timeout=60)


def test_the_requests_own_session_reaches_every_stage(client: Any) -> None:
    """``x-session-id`` and ``handle.options(session_id=)``, which Ray drops at each hop."""
    for do in ("own", "two stages"):
        assert post(client, {"do": do}, **{"x-session-id": "mine"}).text == "mine"
        handle = client.handle.options(session_id="by handle")
        assert handle.remote({"do": do}).result() == "by handle"
        assert post(client, {"do": do}).text == ""


@pytest.mark.parametrize(("do", "session"), [("key", "ann"), ("function", "3"), ("later", "mine")])
def test_a_stage_has_a_session_of_its_own(client: Any, do: str, session: str) -> None:
    """``affinity=`` sets it for one stage's calls; the others keep the request's."""
    body = {"do": do, "user": "ann"}
    assert post(client, body, **{"x-session-id": "mine"}).text == session


def test_each_user_has_a_replica(client: Any) -> None:
    """With Ray Serve's ConsistentHashRouter: 1,000 requests of 50 users, three replicas."""
    users = [{"do": "cached", "user": f"user {number % 50}"} for number in range(1000)]
    replicas = defaultdict(set)
    for body, replica in zip(users, client.map(users, max_concurrency=32), strict=True):
        replicas[body["user"]].add(replica)
    assert {len(seen) for seen in replicas.values()} == {1}
    assert len(set.union(*replicas.values())) == 3


def test_a_session_by_reference(client: Any) -> None:
    """A stage whose result is passed by reference keeps its session, and stays by reference."""
    assert post(client, {"do": "reference", "user": "ann"}).status_code == 200


@pytest.mark.parametrize(
    ("affinity", "value", "status", "error"),
    [
        (fails, {}, 500, LookupError),
        (nothing, {}, 500, TypeError),
        ("user", {}, 422, rc.HTTPError),
        ("user", {"user": True}, 500, TypeError),
        ("user", {"user": 7}, 200, None),
        ("user", {"user": "ann"}, 200, None),
    ],
)
def test_what_gives_the_session_may_fail(
    affinity: Any, value: Any, status: int, error: type[Exception] | None
) -> None:
    """It must give a str or a number; the stage is named in the error."""
    with rc.local(rc.stage(Asked, affinity=affinity)) as client:
        assert TestClient(client.asgi).post("/", json=value).status_code == status
        if error is None:
            assert isinstance(client.call(value), str)
            return
        with pytest.raises(error) as caught:
            client.call(value)
        assert rc.failed_stage(caught.value) == "Asked"


def test_the_object_of_several_parameters_has_keys() -> None:
    """A body that is spread over a first stage's parameters is looked into as it was sent."""

    async def ask(user: str, prompt: str) -> str:
        return f"{user}: {prompt}"

    with rc.local(rc.stage(ask, affinity="user")) as client:
        body = {"user": "ann", "prompt": "hello"}
        assert TestClient(client.asgi).post("/", json=body).text == "ann: hello"
        assert client.call(user="ann", prompt="hello") == "ann: hello"


@pytest.mark.parametrize("wrong", [1, ["user"], str, Asked])
def test_what_cannot_give_a_session_is_refused(wrong: Any) -> None:
    """``affinity=`` is a function or the name of a key."""
    with pytest.raises(rc.CompositionError, match=r"affinity=.* must be a function of the value"):
        rc.stage(Asked, affinity=wrong)


def test_a_stream_has_no_one_session() -> None:
    """A stage that takes a stream whole has no one value to ask."""

    async def all_of(items: rc.Stream[int]) -> int:
        return 1

    with pytest.raises(rc.CompositionError, match="takes a stream, which has no one session"):
        rc.stage(all_of, affinity="user")


def test_affinity_is_in_the_picture() -> None:
    """The tree says what a stage's sessions go by."""
    assert "affinity user" in str(rc.pipeline(rc.stage(Asked, affinity="user")).graph)
