"""The code of the text that `.then` comes from, word for word, and what the text says of requests.

The copies in tests/seeds/ run as a script would; the one for `.then` has `import raycompose` added.
"""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from ray import serve
from starlette.requests import Request
from starlette.testclient import TestClient
from support.cluster import Deploy

import raycompose as rc

SEEDS = Path(__file__).parent / "seeds"
TEXT = Path(__file__).parents[2] / "shared" / "seeds" / "then-pipelines.txt"
INPUT = {"data": "hello world"}
ANSWER = "Final output: Inferred result: HELLO WORLD"
TIMEOUT_S = 60.0


def run_seed(name: str) -> dict[str, Any]:
    """Run a copy as `python name.py` does, on the tests' cluster, and return what it defines."""
    return runpy.run_path(str(SEEDS / f"{name}.py"), run_name="__main__")


def post(client: rc.Client, *, path: str = "", **options: Any) -> requests.Response:
    """Send a POST request to where the client's application answers."""
    assert client.url is not None
    return requests.post(f"{client.url}{path}", timeout=TIMEOUT_S, **options)


@pytest.fixture(scope="class")
def then_app(cluster: None) -> Iterator[rc.Pipeline[Any, Any]]:
    """Run the block, which deploys its `app` as Ray Serve's default application."""
    yield run_seed("then_pipeline")["app"]
    serve.delete("default")


@pytest.fixture
def then_client(then_app: rc.Pipeline[Any, Any]) -> rc.Client:
    """Connect to what the block deployed."""
    return rc.connect()


class TestThenPipeline:
    """The first code block: three deployments composed with `.then`."""

    def test_answers_over_http(self, then_client: rc.Client) -> None:
        """A POST of the text's input gives what the three stages make of it."""
        response = post(then_client, json=INPUT)
        assert response.status_code == 200
        assert response.text == ANSWER

    @pytest.mark.parametrize("value", [INPUT, INPUT["data"]])
    def test_answers_by_handle(self, then_client: rc.Client, value: Any) -> None:
        """A plain value, or an object that holds it, is the first stage's request."""
        assert then_client.handle.remote(value).result(timeout_s=TIMEOUT_S) == ANSWER

    def test_every_stage_is_a_deployment(self, then_client: rc.Client) -> None:
        """Ray Serve runs each stage under the name that its author gave it, and one in front."""
        deployments = serve.status().applications["default"].deployments
        assert set(deployments) == {"Pipeline", "Preprocessor", "Model", "Postprocessor"}

    def test_answers_as_a_single_unit(
        self, then_app: rc.Pipeline[Any, Any], deploy: Deploy
    ) -> None:
        """Fused, the same pipeline is one deployment, and answers alike."""
        client = deploy(then_app.fuse())
        assert post(client, json=INPUT).text == ANSWER
        status = serve.status().applications[client.handle.app_name]
        assert set(status.deployments) == {"Pipeline"}

    def test_answers_locally(self, then_app: rc.Pipeline[Any, Any]) -> None:
        """Without a cluster the pipeline answers alike, by call and over HTTP."""
        client = rc.local(then_app)
        assert client.call("hello world") == ANSWER
        assert TestClient(client.asgi).post("/", json=INPUT).text == ANSWER


@pytest.fixture(scope="class")
def my_pipeline(cluster: None) -> Iterator[Any]:
    """Run the block, which deploys MyPipeline as Ray Serve's default application."""
    yield run_seed("single_deployment")["MyPipeline"]
    serve.delete("default")


@pytest.fixture(scope="class")
def my_client(my_pipeline: Any, deploy: Deploy) -> rc.Client:
    """Deploy it as a pipeline of one stage, too."""
    return deploy(rc.pipeline(my_pipeline.bind()))


