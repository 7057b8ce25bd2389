"""Bodies and queries that are malformed, enormous or hostile: the sender's fault, and said so."""

import contextlib
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.first_stages import floats, item, number, pair, variadic
from support.fuzz import examples
from support.local_http import CURL, ECHO, JSON, http, kind_and_value, problem

import raycompose as rc
from raycompose.flow.json import parse_json

# Malformed


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"a": }',
        b"nonsense",
        b"\xff\xfe\x00",
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": NaN}',
        b"Infinity",
        b"[-Infinity]",
        b'{"a": 1} trailing',
        b"9" * 10_000,
        b"'single'",
    ],
    ids=repr,
)
def test_malformed_json_is_a_400(body: bytes) -> None:
    """What is not valid JSON answers 400; NaN and Infinity are not JSON."""
    detail = problem(ECHO.post("/", content=body, headers=JSON), 400)["detail"]
    assert "JSON" in detail


@pytest.mark.parametrize(
    "body",
    [
        b"1" * 448_000,
        b"[" + b"1" * 448_000 + b"]",
        b"[0." + b"1" * 448_000 + b"]",
        b"[" + b",".join([b"1" * 4000] * 112) + b"]",
        json.dumps("x" * 448_000).encode(),
        json.dumps("é" * 75_000).encode(),
        b"\xef\xbb\xbf" + json.dumps("x" * 448_000).encode(),
        json.dumps("x" * 112_000).encode("utf-32"),
    ],
    ids=["digits", "digits in a list", "float", "integers", "text", "escaped", "signed", "utf-32"],
)
def test_long_json_takes_no_more_time_than_in_python(body: bytes) -> None:
    """448 kB of one number or text are read in a time like that of the standard library."""
    ours, pythons = (
        min(_cpu_s(partial(parse, body)) for _ in range(5)) for parse in (parse_json, json.loads)
    )
    assert ours < 30 * pythons + 0.01  # it is about the same; a square would be 10,000 times it


def _cpu_s(action: Callable[[], Any]) -> float:
    began = time.thread_time()
    with contextlib.suppress(ValueError):  # so many digits are refused
        action()
    return time.thread_time() - began


