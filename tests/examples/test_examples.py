"""Every file in examples/ runs: on the cluster over HTTP and by handle, and where cheap locally."""

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import requests
from ray import cloudpickle, serve
from starlette.testclient import TestClient
from support.cluster import Deploy

import raycompose as rc

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT_S = 60.0


Serving = Callable[[serve.Application], AbstractContextManager[rc.Client]]


@pytest.fixture(scope="module")
def serving(deploy: Deploy, end_later: Any) -> Serving:
    """Serve an application for the length of a block; it ends while the next one starts."""

    @contextmanager
    def serving(app: serve.Application) -> Iterator[rc.Client]:
        client = deploy(app)
        yield client
        end_later(client.close)

    return serving


@cache
def load(name: str) -> ModuleType:
    """Import an example. Its code is sent to the replicas, which cannot import it."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # annotations are resolved there
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    return module


def post(url: str | None, value: object) -> requests.Response:
    """Send a value as `curl -d` does: as JSON text, under the content type of a form."""
    assert url is not None
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    return requests.post(url, data=json.dumps(value), headers=form, timeout=TIMEOUT_S)


def get(url: str | None) -> str:
    """Return the body that a GET request is answered with."""
    assert url is not None
    response = requests.get(url, timeout=TIMEOUT_S)
    assert response.status_code == 200
    return response.text


@pytest.mark.parametrize("name", sorted(file.stem for file in EXAMPLES.glob("*.py")))
def test_every_example_has_a_test(name: str) -> None:
    """An example that no test is named after fails here."""
    streaming = Path(__file__).with_name("test_streaming_examples.py").read_text()
    tests = [*globals(), *re.findall(r"^def (test_\w+)", streaming, re.MULTILINE)]
    assert any(test.startswith(f"test_{name}_") for test in tests)


@pytest.mark.parametrize("name", sorted(file.stem for file in EXAMPLES.glob("*.py")))
def test_every_example_says_how_to_run_it(name: str) -> None:
    """An example's docstring has the command that runs it, with an application it defines."""
    module = load(name)
    words = (module.__doc__ or "").split()
    target, options = words[words.index("raycompose") + 2], words[words.index("raycompose") + 3 :]
    file, _, attribute = target.partition(":")
    assert file == name
    assert isinstance(getattr(module, attribute), serve.Application)
    assert options[:2] == ["--app-dir", "examples"]


def test_hello_on_the_cluster(serving: Serving) -> None:
    """The hello pipeline answers what its README line says, over HTTP and by handle."""
    with serving(load("hello").app) as client:
        response = post(client.url, {"data": "hello world"})
        assert response.status_code == 200
        assert response.text == "Final output: Inferred result: HELLO WORLD"
        result = client.handle.remote("hello world").result(timeout_s=TIMEOUT_S)
        assert result == "Final output: Inferred result: HELLO WORLD"


def test_hello_locally() -> None:
    """The hello pipeline gives the same without a cluster, by call and over HTTP."""
    client = rc.local(load("hello").app)
    assert client.call("hello world") == "Final output: Inferred result: HELLO WORLD"
    response = TestClient(client.asgi).post("/", json={"data": "hello world"})
    assert response.text == "Final output: Inferred result: HELLO WORLD"


