"""Containers with things to replace inside: what is found, what is rebuilt, what is left alone."""

import asyncio
import collections
import dataclasses
import threading
import types
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

from raycompose.flow.structures import is_container, leaves, rebuilt


class Leaf:
    """What the tests look for and replace."""

    def __init__(self, name: str) -> None:
        self.name = name


class Pair(NamedTuple):
    left: Any
    right: Any = "right"


_Checked = collections.namedtuple("_Checked", ["one", "two"])


class Checked(_Checked):
    """A named tuple that is not made from its fields, as they may be when subclassed."""

    def __new__(cls, both: Any) -> "Checked":
        return super().__new__(cls, both, both)


class Words(list[Any]):
    """A list with something of its own."""

    note = ""


class Table(dict[str, Any]):
    """A dict with something of its own."""

    note = ""


@dataclasses.dataclass
class Record:
    value: Any
    note: str = "note"
    shared: ClassVar[list[int]] = [1]


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: Any
    note: str = "note"


@dataclasses.dataclass(slots=True)
class Slotted:
    value: Any
    note: str = "note"


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotted:
    value: Any
    note: str = "note"


@dataclasses.dataclass
class Computed:
    """Its fields are not what its constructor takes."""

    given: dataclasses.InitVar[Any]
    value: Any = dataclasses.field(init=False)
    count: int = dataclasses.field(init=False, default=0)

    def __post_init__(self, given: Any) -> None:
        self.value = given
        self.count += 1


@dataclasses.dataclass
class Unset:
    """One field that nothing has set yet."""

    value: Any
    later: Any = dataclasses.field(init=False)


DATACLASSES = pytest.mark.parametrize(
    "kind", [Record, Frozen, Slotted, FrozenSlotted, Computed], ids=lambda kind: kind.__name__
)


