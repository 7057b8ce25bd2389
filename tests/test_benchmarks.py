"""The benchmarks run; what they find is not asserted, for machines differ."""

import asyncio
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import peers
from benchmarks.load import Sender, closed_loop
from benchmarks.pages import BEGIN, END, markdown, replaced
from benchmarks.peers import Peer
from benchmarks.profiling import Profile, Stacks, owner, summary
from benchmarks.registry import Registry, UnknownRowError
from benchmarks.results import Line, at_least, at_most, machine, table
from benchmarks.rounds import Bench, best
from benchmarks.samples import Sample, Tally
from benchmarks.sites import Sites
from rich.console import Console

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_row_is_measured(tmp_path: Path) -> None:
    """The cheapest row, in one short round: it is in the table, and in the file with samples."""
    out = tmp_path / "benchmarks.json"
    ran = run("--rows", "6b", "--rounds", 2, "--seconds", 0.01, "--out", out)
    assert ran.returncode == 0, ran.stderr
    assert "extra cost of timeout_s" in ran.stdout.rpartition("target")[2]
    found = json.loads(out.read_text())
    assert found["versions"]["ray"]
    assert [len(line["ours"]) for line in found["lines"]] == [2] * 4


def test_a_row_that_does_not_exist_is_wrong_usage() -> None:
    """One line names the rows; nothing is measured."""
    ran = run("--rows", "3,17")
    assert ran.returncode == 2
    (line,) = ran.stdout.splitlines()
    assert line.startswith(
        "no row 17: the rows are 1, 1b, 2, 3, 3b, 4, 5, 6, 6b, 7, 7b, 8, 9, 10, 11,"
    )


def test_rows_are_selected_by_number() -> None:
    """``3`` is not ``3b``; nothing selects what always runs, ``all`` everything."""
    registry = Registry()
    for number in ("3", "3b"):
        registry.row(number, "")(lambda _: iter(()))
    registry.row("size", "", optional=True)(lambda _: iter(()))
    assert [row.number for row in registry.select("3")] == ["3"]
    assert [row.number for row in registry.select("size,3b")] == ["3b", "size"]
    assert [row.number for row in registry.select("")] == ["3", "3b"]
    assert len(registry.select("all")) == 3
    with pytest.raises(UnknownRowError, match="no row 4: the rows are 3, 3b, size"):
        registry.select("3,4")


def test_ways_take_turns() -> None:
    """Every way once a round, every other round backwards; the first round does not count."""
    order: list[str] = []

    def way(name: str, value: float) -> Sample:
        order.append(name)
        return Sample(value)

    found = Bench(Sites(), rounds=2).alternate({"a": lambda: way("a", 1), "b": lambda: way("b", 2)})
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert [sample.value for sample in found["b"]] == [2, 2]
    assert best(found, "a", "b") == "b"


def test_a_way_that_fails_is_not_the_best() -> None:
    """Unless all do."""
    found = {"fast": [Sample(9, failed=1)], "slow": [Sample(1)]}
    assert best(found, "fast", "slow") == "slow"
    assert best(found, "fast") == "fast"


def test_a_target_is_of_the_median_of_the_ratios() -> None:
    """Round by round, for the machine may be slower in some."""
    ours, theirs = [Sample(20), Sample(2), Sample(30)], [Sample(10), Sample(1), Sample(10)]
    line = Line("1", "", "/s", ours, theirs, target=at_least(2))
    assert line.ratios == [2, 2, 3]
    assert (line.figure, line.status) == (2, "met")
    line = Line("1", "", "/s", ours, theirs, target=at_least(2.1))
    assert (line.status, line.verdict) == ("missed", "missed, within the spread")
    assert Line("1", "", "/s", ours, theirs, target=at_least(4)).verdict == "missed"
    assert Line("6", "", "µs", ours, target=at_most(5)).status == "missed"
    assert Line("7b", "", "/s", ours, theirs).status == "no target"


def test_the_page_says_what_the_file_says() -> None:
    """Machine, date, every line; what else stands on the page stays."""
    line = Line("3", "fast", "/s", [Sample(3)], [Sample(1)], "theirs", at_least(2), note="a | b")
    found = {**machine(), "rounds": 1, "seconds": 2.0, "lines": [line.to_dict()]}
    found = json.loads(json.dumps(found))
    assert Line.from_dict(found["lines"][0]) == line
    page = replaced(f"before\n{BEGIN}\nold\n{END}\nafter", markdown(found))
    assert "| 3 | fast (a / b) | 3 /s | 1 /s (theirs) | 3 (3..3) | ≥ 2 | met |" in page
    assert found["date"][:10] in page
    assert "old" not in page
    assert page.startswith("before\n")
    assert page.endswith("\nafter")


