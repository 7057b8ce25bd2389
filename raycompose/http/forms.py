"""A body of ``application/x-www-form-urlencoded`` becomes its fields."""

import re
from binascii import a2b_qp

_EQUALS = b"\xff"
"""Stands for an equals sign: it is in no UTF-8."""

_FF = re.compile(b"%[fF]{2}")
_AS_IN_MAIL = (
    *((sign, _EQUALS) for sign in (b"=", b"%3D", b"%3d")),
    # Percent signs that begin no escape, where a decoder of mail would take the text after them
    # for something else. The second time is for those that overlapped.
    *((b"%" + after, b"%25" + after) for after in (b"%", b"%", b"\n", b"\r")),
)


def form_fields(body: bytes, most: int) -> list[tuple[str, str]]:
    """Return the names and texts of a form, as ``urllib.parse.parse_qsl`` does.

    That takes a hundred times the memory of the body, piece by piece.

    Args:
        body: The form.
        most: How many fields it may have.

    Raises:
        ValueError: It has more, or is not UTF-8.
    """
    if body.count(b"&") >= most:
        raise ValueError(f"it has more than {most} fields")
    body.decode()  # percent signs do not complete half of a character
    parts = (part.partition(b"=") for part in body.split(b"&") if part)
    return [(_text(name), _text(value)) for name, _, value in parts]


def _text(part: bytes) -> str:
    part = part.replace(b"+", b" ")
    return (_unquoted(part) if b"%" in part else part).decode()


def _unquoted(text: bytes) -> bytes:
    """What ``urllib.parse.unquote_to_bytes`` gives, decoded as e-mail's ``=41`` for ``%41``."""
    if _FF.search(text):
        raise ValueError("%FF is in no UTF-8 text")
    for sent, written in _AS_IN_MAIL:
        text = text.replace(sent, written)
    if text.endswith(b"%"):
        text += b"25"
    return a2b_qp(text.replace(b"%", b"=")).replace(b"=", b"%").replace(_EQUALS, b"=")
