"""Character sets that senders name."""

import codecs
import encodings.aliases


def codec(charset: str) -> str:
    """Return the name of Python's codec, of few: Python remembers every name that it looks up.

    Raises:
        LookupError: It is none of them.
    """
    name = encodings.normalize_encoding(charset).lower()
    name = encodings.aliases.aliases.get(name, name)
    if name not in _CODECS:
        raise LookupError(f"{charset} is no character set that is known here")
    return codecs.lookup(name).name


# Others of Python's codecs are no character sets, are slow, or give half of a surrogate pair,
# which no answer can hold.
_CODECS = frozenset(encodings.aliases.aliases.values()) - {"utf_7"} | {
    "cp1006", "cp720", "cp737", "cp856", "cp874", "cp875", "koi8_r", "koi8_t", "koi8_u",
    "mac_arabic", "utf_8", "utf_8_sig"}  # fmt: skip
