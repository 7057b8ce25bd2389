"""A call's arguments as one value, which is what a graph runs on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Arguments:
    """A call's arguments, where they are not exactly one positional value."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def pack(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return a call's arguments as one value: itself when it is one positional value."""
    return args[0] if len(args) == 1 and not kwargs else Arguments(args, kwargs)


def unpack(value: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the arguments that ``pack`` packed."""
    return (value.args, value.kwargs) if type(value) is Arguments else ((value,), {})


def single(value: Any, node: str) -> Any:
    """Return ``value``, which must be one value: a combinator gives the same input to several."""
    if type(value) is Arguments:
        got = f"{len(value.args)} positional and {len(value.kwargs)} keyword arguments"
        raise TypeError(
            f"the pipeline begins with {node!r}, which takes exactly one value, but got {got}. "
            "Pass one value, for example a dict, or begin the pipeline with a function "
            "that takes the arguments."
        )
    return value
