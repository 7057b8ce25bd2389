"""`raycompose call`, against a pipeline behind a plain HTTP server: no cluster is needed."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvicorn
from raycompose_cli.commands import app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from support.cluster import free_port
from typer.testing import CliRunner, Result

import raycompose as rc


def respond(value: dict[str, str]) -> dict[str, str]:
    if value.get("data") == "bad":
        raise rc.HTTPError(418, "no coffee here")
    return value


def words(text: str) -> Iterator[str]:
    yield from text.split()


def failing(text: str) -> Iterator[str]:
    yield "first"
    raise ValueError("broken midway")


async def ticking(n: int) -> AsyncIterator[str]:
    for number in range(n):
        yield f"tick {number}"
        await asyncio.sleep(0.1)


async def raw(request: Request) -> Response:
    body = await request.body()
    sent = request.headers.get("content-type", "")
    return Response(body + sent.encode(), media_type="application/octet-stream")


async def slow(request: Request) -> Response:
    def items() -> Iterator[str]:
        yield "begun"
        time.sleep(30)

    return StreamingResponse(items(), media_type="text/plain")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    served = Starlette(
        routes=[
            Route("/raw", raw, methods=["GET", "POST"]),
            Route("/slow", slow, methods=["GET", "POST"]),
            Mount("/words", rc.local(rc.pipeline(words)).asgi),
            Mount("/ticking", rc.local(rc.pipeline(ticking)).asgi),
            Mount("/failing", rc.local(rc.pipeline(failing)).asgi),
            Mount("/", rc.local(rc.pipeline(respond)).asgi),
        ]
    )
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(served, port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"127.0.0.1:{port}"
    server.should_exit = server.force_exit = True
    thread.join(10)


def typed(*arguments: str, given: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["call", *arguments], input=given)


def test_json_is_sent_from_the_line_a_file_or_standard_input(url: str, tmp_path: Path) -> None:
    """The address needs no scheme, and the answer is printed as it came."""
    file = tmp_path / "in.json"
    file.write_text('{"data": "hi"}')
    for given, stdin in (('{"data": "hi"}', None), (f"@{file}", None), ("-", '{"data": "hi"}')):
        done = typed(url, "-d", given, given=stdin)
        assert (done.exit_code, json.loads(done.output)) == (0, {"data": "hi"}), done.output


def test_bytes_and_files_are_sent(url: str, tmp_path: Path) -> None:
    """``--data-binary @file`` as it is, ``-F`` as a form with files in it."""
    file = tmp_path / "cat.png"
    file.write_bytes(b"\x00\xff\x01")
    done = typed(f"{url}/raw", "--data-binary", f"@{file}", "-H", "Content-Type: image/png")
    assert done.stdout_bytes == b"\x00\xff\x01image/png"
    done = typed(f"{url}/raw", "-F", f"image=@{file}", "-F", "name=cat")
    assert b'name="image"; filename="cat.png"' in done.stdout_bytes
    assert b"\x00\xff\x01" in done.stdout_bytes
    assert b'name="name"\r\n\r\ncat' in done.stdout_bytes
    saved = tmp_path / "out"
    assert typed(f"{url}/raw", "--data-binary", "abc", "-o", str(saved)).exit_code == 0
    assert saved.read_bytes() == b"abcapplication/octet-stream"


def test_streams_are_shown_item_by_item(url: str) -> None:
    """As server-sent events with ``--stream``, else as the application streams."""
    assert typed(f"{url}/words/", "-d", '"to be"', "--stream").output.split() == ["to", "be"]
    assert "to" in typed(f"{url}/words/", "-d", '"to be"').output
    done = typed(f"{url}/failing/", "-d", '"x"', "--stream")
    assert done.exit_code == 1
    assert "first" in done.output


@pytest.mark.parametrize("options", [("--stream",), ()])
def test_a_stream_ends_in_time(url: str, options: tuple[str, ...]) -> None:
    """``--timeout-s`` is for the whole answer, however often something comes."""
    began = time.monotonic()
    done = typed(f"{url}/ticking/", "-d", "300", "--timeout-s", "1", *options)
    assert time.monotonic() - began < 20
    assert done.exit_code == 1
    assert "tick 1" in done.output
    assert "the answer did not end within --timeout-s 1" in done.output


def test_problem_details_are_one_line_with_the_stage(url: str) -> None:
    """And the exit status is 1."""
    done = typed(url, "-d", '{"data": "bad"}')
    assert done.exit_code == 1
    assert "418 I'm a Teapot: no coffee here (stage respond" in done.output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("-d", "{data: 1}"), 2, "-d is not JSON: Expecting property name"),
        (("-d", "hello"), 2, """a text is written '"text"'"""),
        (("-d", "@/nowhere.json"), 2, "cannot read /nowhere.json: No such file"),
        (("--data-binary", "@/nowhere"), 2, "cannot read /nowhere: No such file"),
        (("-F", "image"), 2, "is not NAME=VALUE or NAME=@FILE"),
        (("-F", "image=@/nowhere"), 2, "cannot read /nowhere: No such file"),
        (("-H", "nonsense"), 2, "is not NAME: VALUE"),
        (("-d", "1", "-F", "a=b"), 2, "give one of -d, --data-binary and -F"),
        (("-d", "{}", "-o", "/nowhere/file"), 1, "cannot write /nowhere/file: No such file"),
    ],
)
def test_what_cannot_be_sent_is_one_line(
    url: str, arguments: tuple[str, ...], status: int, message: str
) -> None:
    """Nothing is sent of it, and there is no traceback."""
    done = typed(url, *arguments)
    assert done.exit_code == status, done.output
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_server_that_is_not_there_or_does_not_answer_is_one_line(url: str) -> None:
    """Refused, silent, or cut off within ``--timeout-s``."""
    done = typed(f":{free_port()}", "-d", "1")
    assert done.exit_code == 1
    assert "nobody answers at http://127.0.0.1:" in done.output
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        done = typed(f":{silent.getsockname()[1]}", "-d", "1", "--timeout-s", "0.5")
    assert done.exit_code == 1
    assert "no answer within --timeout-s 0.5" in done.output
    done = typed(f"{url}/slow", "--timeout-s", "0.5")
    assert done.exit_code == 1
    assert "no answer within --timeout-s 0.5" in done.output
    assert typed("http://[", "-d", "1").exit_code == 2
