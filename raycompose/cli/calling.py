"""``raycompose call``: a request to a running application, and its answer as it comes."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import typer

from .loading import Problem

LOCAL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Request:
    """A request, as the options of ``raycompose call`` say; see its ``--help``."""

    url: str
    data: str | None = None
    data_binary: str | None = None
    form: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    method: str | None = None
    stream: bool = False
    output: str | None = None
    timeout_s: float | None = None


def call(request: Request) -> int:
    """Send the request, show its answer, and return the exit status.

    Raises:
        Problem: The request is malformed, or there is no answer.
    """
    headers = dict(map(_header, request.headers))
    if request.stream:
        headers.setdefault("Accept", "text/event-stream")
    with ExitStack() as files:
        body = _body(request, files, headers)
        method = request.method or ("POST" if body else "GET")
        url = absolute(request.url)
        timeout = (min(request.timeout_s or 10, 10), request.timeout_s)
        began = time.monotonic()
        try:
            # No proxies of the environment: what is called runs here, or nearby.
            with requests.Session() as session:
                session.trust_env = False
                answer = session.request(
                    method, url, headers=headers, stream=True, timeout=timeout, **body
                )
                with answer:
                    if request.timeout_s is not None:
                        _limit(answer, began, request.timeout_s)
                    return show(answer, request.output)
        except requests.ConnectTimeout as error:
            raise Problem(f"{url} does not answer") from error
        except (requests.ReadTimeout, requests.exceptions.ChunkedEncodingError) as error:
            late = "Read timed out" in str(error)
            raise Problem(
                f"{url}: no answer within --timeout-s {request.timeout_s:g}"
                if late and request.timeout_s
                else f"{url}: the answer was cut off"
            ) from error
        except requests.ConnectionError as error:
            if "timed out" in str(error):
                raise Problem(f"{url}: no answer within --timeout-s {request.timeout_s}") from error
            raise Problem(
                f"nobody answers at {url}: `raycompose run MODULE:ATTRIBUTE` starts an application"
            ) from error
        except (requests.RequestException, UnicodeError) as error:
            raise Problem(f"{url}: {error}", status=2) from error


def _limit(answer: requests.Response, began: float, timeout_s: float) -> None:
    """Have the answer end in time: ``requests`` itself limits each wait for a piece of it."""
    pieces = answer.iter_content

    def limited(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for piece in pieces(*args, **kwargs):
            if time.monotonic() > began + timeout_s:
                raise Problem(f"the answer did not end within --timeout-s {timeout_s:g}")
            yield piece

    # All that requests offers reads through it.
    answer.iter_content = limited  # type: ignore[method-assign]  # of this one answer


def absolute(url: str) -> str:
    """Return where to send a request: a path alone is on this machine, at the default port.

    >>> absolute("/chat"), absolute("host:9000/chat"), absolute(":9000")
    ('http://127.0.0.1:8000/chat', 'http://host:9000/chat', 'http://127.0.0.1:9000/')
    """
    if url.startswith("/"):
        return LOCAL + url
    if url.startswith(":"):
        url = f"127.0.0.1{url}"
    if "://" not in url:
        url = f"http://{url}"
    return url if "/" in url.partition("://")[2] else f"{url}/"


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise Problem(f"-H {line!r} is not NAME: VALUE", status=2)
    return name.strip(), value.strip()


def _body(request: Request, files: ExitStack, headers: dict[str, str]) -> dict[str, Any]:
    """The body, as ``requests`` takes it; empty for none."""
    given = [request.data is not None, request.data_binary is not None, bool(request.form)]
    if sum(given) > 1:
        raise Problem("give one of -d, --data-binary and -F", status=2)
    if request.data is not None:
        headers.setdefault("Content-Type", "application/json")
        return {"data": _json(request.data)}
    if request.data_binary is not None:
        headers.setdefault("Content-Type", "application/octet-stream")
        return {"data": _bytes(request.data_binary)}
    parts = [_part(part, files) for part in request.form]
    return {"files": parts} if parts else {}


def _bytes(given: str) -> bytes:
    """What is given itself, the content of ``@file``, or of standard input for ``@-`` and ``-``."""
    if given in ("-", "@-"):
        return sys.stdin.buffer.read()
    if not given.startswith("@"):
        return given.encode()
    try:
        return Path(given[1:]).read_bytes()
    except OSError as error:
        raise Problem(f"cannot read {given[1:]}: {error.strerror}", status=2) from error


def _json(given: str) -> bytes:
    body = _bytes(given)
    try:
        json.loads(body)
    except ValueError as error:
        hint = "" if given[:1] in "@-{[" else """; a text is written '"text"'"""
        raise Problem(f"-d is not JSON: {error}{hint}", status=2) from error
    return body


def _part(given: str, files: ExitStack) -> tuple[str, Any]:
    """A part of a form: ``name=value``, or ``name=@file``."""
    name, equals, value = given.partition("=")
    if not (name and equals):
        raise Problem(f"-F {given!r} is not NAME=VALUE or NAME=@FILE", status=2)
    if not value.startswith("@"):
        return name, (None, value)
    try:
        return name, (Path(value[1:]).name, files.enter_context(Path(value[1:]).open("rb")))
    except OSError as error:
        raise Problem(f"cannot read {value[1:]}: {error.strerror}", status=2) from error


def show(answer: requests.Response, output: str | None = None) -> int:
    """Show an answer as it comes, and return the exit status.

    Args:
        answer: Whose body has not been read.
        output: A file for the body, instead of standard output.
    """
    kind = answer.headers.get("Content-Type", "").partition(";")[0]
    if answer.status_code >= 400:
        typer.secho(problem(answer, kind), fg="red", err=True)
        return 1
    if output is not None:
        return _save(answer, output)
    if kind == "text/event-stream":
        return _events(answer)
    if kind == "application/json" and sys.stdout.isatty():
        _pretty(answer)
    elif kind.startswith("text/") or kind in ("application/json", "application/x-ndjson", ""):
        answer.encoding = answer.encoding or "utf-8"
        for piece in answer.iter_content(chunk_size=None, decode_unicode=True):
            _write(piece if isinstance(piece, str) else piece.decode("utf-8", "replace"))
        if sys.stdout.isatty():
            typer.echo()
    elif sys.stdout.isatty():
        size = len(answer.content)
        typer.echo(f"{kind}, {size} bytes: save it with -o FILE")
    else:
        for chunk in answer.iter_content(chunk_size=None):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    return 0


def problem(answer: requests.Response, kind: str) -> str:
    """Return an error answer in a line: its status, what it says, the stage and the request."""
    said: Any = answer.text.strip()
    about = ""
    if kind == "application/problem+json":
        details = answer.json()
        said = details.get("detail") or ""
        if not isinstance(said, str):
            said = json.dumps(said, ensure_ascii=False)
        parts = [f"{k.replace('_id', '')} {details[k]}" for k in ("stage", "request_id")
                 if details.get(k)]  # fmt: skip
        about = f" ({', '.join(parts)})" if parts else ""
    status = f"{answer.status_code} {answer.reason}"
    return f"{status}: {said}{about}" if said else f"{status}{about}"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _pretty(answer: requests.Response) -> None:
    from rich.console import Console

    try:
        Console(soft_wrap=True).print_json(answer.text)
    except ValueError:  # not the JSON that it says it is
        typer.echo(answer.text)


def _save(answer: requests.Response, output: str) -> int:
    try:
        with Path(output).open("wb") as file:
            for chunk in answer.iter_content(chunk_size=None):
                file.write(chunk)
    except OSError as error:
        if isinstance(error, requests.RequestException):
            raise
        raise Problem(f"cannot write {output}: {error.strerror}") from error
    typer.echo(f"{output} is written.")
    return 0


def _events(answer: requests.Response) -> int:
    """Print the data of each server-sent event; one that is called ``error`` is one."""
    for name, data in events(answer.iter_lines(chunk_size=1)):
        if name == "error":
            typer.secho(data, fg="red", err=True)
            return 1
        typer.echo(data)
        sys.stdout.flush()
    return 0


def events(lines: Iterator[bytes]) -> Iterator[tuple[str, str]]:
    r"""Give the name and the data of server-sent events.

    >>> list(events(iter([b"data: a", b"data: b", b"", b"event: error", b"data: c", b""])))
    [('message', 'a\nb'), ('error', 'c')]
    """
    name, data = "message", list[str]()
    for line in lines:
        field, _, value = line.decode("utf-8", "replace").partition(":")
        if not line:
            if data:
                yield name, "\n".join(data)
            name, data = "message", []
        elif field == "data":
            data.append(value.removeprefix(" "))
        elif field == "event":
            name = value.strip()
