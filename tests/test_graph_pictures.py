"""Pictures of graphs: the plain data, the tree, Mermaid, and an SVG in which nothing overlaps."""

# mypy does not see that @serve.deployment adds .bind.
# mypy: disable-error-code="attr-defined"

import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import serve
from ray.serve import Application

import raycompose as rc
from raycompose.compose.description import condition
from raycompose.show.shapes import Arrow, Box, Text, text_width
from raycompose.show.svg import layout


def deployment(name: str, **options: Any) -> Application:
    @serve.deployment(name=name, **options)
    class Stage:
        def __call__(self, x: Any) -> Any:
            return x

        def other(self, x: Any) -> Any:
            return x

    return Stage.bind()


@serve.deployment
class Enricher:
    async def __call__(self, ref: rc.Ref[str]) -> str:
        return await ref


@serve.deployment
class Tokens:
    def __call__(self, text: str) -> Iterator[str]:
        yield from text


@ray.remote  # type: ignore[untyped-decorator]  # Ray's
def archive(x: Any) -> Any:
    return x


def shorten(text: Any) -> Any:
    return text[:10]


RICH: rc.Pipeline[Any, Any] = (
    rc.pipeline(deployment("First", num_replicas=2, ray_actor_options={"num_gpus": 1}))
    .then(rc.parallel(text=Enricher.bind(), image=rc.stage(shorten, timeout_s=2.0, retry=3)))
    .then(rc.switch("language", {"es": deployment("Spanish"), "fr": shorten}, default=str.upper))
    .then(rc.when(lambda x: len(x) > 80, shorten))
    .then(rc.split((deployment("Stable"), 90), (deployment("Canary"), 10)))
    .then(rc.shadow(deployment("Mirror"), percent=20))
    .then(rc.each(rc.fallback(deployment("Big"), deployment("Small")), max_concurrency=4))
    .then(deployment("Typed", autoscaling_config={"min_replicas": 1, "max_replicas": 4}))
    .then(archive)
    .then(Tokens.bind(), retry=rc.Retry(attempts=2, on=(ValueError,)))
    .then(str.upper)
    .then(rc.collect)
    .then(rc.stage(rc.pipeline(len, deployment("Audit")), name="audit", timeout_s=1.5))
)


def test_a_graph_is_plain_data() -> None:
    """``to_dict()`` survives JSON, and says where each stage runs and how its input arrives."""
    described = RICH.graph.to_dict()
    assert json.loads(json.dumps(described)) == described
    first, branched, *_ = described["graph"]["steps"]
    assert (first["runs"], first["replicas"], first["resources"]["num_gpus"]) == (
        "deployment",
        2,
        1,
    )
    enricher, image = (branch["node"] for branch in branched["branches"])
    assert enricher["receives"] == "reference"
    assert image["limits"] == {"timeout_s": 2.0, "retry": {"attempts": 3}}
    received = [(s.get("name"), s["receives"]) for s in described["graph"]["steps"]]
    assert ("upper_2", "items") in received
    assert ("collect", "stream") in received


def test_every_picture_has_the_pipelines_own_deadline() -> None:
    """``app.options(timeout_s=)`` stands beside its replicas; without it nothing does."""
    graph = rc.pipeline(shorten).options(timeout_s=3, num_replicas=2).graph
    assert graph.to_dict()["timeout_s"] == 3
    for picture in (str(graph), graph.mermaid(), graph.svg()):
        assert "2 replicas" in picture
        assert "timeout 3 s" in picture
    assert "timeout" not in str(rc.pipeline(shorten).graph)


def test_the_settings_of_the_edge_are_in_the_picture() -> None:
    """What ``app.options`` sets of HTTP stands beside the replicas, and is in the plain data."""
    options = {"stream": "sse", "max_body_bytes": 1000, "debug": True}
    graph = rc.pipeline(shorten).options(**options).graph
    assert graph.to_dict().items() >= options.items()
    for picture in (str(graph), graph.mermaid(), graph.svg()):
        assert "1 replica · streams as sse · bodies up to 1000 bytes · debug" in picture


def test_what_has_one_branch_is_drawn_around_it() -> None:
    """So it is seen where it ends."""
    graph = rc.pipeline(rc.each(rc.pipeline(shorten, len), max_concurrency=4), len).graph
    assert 'subgraph g1["each<br/>4 at once"]' in graph.mermaid()
    assert "n3 --> n4" in graph.mermaid()
    assert "each · 4 at once" in graph.svg()
    assert 'class="frame"' in graph.svg()


def test_dashed_arrows_are_in_the_legend_where_there_are_some() -> None:
    """A mirrored branch, a loop's way back, and what goes by reference."""
    assert "mirrored, or again" in rc.shadow(shorten).graph.svg()
    assert "mirrored, or again" not in rc.parallel(shorten, len).graph.svg()