def test_language_classifier_client_prints_hola_dora(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hand-written ingress answers its client script, in both languages and in neither."""
    example = load("language_classifier")
    printed: list[str] = []  # rather than all of stdout, where Ray writes, too
    monkeypatch.setattr(example, "print", printed.append, raising=False)
    with serving(example.app) as client:
        example.client(client.url)
        assert printed == ["Hola Dora"]
        french = post(client.url, {"language": "french", "name": "Dora"})
        assert french.text == "Bonjour Dora"
        german = post(client.url, {"language": "german", "name": "Dora"})
        assert german.text == "Please try again."


def test_language_classifier_as_a_stage() -> None:
    """The hand-written ingress is a stage like any other: its request may be a plain dict."""
    client = rc.local(load("language_classifier").app)
    assert client.call({"language": "spanish", "name": "Dora"}) == "Hola Dora"


@pytest.mark.parametrize("form", ["by_hand", "app"])
def test_adder_multiplier_gives_12(serving: Serving, form: str) -> None:
    """The hand-written ingress and `.then` both compute (5 + 1) * 2, here and by handle."""
    app = getattr(load("adder_multiplier"), form)
    with serving(app) as client:
        assert client.handle.remote(5).result(timeout_s=TIMEOUT_S) == 12
    assert rc.local(app).call(5) == 12


def test_adder_multiplier_over_http(serving: Serving) -> None:
    """The hand-written ingress takes a JSON number once it is a stage of a pipeline."""
    with serving(rc.pipeline(load("adder_multiplier").by_hand)) as client:
        assert post(client.url, 5).text == "12"
    with TestClient(rc.local(load("adder_multiplier").app).asgi) as local:
        assert local.post("/", json=5).text == "12"


def test_streaming_by_hand_gives_every_number_in_order(serving: Serving) -> None:
    """The hand-written caller streams the ten numbers, by handle and here."""
    app = load("streaming").by_hand
    with serving(app) as client:
        items = client.handle.options(stream=True).remote(10)
        assert list(items) == list(range(10))
    assert list(rc.local(app).stream(10)) == list(range(10))


def test_streaming_pipeline_gives_every_number_in_order(serving: Serving) -> None:
    """The pipeline streams the ten numbers by handle and here, and as JSON lines over HTTP."""
    app = load("streaming").app
    with serving(app) as client:
        items = client.handle.options(stream=True).remote(10)
        assert list(items) == list(range(10))
        response = post(client.url, 10)
        assert response.headers["content-type"].startswith("application/x-ndjson")
        assert [json.loads(line) for line in response.iter_lines()] == list(range(10))
    assert list(rc.local(app).stream(10)) == list(range(10))


@pytest.mark.parametrize(("form", "way"), [("by_value", "value"), ("app", "reference")])
def test_by_reference_delivers_the_result(serving: Serving, form: str, way: str) -> None:
    """The model gets the preprocessor's result by value, or by reference, as it asks for it."""
    expected = f"Got result by {way}: 'Hello from preprocessor!'"
    app = getattr(load("by_reference"), form)
    with serving(app) as client:
        assert client.handle.remote().result(timeout_s=TIMEOUT_S) == expected
        assert get(client.url) == expected
    assert rc.local(app).call() == expected


def test_by_reference_by_hand(serving: Serving) -> None:
    """A hand-written ingress passes a response by value, and inside a list by ``rc.by_ref``."""
    app = load("by_reference").by_hand
    with serving(app) as client:
        for way in ("value", "reference"):
            expected = f"Got result by {way}: 'Hello from preprocessor!'"
            assert client.handle.remote(mode=f"by_{way}").result(timeout_s=TIMEOUT_S) == expected
            assert rc.local(app).call(mode=f"by_{way}") == expected


@pytest.mark.parametrize("form", ["by_hand", "app"])
def test_object_ref_reaches_the_task(serving: Serving, form: str) -> None:
    """The Ray task gets what the deployment said, by hand and as a pipeline."""
    app = getattr(load("object_ref"), form)
    with serving(app) as client:
        result = client.handle.remote().result(timeout_s=TIMEOUT_S)
        assert result == "Ray task got message: 'Hi from Serve deployment'"
        if isinstance(app, rc.Pipeline):  # by hand the ingress would be given the request
            assert get(client.url) == result
            assert rc.local(app).call() == result


def test_routing_answers_in_the_visitors_language(serving: Serving) -> None:
    """Every visitor of a 75 % Spanish crowd is greeted in their language, by 3 + 1 replicas."""
    with serving(load("routing").app) as client:
        deployments = serve.status().applications[client.handle.app_name].deployments
        replicas = {name: info.replica_states for name, info in deployments.items()}
        assert replicas["SpanishResponder"] == {"RUNNING": 3}
        assert replicas["FrenchResponder"] == {"RUNNING": 1}

        visitors = [(("spanish", "Hola"), ("french", "Bonjour"))[n % 4 == 3] for n in range(20)]
        answers = [
            post(client.url, {"language": language, "name": f"Dora {n}"}).text
            for n, (language, _) in enumerate(visitors)
        ]
        assert answers == [f"{hello} Dora {n}" for n, (_, hello) in enumerate(visitors)]

        german = client.handle.remote(language="german", name="Dora")
        assert german.result(timeout_s=TIMEOUT_S) == "Please try again."


def test_routing_refuses_a_visitor_without_a_name() -> None:
    """What the first stage's parameters do not find in the body is the client's error."""
    response = TestClient(rc.local(load("routing").app).asgi).post("/", json={"language": "french"})
    assert response.status_code == 422
    assert response.json()["detail"] == "missing: name"


def test_ensemble_votes(serving: Serving) -> None:
    """The three models' votes are in the answer, and the majority is the species."""
    with serving(load("ensemble").app) as client:
        setosa = [5.1, 3.5, 1.4, 0.2]
        votes = {"bayes": "setosa", "neighbors": "setosa", "tree": "setosa"}
        assert post(client.url, setosa).json() == {"species": "setosa", "votes": votes}

        disputed = [6.0, 2.2, 5.0, 1.5]
        expected = rc.local(load("ensemble").app).call(disputed)
        assert client.handle.remote(disputed).result(timeout_s=TIMEOUT_S) == expected


def test_ensemble_majority_wins_locally() -> None:
    """When the models disagree the species is the one that two of them name."""
    client = rc.local(load("ensemble").app)
    grid = [[6.0, 2.2 + step / 10, 4.5 + step / 10, 1.5] for step in range(10)]
    answers = [client.call(flower) for flower in grid]
    disputed = [a for a in answers if len(set(a["votes"].values())) == 2]
    assert disputed
    for answer in disputed:
        assert Counter(answer["votes"].values())[answer["species"]] == 2


def test_canary_is_sticky_and_the_same_everywhere(serving: Serving) -> None:
    """A user always gets the same version: over HTTP, by handle and in another process."""
    users = [f"user-{n}" for n in range(30)]
    local = rc.local(load("canary").app)
    versions = {user: local.call(user, "map")[:2] for user in users}
    assert set(versions.values()) == {"v1", "v2"}
    with serving(load("canary").app) as client:
        for user, version in versions.items():
            answer = f"{version}: people who like map also like backpacks"
            assert post(client.url, {"user": user, "item": "map"}).text == answer
            by_handle = client.handle.remote(user, "map")
            assert by_handle.result(timeout_s=TIMEOUT_S) == answer


def test_canary_gets_a_tenth_of_the_users() -> None:
    """Of a thousand users 10 % see the new version, within 3 points."""
    client = rc.local(load("canary").app)
    versions = Counter(client.call(f"user-{n}", "map")[:2] for n in range(1000))
    assert 70 <= versions["v2"] <= 130


def test_cascade_asks_the_large_model_only_when_unsure(serving: Serving) -> None:
    """The small model's sure readings are final; of the others the large model's reading counts."""
    example = load("cascade")
    images, digits = example.test_images.tolist(), example.test_digits.tolist()
    local = rc.local(example.app)
    small = example.LinearDiscriminantAnalysis().fit(example.train_images, example.train_digits)
    sure = small.predict_proba(example.test_images).max(axis=1) >= 0.99
    readings = [local.call(image) for image in images]
    assert [r["model"] for r in readings] == ["small" if s else "large" for s in sure]
    right = np.mean([r["digit"] == digit for r, digit in zip(readings, digits, strict=True)])
    alone = small.score(example.test_images, example.test_digits)
    assert right > alone + 0.02

    picked = [int(np.flatnonzero(sure)[0]), int(np.flatnonzero(~sure)[0])]
    with serving(example.app) as client:
        for n in picked:
            assert post(client.url, images[n]).json() == pytest.approx(readings[n])
            result = client.handle.remote(images[n]).result(timeout_s=TIMEOUT_S)
            assert result == pytest.approx(readings[n])

        response = post(client.url, images[0][:63])
        assert response.status_code == 422
        assert response.json()["detail"] == "an image has 8 x 8 = 64 pixels, got 63"


def test_cascade_prints_an_image() -> None:
    """The example's script prints the image that its docstring pipes into curl."""
    script = [sys.executable, str(EXAMPLES / "cascade.py"), "33"]
    done = subprocess.run(script, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    assert json.loads(done.stdout) == load("cascade").test_images[33].tolist()


@pytest.mark.parametrize(
    ("form", "deployments"),
    [
        ("distributed", {"Pipeline", "Tokenizer", "Count", "Top"}),
        ("app", {"Pipeline"}),
        ("partly", {"Pipeline", "Count"}),
    ],
)
def test_fused_means_the_same_in_fewer_deployments(
    serving: Serving, form: str, deployments: set[str]
) -> None:
    """Each form answers alike, and Ray Serve runs as many deployments as the form says."""
    app = getattr(load("fused"), form)
    with serving(app) as client:
        status = serve.status().applications[client.handle.app_name]
        assert set(status.deployments) == deployments
        assert post(client.url, "The map! The map!").json() == ["map", "the"]
        result = client.handle.remote("One, two; two.").result(timeout_s=TIMEOUT_S)
        assert result == ["two", "one"]
    assert rc.local(app).call("The map! The map!") == ["map", "the"]


def test_fused_runs_as_a_script() -> None:
    """The example's script needs no cluster."""
    script = [sys.executable, str(EXAMPLES / "fused.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    assert done.stdout == "['map', 'the']\n"


def test_embedded_in_fastapi(serving: Serving) -> None:
    """The FastAPI ingress runs the pipeline for its own routes, and keeps its OpenAPI page."""
    with serving(load("embedded").app) as client:
        url = f"{client.url}headlines"
        response = requests.post(url, json={"text": "maps sing"}, timeout=TIMEOUT_S)
        assert response.json() == {"headline": "Maps Sing!"}
        assert requests.post(url, json={"text": ""}, timeout=TIMEOUT_S).status_code == 422
        assert "Headlines - Swagger UI" in get(f"{client.url}docs")
        assert "/headlines" in json.loads(get(f"{client.url}openapi.json"))["paths"]
        status = serve.status().applications[client.handle.app_name]
        assert set(status.deployments) == {"Api", "Titler"}

        draft = load("embedded").Draft(text="maps sing")
        result = client.handle.headline.remote(draft).result(timeout_s=TIMEOUT_S)
        assert result.headline == "Maps Sing!"


def local(name: str, **options: Any) -> Any:
    """An example's application on the local engine, with an HTTP client."""
    client = rc.local(load(name).app, **options)
    return client, TestClient(client.asgi)


def test_sessions_stay_on_their_replica(serving: Serving) -> None:
    """What a user said is all there, although there are two replicas."""
    with serving(load("sessions").app) as client:
        for number in range(1, 5):
            for user in ("dora", "ann", "bo"):
                said = post(client.url, {"user": user, "says": str(number)}).json()
                assert said == [str(n) for n in range(1, number + 1)]


def test_refine_goes_on_until_it_is_good() -> None:
    """Three rounds make the critic content."""
    client, _ = local("refine")
    assert client.call("rain") == "rain. And better. And better. And better."


def test_enrich_leaves_out_what_is_late() -> None:
    """Slow reviews are left out, and the short description is for those in a hurry."""
    client, http = local("enrich")
    page = client.call({"id": 8})
    assert page == {
        "id": 8,
        "price": 17.5,
        "reviews": ["It works."],
        "description": "The product that everybody calls number 8.",
    }
    hurried = http.post("/", json={"id": 7}, headers={"x-request-timeout-seconds": "1"}).json()
    assert (hurried["reviews"], hurried["description"]) == ([], "A product.")


def test_providers_answer_once() -> None:
    """The near one wins, or the far one when it stalls."""
    client, _ = local("providers")
    assert {client.call("now?") for _ in range(20)} <= {"near: now?", "far: now?"}


def test_teams_deploy_apart(serving: Serving) -> None:
    """The pipeline is deployed first and answers 503; then the translator comes."""
    module = load("teams")
    with serving(module.app) as client:
        absent = post(client.url, "Good day")
        assert (absent.status_code, absent.json()["stage"]) == (503, "translator")
        serve.run(module.translator, name="translator", route_prefix="/translator")
        assert post(client.url, "Good day").text == "¡buen día!"
        serve.delete("translator")
    stand_in, _ = local("teams", apps={"translator": str.upper})
    assert stand_in.call("Good day") == "¡GOOD DAY!"


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_every_example_can_be_drawn(name: str) -> None:
    """As each of the pictures that `raycompose draw` and a notebook show."""
    app = getattr(load(name), "app", None)
    if isinstance(app, rc.Pipeline):
        drawn = app.graph.pictures()
        assert "<svg" in drawn["image/svg+xml"]
        assert "flowchart" in drawn["text/vnd.mermaid"]
        assert app.graph.to_dict()["name"] in drawn["text/plain"]


def test_embeddings_come_in_batches() -> None:
    """Three sentences come in order, at most two at once: how many is a matter of time."""
    client, http = local("embeddings")
    sent = [json.loads(line) for line in http.post("/", json="One. Two 3. No.").text.splitlines()]
    for batches in (list(client.stream("One. Two 3. No.")), sent):
        assert list(itertools.chain(*batches)) == [[3.0, 0.0], [5.0, 1.0], [2.0, 0.0]]
        assert all(len(batch) <= 2 for batch in batches)


def test_support_desk_routes_on_a_model() -> None:
    """The classifier decides, and the branch gets the message with its mood."""
    _, http = local("support_desk")
    refund = http.post("/", json={"text": "My money back!"})
    assert refund.text == "We are very sorry. Your refund is on its way."
    assert http.post("/", json={"text": "It is broken"}).text.startswith("Have you tried")