def replaced(structure: Any, *pairs: tuple[Leaf, Any]) -> Any:
    """Replace leaves by values."""
    return rebuilt(structure, {id(leaf): value for leaf, value in pairs})


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """Return what the function gives, or fail when it does not end in time."""
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(function()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, "it did not end, or failed"
    return outcome[0]


# --- Finding --------------------------------------------------------------------------------------


def test_leaves_are_found_in_every_container() -> None:
    """Lists, tuples, named tuples, dicts and dataclass instances are looked into, in order."""
    a, b, c, d, e, f = (Leaf(name) for name in "abcdef")
    structure = [a, (b, {"c": c}), Pair(d, Record(e)), FrozenSlotted(f)]
    assert leaves(structure, (Leaf,)) == [a, b, c, d, e, f]


@pytest.mark.parametrize("kind", [set, frozenset])
def test_leaves_are_found_in_sets(kind: Any) -> None:
    """Sets and frozen sets are looked into, in no particular order."""
    a, b = Leaf("a"), Leaf("b")
    assert set(leaves([kind([a, 1]), kind([b])], (Leaf,))) == {a, b}


def test_a_leaf_that_occurs_twice_is_found_once() -> None:
    """The same object in two places is one leaf."""
    a = Leaf("a")
    assert leaves([a, (a, {"a": a})], (Leaf,)) == [a]


def test_the_structure_may_be_a_leaf() -> None:
    """A bare leaf is a structure, too."""
    a = Leaf("a")
    assert leaves(a, (Leaf,)) == [a]
    assert replaced(a, (a, "A")) == "A"


def test_a_leaf_is_not_looked_into() -> None:
    """A container that is itself of a kind looked for is a leaf, with all that is inside."""
    inner = Words([Words()])
    assert leaves([inner], (Words,)) == [inner]


def test_an_unset_field_is_no_leaf() -> None:
    """A dataclass field that nothing has set yet does not fail the search."""
    a = Leaf("a")
    assert leaves(Unset(a), (Leaf,)) == [a]


# --- Rebuilding -----------------------------------------------------------------------------------


def test_lists_tuples_and_dicts_are_rebuilt() -> None:
    """The result has the same shape with other leaves, and the original is as it was."""
    a, b = Leaf("a"), Leaf("b")
    structure = [a, (b, 1), {"x": a, "y": [b, 2]}]
    assert replaced(structure, (a, "A"), (b, "B")) == ["A", ("B", 1), {"x": "A", "y": ["B", 2]}]
    assert structure == [a, (b, 1), {"x": a, "y": [b, 2]}]


def test_named_tuples_keep_their_type() -> None:
    """A named tuple comes back as the same named tuple."""
    a = Leaf("a")
    new = replaced([Pair(a)], (a, 5))
    assert type(new[0]) is Pair
    assert new[0] == Pair(5, "right")


def test_a_named_tuple_with_a_constructor_of_its_own_is_rebuilt() -> None:
    """A named tuple's fields are replaced whatever its constructor takes."""
    a = Leaf("a")
    new = replaced(Checked(a), (a, 5))
    assert type(new) is Checked
    assert tuple(new) == (5, 5)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_sets_are_rebuilt(kind: Any) -> None:
    """A set comes back as a set of the same type, with the values in the leaves' place."""
    a = Leaf("a")
    new = replaced(kind([a, 1]), (a, 5))
    assert type(new) is kind
    assert new == {5, 1}


def test_lists_keep_their_type_and_attributes() -> None:
    """A list subclass comes back as that, with the attributes it had."""
    a = Leaf("a")
    words = Words([a, "b"])
    words.note = "mine"
    new = replaced(words, (a, "A"))
    assert (type(new), list(new), new.note) == (Words, ["A", "b"], "mine")
    assert list(words) == [a, "b"]


def test_dicts_keep_their_type_and_attributes() -> None:
    """Dict subclasses come back as that: their attributes, their default, their order."""
    a = Leaf("a")
    table = Table(x=a)
    table.note = "mine"
    new = replaced(table, (a, "A"))
    assert (type(new), dict(new), new.note) == (Table, {"x": "A"}, "mine")
    counts: collections.defaultdict[str, Any] = collections.defaultdict(list, x=a)
    new = replaced(counts, (a, "A"))
    assert new == {"x": "A"}
    assert new["missing"] == []
    ordered = replaced(collections.OrderedDict(z=a, y=1), (a, "A"))
    assert type(ordered) is collections.OrderedDict
    assert list(ordered.items()) == [("z", "A"), ("y", 1)]
    assert dict(table) == {"x": a}
    assert "missing" not in counts


def test_keys_are_left_alone() -> None:
    """Only a dict's values are replaced; its keys stay the keys that they are."""
    a = Leaf("a")
    assert leaves({a: 1}, (Leaf,)) == []
    assert replaced({a: a}, (a, "A")) == {a: "A"}


@DATACLASSES
def test_dataclasses_are_rebuilt(kind: Any) -> None:
    """Mutable, frozen, slotted, with fields that the constructor does not take: a new instance."""
    a = Leaf("a")
    record = kind(a)
    others = [f.name for f in dataclasses.fields(kind) if f.name != "value"]
    new = replaced([record], (a, {"n": 5}))[0]
    assert type(new) is kind
    assert new.value == {"n": 5}
    assert record.value is a
    assert all(getattr(new, name) == getattr(record, name) for name in others)


def test_a_dataclass_keeps_its_unset_fields_unset() -> None:
    """A field that nothing has set yet stays so, and does not fail the rebuilding."""
    a = Leaf("a")
    new = replaced(Unset(a), (a, 5))
    assert new.value == 5
    assert not hasattr(new, "later")


def test_a_dataclass_is_not_constructed_again() -> None:
    """Rebuilding does not run ``__post_init__`` a second time."""
    a = Leaf("a")
    assert replaced(Computed(a), (a, 5)).count == 1


def test_a_value_is_not_looked_into() -> None:
    """What a leaf is replaced by is taken as it is, containers with leaves inside too."""
    a, b = Leaf("a"), Leaf("b")
    value = [b]
    new = replaced([a, b], (a, value), (b, "B"))
    assert new[0] is value
    assert value == [b]


def test_none_and_falsy_values_are_values() -> None:
    """A leaf may be replaced by ``None``, ``0`` or an empty list."""
    a, b, c = Leaf("a"), Leaf("b"), Leaf("c")
    new = replaced([a, (b, c)], (a, None), (b, 0), (c, []))
    assert new == [None, (0, [])]


def test_arrays_are_values() -> None:
    """A leaf may be replaced by an array, whose comparison gives no truth value."""
    a, array = Leaf("a"), np.arange(3)
    new = replaced((a, [a]), (a, array))
    assert new[0] is array
    assert new[1][0] is array


# --- Identity -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "structure",
    [[1, [2]], (1, (2,)), {"a": {"b": 1}}, {1, 2}, Pair(1), Record([1]), Frozen(1), 5, "text"],
    ids=lambda structure: type(structure).__name__,
)
def test_a_structure_without_leaves_is_itself(structure: Any) -> None:
    """Where nothing is replaced the very same object comes back."""
    assert rebuilt(structure, {}) is structure
    assert replaced(structure, (Leaf("elsewhere"), 5)) is structure


