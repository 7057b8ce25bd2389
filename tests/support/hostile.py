"""Requests of every kind, right, nearly right and hostile, for the HTTP edge."""

# mypy does not see what Ray's decorators add: .bind, .options, .remote.
# mypy: disable-error-code="attr-defined"

import json

from hypothesis import strategies as st

from support.edge import Sent

# Not st.text(...), which hardly ever takes the few characters that matter from so many.
_character = st.characters() | st.sampled_from('\0\ud800\udfff"\\')
_text = st.lists(_character, max_size=8).map("".join)
_any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=8,
)
_nearly_right = st.one_of(
    st.fixed_dictionaries({"name": _text | _any_json}, optional={"n": _any_json}),
    st.fixed_dictionaries({"xs": _any_json}),
    st.lists(st.floats() | st.integers() | st.text("0123456789.eE+-_ naif", max_size=6)),
    st.dictionaries(st.sampled_from(["item", "xs", "x", "request", "self", "args"]), _any_json),
)


def as_bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


_json_text = st.builds(
    json.dumps, _text | _any_json | _nearly_right, ensure_ascii=st.booleans()
).map(as_bytes)


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    text = draw(_json_text)
    start = draw(st.integers(0, len(text)))
    return text[:start] + draw(st.binary(max_size=3)) + text[draw(st.integers(start, len(text))) :]


_pieced = st.lists(
    st.sampled_from(
        [*'[]{}":,', "\\ud800", "\ud800", "\ufeff", "+2AA-", "1e400", "NaN", "9" * 5000, "a="]
    ),
    min_size=1,
    max_size=6,
).map(lambda pieces: as_bytes("".join(pieces)))
_token = st.text("abcxyzABC019!#$%&'*+-.^_`|~", min_size=1, max_size=10)
_charset = st.sampled_from(
    [
        "utf-8",
        "latin-1",
        "utf-16",
        "UTF-32",
        "utf-7",
        "unicode_escape",
        "hex",
        "punycode",
        "gb18030",
    ]
)
_content_type = st.one_of(
    st.just("application/json"),
    st.sampled_from(
        [
            *("application/problem+json", "application/x-www-form-urlencoded", "text/plain"),
            *("text/html; a=b", "application/octet-stream", "multipart/form-data"),
        ]
    ),
    st.builds("text/plain; charset={}".format, _charset | _token),
    st.builds("{}/{};{}".format, _token, _token, _token),
    st.just(""),
)
_visible = "".join(map(chr, range(0x21, 0x7F)))
_latin = st.text([*_visible, " ", "\t", *map(chr, range(0x80, 0x100))], max_size=20)
# Ray's proxy reads these itself, and answers 500 when they are not UTF-8: see below.
_read_by_ray = st.sampled_from(["x-request-id", "serve-multiplexed-model-id", "x-session-id"])
_headers: st.SearchStrategy[dict[str, str]] = st.one_of(
    st.just({}),
    st.dictionaries(st.builds("x-{}".format, _token), _latin, max_size=3),
    st.dictionaries(_read_by_ray, st.text(_visible, min_size=1, max_size=20), max_size=1),
    st.dictionaries(
        st.sampled_from(["accept", "cookie", "range", "content-encoding", "traceparent", "origin"]),
        _latin,
        max_size=3,
    ),
)
_query = st.one_of(
    st.just(""),
    st.builds("?{}".format, st.text(_visible.replace("#", ""), max_size=20)),
    st.builds("?{}={}".format, st.sampled_from(["xs", "name", "n", "x"]), st.from_regex(
        r"(-?[0-9]{1,3}|%[0-9a-fA-F]{2}|nan|1e999|&xs=|\+){1,3}", fullmatch=True)),
)  # fmt: skip
_bodies = st.one_of(
    *(_json_text, _damaged(), _pieced, st.binary(min_size=1, max_size=60)),
    st.builds(json.dumps, _text, ensure_ascii=st.booleans()).map(as_bytes),
    _text.map(as_bytes),
    st.none(),
)
any_request = st.builds(
    lambda method, path, query, kind, headers, body: Sent(
        method, path + query, headers | ({"content-type": kind} if kind else {}), body
    ),
    st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    st.sampled_from(["", "", "/", "/a/b", "/%2e%2e"]),
    _query,
    _content_type,
    _headers,
    _bodies,
)