class TestSingleDeployment:
    """The second code block: one deployment that calls functions of its own."""

    def test_answers_over_http_as_a_pipeline(self, my_client: rc.Client) -> None:
        """In a pipeline request.json()["data"] needs no await."""
        response = post(my_client, json=INPUT)
        assert response.status_code == 200
        assert response.text == ANSWER

    @pytest.mark.parametrize("value", [INPUT, INPUT["data"]])
    def test_answers_by_handle_as_a_pipeline(self, my_client: rc.Client, value: Any) -> None:
        """In a pipeline its request may be a plain string, or an object that holds it."""
        assert my_client.handle.remote(value).result(timeout_s=TIMEOUT_S) == ANSWER

    def test_answers_locally_as_a_pipeline(self, my_pipeline: Any) -> None:
        """Without a cluster it answers alike, by call and over HTTP."""
        client = rc.local(my_pipeline.bind())
        assert client.call("hello world") == ANSWER
        assert TestClient(client.asgi).post("/", json=INPUT).text == ANSWER

    def test_plain_ray_needs_an_await(self, my_pipeline: Any) -> None:
        """Ray Serve's own request gives a coroutine there, so the block alone answers an error."""
        assert post(rc.connect(), json=INPUT).status_code == 500


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Repeat:
    """Uses what the text says a request has: query parameters, headers, the body as a stream."""

    async def __call__(self, request: Request) -> dict[str, str]:
        word = b"".join([chunk async for chunk in request.stream()]).decode()
        times = int(request.query_params["times"])
        return {"data": word * times, "agent": request.headers["user-agent"]}


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Report:
    """A later stage: the body is the output of the stage before, the rest is the client's."""

    async def __call__(self, request: Request) -> dict[str, Any]:
        return {
            "json": await request.json(),
            "body": b"".join([chunk async for chunk in request.stream()]).decode(),
            "times": request.query_params["times"],
            "agent": request.headers["user-agent"],
            "cookie": request.cookies["flavour"],
            "method": request.method,
            "path": request.url.path,
        }


@pytest.fixture(scope="class")
def echo(deploy: Deploy) -> rc.Client:
    """Deploy a stage that reads the client's request, and one behind it that reads its own."""
    return deploy(Repeat.bind().then(Report.bind()))


@pytest.fixture(scope="class")
def answer(echo: rc.Client) -> Any:
    """Send one request that has everything."""
    response = post(
        echo,
        path="zoo/owls",
        data=b"hoo",
        params={"times": "2"},
        headers={"User-Agent": "owl/1.0"},
        cookies={"flavour": "oat"},
    )
    assert response.status_code == 200
    return response.json()


class TestRequests:
    """The text's last point: the request is a starlette Request, with all its features."""

    def test_the_first_stage_reads_the_body_as_a_stream(self, answer: Any) -> None:
        """request.stream() gives the body, query_params and headers what came with it."""
        assert answer["json"] == {"data": "hoohoo", "agent": "owl/1.0"}

    def test_a_later_stage_reads_the_output_before_it(self, answer: Any) -> None:
        """Its request.stream() gives, as JSON text, what `await request.json()` gives decoded."""
        assert answer["body"] == '{"data": "hoohoo", "agent": "owl/1.0"}'

    @pytest.mark.parametrize(
        ("part", "value"),
        [("times", "2"), ("agent", "owl/1.0"), ("cookie", "oat"), ("method", "POST")],
    )
    def test_a_later_stage_sees_the_original_request(
        self, answer: Any, part: str, value: str
    ) -> None:
        """Query parameters, headers, cookies and method are those that the client sent."""
        assert answer[part] == value

    def test_a_later_stage_sees_the_original_path(self, answer: Any) -> None:
        """So is the path behind the application's route prefix."""
        assert answer["path"].endswith("/zoo/owls")


def block(number: int) -> str:
    """Return one of the text's code blocks; each ends by deploying its application."""
    blocks = TEXT.read_text().split("from ray import serve\n")
    body, deploying, rest = blocks[number].partition("\nserve.run(")
    return f"from ray import serve\n{body}{deploying}{rest.splitlines()[0]}"


if TEXT.exists():

    @pytest.mark.parametrize(
        ("copy", "number", "added"),
        [("then_pipeline", 1, "import raycompose\n"), ("single_deployment", 2, "")],
    )
    def test_the_copy_agrees_with_the_text(copy: str, number: int, added: str) -> None:
        """A copy is the text's code block, white space and the added import aside."""
        code = (SEEDS / f"{copy}.py").read_text()
        assert code.startswith(added)
        assert code.removeprefix(added).split() == block(number).split()