def test_the_documentation_says_what_was_measured_last() -> None:
    """The page's table is the one of the results that are kept beside it."""
    kept, page = DOCS / "benchmarks.json", DOCS / "how-to" / "speed.md"
    if kept.exists():
        assert markdown(json.loads(kept.read_text())) in page.read_text()


def test_a_failed_request_misses_the_target() -> None:
    """However fast the others were."""
    line = Line("3", "", "/s", [Sample(9, failed=1)], [Sample(1)], target=at_least(2))
    assert (line.status, line.failed) == ("missed", 1)
    assert Line("3(c)", "", "/s", [], note="no network").status == "not measured"


def test_a_peer_that_cannot_be_installed_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a network its rows have the reason, and the others run."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(peers, "VENV", tmp_path)
    peer = Peer("litserve", "litserve_api.py")
    with peer.running() as server:
        assert server.url == ""
    assert re.match(r"litserve==\S+ cannot be installed: \S+", server.reason)
    with pytest.raises(OSError, match="cannot be installed"):
        peer.measured()


def test_the_table_says_what_was_compared() -> None:
    """With the spread of the rounds; a peer that is not there has the reason in its line."""
    ours, theirs = [Sample(2), Sample(4)], [Sample(1), Sample(1)]
    told = Line("7b", "[tokens]", "/s", ours, theirs, "the front")
    peer = Line("5", "fuse()", "/s", [], note="litserve==1 cannot be installed: no network")
    screen = Console(width=140, file=io.StringIO())
    screen.print(table([told, peer]))
    shown = screen.file.getvalue()  # type: ignore[attr-defined]  # the StringIO
    for text in ("[tokens]", "3 (2..4)", "no target", "the front", "not measured", "no network"):
        assert text in shown
    assert str(told) == "7b: [tokens]: 3 /s against 1 /s (the front), 3 (2..4): no target"


def test_a_tally_counts_right_answers_and_the_reasons_of_others() -> None:
    """Their times are its percentiles."""
    tally = Tally()
    for took_s in (0.1, 0.2, 0.3):
        tally.succeeded(took_s)
    tally.failed("HTTP 500")
    sample = tally.sample()
    assert sample.details == {
        "requests": 3, "p50_ms": 200, "p99_ms": pytest.approx(300), "failures": {"HTTP 500": 1}
    }  # fmt: skip
    assert sample.failed == 1


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request after another with its body; end the connection at "end"."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            if body == b'"end"':
                break
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (length, body))
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("body", "expected", "failure"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1}, {"a": 2}, "HTTP 200"),
        ("end", "end", "the server closed it"),
    ],
)
def test_the_load_counts_right_answers_alone(body: Any, expected: Any, failure: str | None) -> None:
    """Whatever else comes back, or nothing, is a failed request with the reason."""

    async def load_once() -> Sample:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server:
            sender = Sender(f"http://{host}:{port}/", body, expected, "*/*")
            sample = await closed_loop(sender, 2, 0.05)
            sender.close()
            answering = asyncio.all_tasks() - {asyncio.current_task()}
            if answering:  # each until its connection is closed
                await asyncio.wait(answering, timeout=10)
            await asyncio.sleep(0.05)  # as long as the loop takes to close the sender's
        return sample

    sample = asyncio.run(load_once())
    assert (sample.failed > 0, sample.details["requests"] > 0) == (bool(failure), not failure)
    assert not failure or failure in next(iter(sample.details["failures"]))


def test_a_profile_tells_whose_code_ran(tmp_path: Path) -> None:
    """By the innermost frame; functions above it are counted once a stack."""
    raw = tmp_path / "raw"
    raw.write_text(
        "main (ray/serve/_private/replica.py:1);run (raycompose/graph/nodes.py:7);"
        "run (raycompose/graph/nodes.py:9) 3\n"
        "main (ray/serve/_private/replica.py:1);loads (json/decoder.py:1) 1\n"
    )
    stacks = Stacks.read(raw)
    assert stacks.total == 4
    assert stacks.owners() == {"raycompose": 3, "json": 1}
    assert stacks.under("raycompose") == {"run (raycompose/graph/nodes.py)": 3}
    seen = Profile(Sample(100), stacks, {"front": 0.4, "haproxy": 0.1}, "front")
    shown = "\n".join(summary("fused", seen))
    assert "0.400 ms  front" in shown
    assert "300.0 µs   75.0%  raycompose" in shown
    assert owner("f (/x/lib/site-packages/ray/_raylet.py:1)") == "Ray"
