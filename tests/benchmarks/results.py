"""The lines of the table: what was measured, against what, and whether it meets its target."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from benchmarks.samples import Sample

Samples = list[Sample]
Status = Literal["met", "missed", "no target", "not measured"]


@dataclass(frozen=True)
class Target:
    """What the ratio is to reach, or not to pass; the value itself where nothing is compared."""

    limit: float
    at_most: bool = False

    def holds(self, figure: float) -> bool:
        """Tell whether a figure meets it."""
        return figure <= self.limit if self.at_most else figure >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}"


def at_least(limit: float) -> Target:
    """Return the target of a rate, or of a ratio of rates."""
    return Target(limit)


def at_most(limit: float) -> Target:
    """Return the target of a time or a size, or of a ratio of those."""
    return Target(limit, at_most=True)


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Args:
        row: The row's number.
        what: What is measured.
        unit: The unit of ours and theirs.
        ours: The samples, one a round; none: it could not be measured, and ``note`` says why.
        theirs: What ours are compared with, round by round.
        opponent: What theirs are.
        target: Of the ratio, or of ours where nothing is compared; ``None`` if there is none.
        note: What else the reader should know.
        others: Further ways that were measured in the same rounds, for the JSON file.
    """

    row: str
    what: str
    unit: str
    ours: Samples
    theirs: Samples = field(default_factory=list)
    opponent: str = ""
    target: Target | None = None
    note: str = ""
    others: dict[str, Samples] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs, of each round; two that ran one after the other saw one machine."""
        pairs = zip(self.ours, self.theirs, strict=False)
        return [ours.value / theirs.value for ours, theirs in pairs if theirs.value]

    @property
    def figures(self) -> list[float]:
        """What the target is of, in each round: the ratio, or ours where nothing is compared."""
        return self.ratios if self.theirs else [sample.value for sample in self.ours]

    @property
    def figure(self) -> float | None:
        """What the target is of: the median of the rounds."""
        return statistics.median(self.figures) if self.figures else None

    @property
    def ours_median(self) -> float:
        """The median of ours."""
        return statistics.median(sample.value for sample in self.ours)

    @property
    def theirs_median(self) -> float:
        """The median of theirs."""
        return statistics.median(sample.value for sample in self.theirs)

    @property
    def failed(self) -> int:
        """How many requests of ours failed, of all rounds."""
        return sum(sample.failed for sample in self.ours)

    @property
    def status(self) -> Status:
        """Whether the target is met."""
        if self.figure is None:
            return "not measured"
        if self.failed:
            return "missed"
        if self.target is None:
            return "no target"
        return "met" if self.target.holds(self.figure) else "missed"

    @property
    def verdict(self) -> str:
        """The status, how many requests failed, and whether some of the rounds met the target."""
        if self.failed:
            return f"{self.status}, {self.failed} failed"
        missed = self.target if self.status == "missed" else None
        nearly = missed is not None and any(map(missed.holds, self.figures))
        return f"{self.status}, within the spread" if nearly else self.status

    def __str__(self) -> str:
        theirs = f" against {_shown(self.theirs, self.unit)} ({self.opponent})" * bool(self.theirs)
        found = f"{_shown(self.ours, self.unit)}{theirs}, {ratio(self)}: {self.verdict}"
        return f"{self.row}: {self.what}: {found}" + f"; {self.note}" * bool(self.note)

    def to_dict(self) -> dict[str, Any]:
        """Return the line for the JSON file, with every round's sample."""
        return {
            **asdict(self),
            "ratios": self.ratios,
            "figure": self.figure,
            "failed": self.failed,
            "status": self.status,
        }

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "Line":
        """Return the line that the JSON file has."""
        fields = {name: found[name] for name in ("row", "what", "unit", "opponent", "note")}
        ours, theirs = ([Sample(**one) for one in found[way]] for way in ("ours", "theirs"))
        target = found["target"] and Target(**found["target"])
        return cls(**fields, ours=ours, theirs=theirs, target=target)


def position(row: str) -> tuple[int, str]:
    """Return where a row stands in the table: 2, 3, 3b, 10, and then those with a name."""
    digits = "".join(character for character in row if character.isdigit())
    return (int(digits) if digits else sys.maxsize, row)


_STYLES = {"met": "green", "missed": "bold red", "not measured": "yellow"}


def table(lines: Sequence[Line]) -> Table:
    """Return what is shown on the screen."""
    made = Table("row", "what", title="raycompose compared with the same written without it")
    for head in ("ours", "theirs", "ratio (min..max)", "target"):
        made.add_column(head, justify="right", no_wrap=True)
    made.add_column("")
    for line in lines:
        theirs = _shown(line.theirs, line.unit) if line.theirs else ""
        made.add_row(
            line.row, _noted(line.what, line.note), _shown(line.ours, line.unit),
            _noted(theirs, line.opponent * bool(theirs)), ratio(line), str(line.target or ""),
            Text(line.verdict, _STYLES.get(line.status, "default")),
        )  # fmt: skip
    return made


def _noted(text: str, note: str) -> Text:
    return Text(text).append(f"\n{note}" * bool(note), "dim")


def _shown(samples: Samples, unit: str) -> str:
    if not samples:
        return "-"
    return f"{number(statistics.median(sample.value for sample in samples))} {unit}"


def ratio(line: Line) -> str:
    """Return the ratio with the spread of the rounds; the spread alone if nothing is compared."""
    found = line.figures
    if not found:
        return ""
    spread = f"({number(min(found))}..{number(max(found))})"
    return f"{number(statistics.median(found))} {spread}" if line.theirs else spread


def number(value: float) -> str:
    """Return a figure with as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """Return what the figures depend on: the machine, its load, and the versions."""
    cpu = next(
        (text.split(":")[1].strip() for text in _lines("/proc/cpuinfo") if "model name" in text),
        platform.processor(),
    )
    memory = next((text.split()[1] for text in _lines("/proc/meminfo")), "0")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory) / 1e6, 1),
        "load_average": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("raycompose", "ray", "uvloop", "pydantic")},
        "commit": _commit(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # not on Linux
        return []


def _commit() -> str:
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True
    )
    return found.stdout.strip()


def write(path: Path, lines: Sequence[Line], about: dict[str, Any]) -> None:
    """Write the JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {**about, "lines": [line.to_dict() for line in lines]}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