@pytest.mark.parametrize("body", [b"{", b'{"a": NaN}', b"[1,", b"[" * 100_000])
@pytest.mark.parametrize("headers", [CURL, {}], ids=["curl -d", "no type"])
def test_what_begins_like_json_and_is_not_is_a_400(body: bytes, headers: Any) -> None:
    """A broken object or list is malformed JSON under curl's type too, not a form."""
    problem(ECHO.post("/", content=body, headers=headers), 400)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"\xff\xff", "text/plain"),
        (b"\xff", "text/plain; charset=utf-8"),
        (b"x", "text/plain; charset=no-such-charset"),
        (b"x", "text/plain; charset=base64"),
        (b"x", "text/plain; charset=rot13"),
        (b"x", "text/plain; charset=\x00"),
        (b"x", "text/plain; charset="),
        (b"\x00", "text/plain; charset=utf-32"),
        (b"a=%FF", "application/x-www-form-urlencoded"),
        (b"\xff=1", "application/x-www-form-urlencoded"),
        (b"&".join(b"a%d=1" % i for i in range(100_000)), "application/x-www-form-urlencoded"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_undecodable_text_and_forms_are_the_senders_fault(body: bytes, kind: str) -> None:
    """Text or a form that cannot be decoded answers 4xx, never 5xx."""
    response = ECHO.post("/", content=body, headers={"content-type": kind})
    assert response.status_code < 500


def test_an_unknown_charset_is_named() -> None:
    """A charset that does not exist answers 400 or 415 and names it."""
    response = ECHO.post("/", content=b"x", headers={"content-type": "text/plain; charset=klingon"})
    assert "klingon" in problem(response, response.status_code)["detail"]
    assert response.status_code in (400, 415)


def test_a_compressed_body_is_a_415() -> None:
    """A content encoding that is not undone is refused rather than handed on as garbage."""
    response = ECHO.post("/", content=b"\x1f\x8b", headers={**JSON, "content-encoding": "gzip"})
    assert response.status_code in (400, 415)


def upload(file: bytes, title: str, tags: list[str], n: int = 1) -> Any:
    return [file.decode(), title, tags, n]


def test_a_multipart_form_is_an_object_of_fields_and_bytes() -> None:
    """Fields arrive as text and files as bytes; several parameters get theirs, converted."""
    sent: Any = {"data": {"title": "t", "tags": "a", "n": "3"}, "files": {"file": ("x", b"text")}}
    assert http(upload).post("/", **sent).json() == ["text", "t", ["a"], 3]
    twice = [("xs", ("x", b"1")), ("xs", ("y", b"2"))]
    assert http(lambda x: [b.decode() for b in x["xs"]]).post("/", files=twice).json() == ["1", "2"]
    both = http(rc.parallel(a=lambda form: form["file"].decode(), b=lambda form: form["title"]))
    assert both.post("/", **sent).json() == {"a": "text", "b": "t"}
    large = {"file": ("x", b"z" * 3_000_000)}
    assert http(lambda form: len(form["file"])).post("/", files=large).json() == 3_000_000


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("body", [b"x", b"--x", b"--x\r\n\r\n", b"\xff" * 100])
def test_a_malformed_multipart_form_is_the_senders_fault(kind: str, body: bytes) -> None:
    """A multipart form that cannot be parsed is a 400, or what of it there is."""
    assert ECHO.post("/", content=body, headers={"content-type": kind}).status_code < 500


def test_a_body_that_is_too_long_is_a_413() -> None:
    """A body longer than max_body_bytes answers 413 and says the limit."""
    client = http(kind_and_value, max_body_bytes=10)
    assert client.post("/", content=b"[1, 2, 34]").status_code == 200
    details = problem(client.post("/", content=b"[1, 2, 345]"), 413)
    assert "10" in details["detail"]


def test_a_body_that_is_too_long_is_not_read_to_its_end() -> None:
    """A body without end is refused once the limit has passed, not collected."""
    sent = []

    def endless() -> Any:
        for _ in range(1000):
            sent.append(1)
            yield b"x" * 100

    assert http(kind_and_value, max_body_bytes=50).post("/", content=endless()).status_code == 413


# Hostile


@pytest.mark.parametrize(
    "body",
    [
        b'"\\ud800"',
        b'{"\\udfff": 1}',
        b'{"a": 1, "a": 2}',
        b"1e400",
        b"-1e400",
        b"1e-400",
        b"[1e999999999]",
        b"123456789012345678901234567890",
        b'{"__class__": "x", "__init__": 1, "__dict__": {}}',
        b'"\\u0000"',
        b"[" * 200 + b"]" * 200,
        b"[" * 900 + b"]" * 900,
        b"[" * 5000 + b"]" * 5000,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b"-0",
        b"[]" + b" " * 10_000,
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize(
    "function", [lambda x: x, item, number, floats, variadic, pair], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("headers", [JSON, CURL, {}], ids=["json", "curl", "none"])
def test_a_hostile_body_is_never_a_server_error(
    function: Callable[..., Any], body: bytes, headers: Any
) -> None:
    """Whatever is sent, it is the sender's fault (4xx) or works; it is never a 5xx."""
    response = http(function).post("/", content=body, headers=headers)
    assert response.status_code < 500, response.text


@pytest.mark.parametrize("body", [b"1e400", b"[-1e999]", b'{"a": 1e400}'])
def test_a_number_beyond_all_floats_is_answered_in_json(body: bytes) -> None:
    """A number that no float holds is refused, or answered in valid JSON: never as Infinity."""
    response = ECHO.post("/", content=body, headers=JSON)
    assert response.status_code in (200, 400, 422)
    assert "Infinity" not in response.text


@settings(
    max_examples=examples(150, long=10_000), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(body=st.binary(max_size=60), headers=st.sampled_from([JSON, CURL, {}]))
def test_random_bytes_are_never_a_server_error(body: bytes, headers: Any) -> None:
    """Random bytes under any of the usual types are 2xx or 4xx."""
    assert ECHO.post("/", content=body, headers=headers).status_code < 500


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner),
    max_leaves=8,
)  # fmt: skip


@settings(
    max_examples=examples(150, long=10_000), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(value=_json)
def test_every_json_value_arrives_as_it_was_sent(value: Any) -> None:
    """Any JSON value reaches a stage unchanged, and back."""
    response = http_echo.post("/", content=json.dumps(value), headers=JSON)
    assert response.json() == [value]


http_echo = http(lambda x: [x])


@pytest.mark.parametrize("query", ["a=%FF", "a=%", "=", "a&b", "%00=%00", "a=" + "x" * 50_000])
def test_a_hostile_query_is_never_a_server_error(query: str) -> None:
    """Whatever the query holds, it is a dict of str or a 4xx."""
    assert ECHO.get(f"/?{query}").status_code < 500


def test_nothing_is_taken_for_a_header_or_the_scope() -> None:
    """What the body holds does not reach the headers of the answer."""
    response = ECHO.post("/", json={"headers": {"x-evil": "1"}, "status": 500})
    assert response.status_code == 200
    assert "x-evil" not in response.headers