@pytest.mark.parametrize(
    "part",
    [[1, [2]], (1, (2,)), {"a": {"b": 1}}, {1, 2}, Pair(1), Record([1]), Frozen(1)],
    ids=lambda part: type(part).__name__,
)
def test_parts_without_leaves_are_kept(part: Any) -> None:
    """Beside a leaf that is replaced, parts without any are the very same objects."""
    a = Leaf("a")
    new = replaced([a, part, {"part": part}], (a, "A"))
    assert new[0] == "A"
    assert new[1] is part
    assert new[2]["part"] is part


def test_shared_parts_stay_shared() -> None:
    """A part that occurs in two places is one part in the result, too."""
    a = Leaf("a")
    shared, pair = [a], (a,)
    new = replaced([shared, shared, pair, {"pair": pair}], (a, "A"))
    assert new == [["A"], ["A"], ("A",), {"pair": ("A",)}]
    assert new[0] is new[1]
    assert new[2] is new[3]["pair"]


# --- Cycles ---------------------------------------------------------------------------------------


def test_a_cycle_through_a_list_stays_a_cycle() -> None:
    """A list that contains itself is found and rebuilt, as a list that contains itself."""
    a = Leaf("a")
    cycle: list[Any] = [a]
    cycle.append(cycle)
    assert within(10, lambda: leaves(cycle, (Leaf,))) == [a]
    new = within(10, lambda: replaced(cycle, (a, "A")))
    assert new[0] == "A"
    assert new[1] is new
    assert cycle[0] is a


def test_cycles_through_dicts_and_dataclasses_stay_cycles() -> None:
    """A dict and a dataclass instance that hold each other do so in the result, too."""
    a = Leaf("a")
    table: dict[str, Any] = {"leaf": a}
    table["record"] = Record(table)
    new = within(10, lambda: replaced(table, (a, "A")))
    assert new["leaf"] == "A"
    assert new["record"].value is new
    assert table["record"].value is table


def test_a_cycle_through_a_tuple_ends() -> None:
    """A cycle that a tuple closes, which cannot be rebuilt as one, does not hang."""
    a = Leaf("a")
    inside: list[Any] = [a]
    cycle = (inside, 1)
    inside.append(cycle)
    assert within(10, lambda: leaves(cycle, (Leaf,))) == [a]
    new = within(10, lambda: replaced(cycle, (a, "A")))
    assert new[0][0] == "A"
    assert new[1] == 1


# --- What is left alone ---------------------------------------------------------------------------


class Plain:
    """An object like any other."""

    def __init__(self, value: Any) -> None:
        self.value = value


def generator(value: Any) -> Any:
    yield value


@pytest.mark.parametrize(
    "wrap",
    [
        Plain,
        generator,
        lambda leaf: collections.deque([leaf]),
        lambda leaf: types.MappingProxyType({"a": leaf}),
        lambda leaf: types.SimpleNamespace(a=leaf),
        lambda leaf: np.array([leaf], dtype=object),
        lambda leaf: iter([leaf]),
        lambda leaf: lambda: leaf,
    ],
    ids=["object", "generator", "deque", "proxy", "namespace", "array", "iterator", "function"],
)
def test_other_objects_are_left_alone(wrap: Any) -> None:
    """Whatever is not one of the containers is neither looked into nor changed."""
    a, b = Leaf("a"), Leaf("b")
    other = wrap(a)
    assert leaves([other, b], (Leaf,)) == [b]
    assert replaced([other, b], (a, "A"), (b, "B"))[0] is other
    assert not is_container(other)


@pytest.mark.parametrize("value", ["text", b"bytes", 5, None, Record, asyncio, range(3)])
def test_plain_values_and_classes_are_no_containers(value: Any) -> None:
    """Text, bytes, numbers and the classes of dataclasses themselves are left alone."""
    assert not is_container(value)
    assert leaves(value, (Leaf,)) == []


@pytest.mark.parametrize(
    "value",
    [[], (), {}, set(), frozenset(), Pair(1), Record(1), Words(), Table()],
    ids=lambda value: type(value).__name__,
)
def test_containers_are_recognised_empty_or_not(value: Any) -> None:
    """Each of the containers is one, whether or not anything is inside."""
    assert is_container(value)