def test_the_tree_says_what_the_pipeline_is() -> None:
    """Every branch, condition, weight, limit, replica count and way of passing is in it."""
    text = str(RICH.graph)
    for expected in (
        "First  deployment · 2 replicas · 1 GPU · 1 CPU",
        "text: Enricher  deployment · 1 replica · 1 CPU · takes reference",
        "image: shorten  function · timeout 2 s · 3 attempts",
        "switch on language",
        "otherwise: upper  function",
        "when len(x) > 80",
        "no: passthrough",
        "90 %: Stable",
        "20 % mirrored: Mirror",
        "each  4 at once",
        "first: Big",
        "if that fails: Small",
        "Typed  deployment · 1 to 4 replicas · 1 CPU",
        "archive  Ray task",
        "2 attempts on ValueError · streams",
        "upper_2  function · takes each item",
        "audit  timeout 1.5 s",
    ):
        assert expected in text, text


def test_a_single_stage_and_a_method_are_drawn() -> None:
    """A pipeline of one stage has a picture too; a method other than ``__call__`` is named."""
    app = rc.stage(deployment("Model"), method="other", name="judge")
    assert (
        str(app.graph).splitlines()[1] == "└─ judge  deployment Model .other() · 1 replica · 1 CPU"
    )


def test_fused_stages_are_shown_in_one_replica() -> None:
    """Neighbours that are fused are in a frame of their own; the front asks for their CPU."""
    app = rc.pipeline(deployment("A"), deployment("B"), deployment("C")).fuse("A", "B")
    assert "A  fused" in str(app.graph)
    assert "in one replica" in app.graph.svg()
    assert app.graph.to_dict()["resources"] == {"num_cpus": 1}


def test_a_condition_is_a_lambda_s_own_expression() -> None:
    """Also of two on one line, and of one in a function that holds a variable."""
    limit = 3
    both = (lambda x: x > 1, lambda x: x < 1)
    assert [condition(f) for f in both] == ["x > 1", "x < 1"]
    assert condition(lambda x: x < limit) == "x < limit"
    assert condition(eval("lambda x: x")) == "lambda"
    assert condition(shorten) == "shorten"


def test_mermaid_has_an_arrow_for_every_way() -> None:
    """What Mermaid would read as its own is escaped; each branch goes on to the next stage."""
    text = (rc.pipeline(rc.when(lambda x: x["a"] < "<b>", shorten)) | archive).graph.mermaid()
    assert text.startswith("flowchart LR\n")
    assert '{{"when x[#39;a#39;] < "' not in text
    assert "x['a'] #60; '#60;b#62;'" in text
    names = set(re.findall(r"^  (\w+)[\[{(]", text, re.MULTILINE))
    arrows = re.findall(r"^  (\w+) (?:-->|-\.->)(?:\|\"[^\"]*\"\|)? (\w+)$", text, re.MULTILINE)
    assert {end for arrow in arrows for end in arrow} == names
    assert ("n1", "n3") in arrows, "the branch that changes nothing"


def test_a_pipeline_displays_as_its_picture() -> None:
    """Jupyter gets SVG, with Mermaid and text beside it; the SVG is well-formed and offline."""
    bundle = RICH._repr_mimebundle_()
    assert set(bundle) == {"image/svg+xml", "text/vnd.mermaid", "text/plain"}
    assert bundle["text/plain"] == repr(RICH)
    root = ET.fromstring(bundle["image/svg+xml"])
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme:dark" in bundle["image/svg+xml"]
    assert "href" not in bundle["image/svg+xml"]


def test_names_are_escaped() -> None:
    """A stage's name is text, never markup, and one that is long is shortened."""
    app = rc.pipeline(rc.stage(shorten, name="<script>&" + "x" * 100))
    svg = app.graph.svg()
    assert "&lt;script&gt;&amp;" in svg
    assert "…" in svg
    assert "<script" not in svg


STAGES = st.builds(
    lambda name, runs, receives, limits: {
        "kind": "stage",
        "name": name,
        "runs": runs,
        "receives": receives,
        "replicas": 2,
        "resources": {"num_cpus": 1},
        "limits": limits,
    },
    st.text(min_size=1, max_size=40),
    st.sampled_from(["deployment", "function", "fused", "task", "application"]),
    st.sampled_from(["value", "items", "reference", "stream", "request"]),
    st.sampled_from([{}, {"timeout_s": 2.0, "retry": {"attempts": 3, "on": ["ValueError"]}}]),
)
PASSTHROUGH = st.just({"kind": "passthrough", "name": "passthrough", "receives": "value"})


