"""Containers with things to replace inside: lists, tuples, dicts, sets, dataclass instances."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


def leaves(structure: Any, kinds: tuple[type, ...]) -> list[Any]:
    """Return the instances of ``kinds`` in a structure, each once, in order; cycles are fine.

    >>> leaves([1, {"a": (2.5, "x")}, {3}], (int, str))
    [1, 'x', 3]
    """
    found, seen = [], set()

    def visit(value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, kinds):
            found.append(value)
            return
        for part in _parts(value):
            visit(part)

    visit(structure)
    return found


def rebuilt(structure: Any, replacements: Mapping[int, Any]) -> Any:
    """Return the structure with objects replaced, by ``id``; parts without any are kept as is.

    >>> a, b = "a", "b"
    >>> rebuilt([a, (b, 1)], {id(a): "A"})
    ['A', ('b', 1)]
    """
    if not replacements:
        return structure
    touched = _touched(structure, replacements)
    made: dict[int, Any] = {}

    def build(value: Any) -> Any:
        if id(value) in replacements:
            return replacements[id(value)]
        if id(value) not in touched:
            return value
        if id(value) in made:
            return made[id(value)]
        if isinstance(value, list | dict) or _is_dataclass(value):
            return _filled(value)
        made[id(value)] = value  # for a cycle through a tuple or a set, which cannot be closed
        if isinstance(value, tuple | set | frozenset):
            parts = [build(part) for part in value]
            if any(new is not old for new, old in zip(parts, value, strict=True)):
                kind: Any = type(value)
                made[id(value)] = kind._make(parts) if hasattr(kind, "_make") else kind(parts)
        return made[id(value)]

    def _filled(value: Any) -> Any:
        new = made[id(value)] = copy.copy(value)
        if isinstance(value, list):
            new[:] = [build(part) for part in value]
        elif isinstance(value, dict):
            for key, part in value.items():
                new[key] = build(part)
        else:
            for field in dataclasses.fields(value):
                if not hasattr(value, field.name):  # init=False, and not set yet
                    continue
                object.__setattr__(new, field.name, build(getattr(value, field.name)))
        return new

    return build(structure)


def _touched(structure: Any, replacements: Mapping[int, Any]) -> set[int]:
    """The ids of the parts that something is replaced in, however deep; cycles are fine."""
    holders: dict[int, list[int]] = {}
    seen, todo = set(), [structure]
    while todo:
        value = todo.pop()
        if id(value) in seen or id(value) in replacements:
            continue
        seen.add(id(value))
        for part in _parts(value):
            holders.setdefault(id(part), []).append(id(value))
            todo.append(part)
    touched: set[int] = set()
    rising = list(replacements)
    while rising:
        new = set(holders.get(rising.pop(), ())) - touched
        touched |= new
        rising += new
    return touched


def is_container(value: Any) -> bool:
    """Tell whether a value is one of the containers that are looked into."""
    return isinstance(value, list | tuple | dict | set | frozenset) or _is_dataclass(value)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif _is_dataclass(value):
        for field in dataclasses.fields(value):
            yield getattr(value, field.name, None)


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
