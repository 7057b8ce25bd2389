"""The rows of the table: each has a number and measures itself."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.results import Line, position
from benchmarks.rounds import Bench

Measure = Callable[[Bench], Iterator[Line]]


class UnknownRowError(ValueError):
    """A number that no row has."""


@dataclass(frozen=True)
class Row:
    """One row of the table of targets; it may take several lines of the results.

    Args:
        number: What ``ROW=`` calls it.
        title: What is measured.
        measure: Measures it.
        optional: Whether it runs only when it is asked for, by its number or with ``ROW=all``.
    """

    number: str
    title: str
    measure: Measure
    optional: bool = False


@dataclass
class Registry:
    """The rows, in the order in which they run: rows that share a Ray are neighbours."""

    rows: dict[str, Row] = field(default_factory=dict)

    def row(
        self, number: str, title: str, *, optional: bool = False
    ) -> Callable[[Measure], Measure]:
        """Return a decorator that registers what measures a row."""

        def register(measure: Measure) -> Measure:
            self.rows[number] = Row(number, title, measure, optional)
            return measure

        return register

    def select(self, wanted: str) -> Sequence[Row]:
        """Return the rows of ``3b,4``, or of ``all``; the empty string: those that always run.

        Raises:
            UnknownRowError: There is no such row.
        """
        if wanted == "all":
            return list(self.rows.values())
        numbers = [number.strip() for number in wanted.split(",") if number.strip()]
        unknown = [number for number in numbers if number not in self.rows]
        if unknown:
            raise UnknownRowError(
                f"no row {_listed(unknown)}: the rows are {_listed(self.rows)}, or all"
            )
        if not numbers:
            return [row for row in self.rows.values() if not row.optional]
        return [row for row in self.rows.values() if row.number in numbers]


def _listed(numbers: Iterable[str]) -> str:
    return ", ".join(sorted(numbers, key=position))


registry = Registry()
"""The benchmarks of this package, once their modules are imported."""