def _around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    steps = st.lists(inner, min_size=1, max_size=9)
    branches = st.lists(
        st.builds(lambda label, node: {"label": label, "node": node}, st.text(max_size=20), inner),
        min_size=1,
        max_size=4,
    )
    way = {"receives": "value"}
    return (
        st.builds(lambda s: {"kind": "sequence", "steps": s, **way}, steps)
        | st.builds(
            lambda s: {
                "kind": "named",
                "name": "part",
                "steps": s,
                "limits": {"timeout_s": 1},
                **way,
            },
            steps,
        )
        | st.builds(
            lambda kind, b: {"kind": kind, "name": kind, "branches": b, **way},
            st.sampled_from(["parallel", "split", "fallback", "race"]),
            branches,
        )
        | st.builds(
            lambda kind, b: {"kind": kind, "name": kind, "branches": b[:1], **way},
            st.sampled_from(["shadow", "each", "loop"]),
            branches,
        )
    )


GRAPHS = st.recursive(STAGES | PASSTHROUGH, _around, max_leaves=25)


@settings(max_examples=150, deadline=None)
@given(GRAPHS)
def test_nothing_overlaps_in_a_picture(graph: dict[str, Any]) -> None:
    """Whatever is nested in whatever: boxes, frames, words and lines keep out of each other."""
    check_layout({"name": "Pipeline", "replicas": 1, "graph": graph})


@pytest.mark.parametrize("count", [1, 2, 7, 30, 60])
def test_one_to_sixty_stages_do_not_overlap(count: int) -> None:
    """A long pipeline goes on in further rows, no wider than a page."""
    app = rc.pipeline(*(deployment(f"Stage{number}") for number in range(count)))
    check_layout(app.graph.to_dict())
    assert layout(app.graph.to_dict()).width < 1200


def test_the_pictures_of_a_rich_pipeline_do_not_overlap() -> None:
    """Every kind of node at once."""
    check_layout(RICH.graph.to_dict())


def check_layout(description: dict[str, Any]) -> None:
    picture = layout(description)
    boxes = [s for s in picture.shapes if isinstance(s, Box)]
    solid = [b for b in boxes if not b.kind.startswith("frame")]
    frames = [b for b in boxes if b.kind.startswith("frame")]
    for one in boxes:
        assert one.x >= -0.01
        assert one.y >= -0.01
        assert one.x + one.width <= picture.width + 0.01
        assert one.y + one.height <= picture.height + 0.01
        for line in one.lines:
            assert text_width(line, 11) <= one.width
    for one, other in itertools.combinations(solid, 2):
        assert not _overlap(one, other, 4), (one, other)
    for around, other in itertools.product(frames, boxes):
        assert (
            around is other
            or _inside(other, around)
            or _inside(around, other)
            or not _overlap(around, other, 0)
        )
    for arrow in (s for s in picture.shapes if isinstance(s, Arrow)):
        for start, end in itertools.pairwise(arrow.points):
            assert not any(_through(start, end, one) for one in solid), arrow
    words = [_words(s) for s in picture.shapes if isinstance(s, Text)]
    for one, other in itertools.product(words, solid):
        assert not _overlap(one, other, 0), (one, other)


def _words(text: Text) -> Box:
    width = text_width(text.words, 11)
    return Box(text.x - width / 2, text.y - 9, width, 10, "words")


def _overlap(one: Box, other: Box, margin: float) -> bool:
    across = one.x - margin < other.x + other.width and other.x - margin < one.x + one.width
    return across and (
        one.y - margin < other.y + other.height and other.y - margin < one.y + one.height
    )


def _inside(inner: Box, outer: Box) -> bool:
    return (
        outer.x <= inner.x
        and outer.y <= inner.y
        and inner.x + inner.width <= outer.x + outer.width
        and inner.y + inner.height <= outer.y + outer.height
    )


def _through(start: tuple[float, float], end: tuple[float, float], box: Box) -> bool:
    """Whether a line, straight across or down, passes through the inside of a box."""
    (left, right), (top, bottom) = sorted((start[0], end[0])), sorted((start[1], end[1]))
    return (
        left < box.x + box.width - 0.5
        and right > box.x + 0.5
        and top < box.y + box.height - 0.5
        and bottom > box.y + 0.5
    )


def test_the_readme_s_picture_is_its_pipeline_s() -> None:
    """``docs/pipeline.svg`` is what ``app.graph.svg()`` gives for the README's first block."""
    root = Path(__file__).parents[1]
    block = (root / "README.md").read_text().split("```python\n")[1].split("```")[0]
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), namespace)
    assert (root / "docs" / "pipeline.svg").read_text() == namespace["app"].graph.svg()


def test_what_calls_nothing_of_the_user_s_is_drawn() -> None:
    """A pick and a batch are steps of their own in each picture."""
    for app in (rc.pipeline(rc.pick("a", "b"), len), rc.pipeline(rc.batched(2), rc.collect)):
        picture = app.graph.svg()
        for step in app.graph.to_dict()["graph"]["steps"]:
            assert step["name"] in picture
