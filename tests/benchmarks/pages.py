"""The table in the documentation: ``python -m benchmarks.pages FILE PAGE`` puts it there.

It stands between two markers, and says what the JSON file says.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import Line, number, position, ratio

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def markdown(found: dict[str, Any]) -> str:
    """Return the table of a JSON file, with the machine, the date and how it was measured."""
    return "\n".join(_lines(found))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield (
        f"Measured on {found['date'][:10]} on {found['cores']} cores ({found['cpu']}, "
        f"{found['memory_gb']:g} GB, load {found['load_average']:.2g} before it began) with "
        f"Python {found['python']}, {versions}, at {found['commit']}. Each ratio is the median of "
        f"{found['rounds']} rounds, in which the two were measured in turn for "
        f"{found['seconds']:g} s each; the smallest and the largest are beside it. "
        "*passed-on* passes each `DeploymentResponse` on to the next call, at Ray's default "
        "transport; *by-grpc* and *by-reference* await each response, by one transport."
    )
    yield ""
    yield "| # | what | ours | theirs | ratio | target | |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | --- |"
    lines = map(Line.from_dict, found["lines"])
    for line in sorted(lines, key=lambda line: position(line.row)):
        theirs = (
            f"{number(line.theirs_median)} {line.unit} ({line.opponent})" if line.theirs else ""
        )
        ours = f"{number(line.ours_median)} {line.unit}" if line.ours else ""
        cells = [
            line.row,
            line.what,
            ours,
            theirs,
            ratio(line),
            str(line.target or ""),
            line.verdict,
        ]
        cells[1] += f" ({line.note})" if line.note else ""
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def replaced(page: str, table: str) -> str:
    """Return the page with the table between its markers.

    Raises:
        ValueError: The page does not have them.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{begin}\n{table}\n{end}{after}"


if __name__ == "__main__":
    results, page = map(Path, sys.argv[1:])
    table = markdown(json.loads(results.read_text()))
    page.write_text(replaced(page.read_text(), table))
