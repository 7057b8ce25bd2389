"""``python -m benchmarks [--rows 3b,4] [--out FILE]``; ``make bench`` calls it."""

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import results
from benchmarks.registry import Row, UnknownRowError, registry
from benchmarks.results import Line
from benchmarks.rounds import Bench
from benchmarks.sites import MeasuringError, Sites

TOPICS = ("distributed", "fused", "sizes", "streams", "references", "executor", "bodies",
          "imports", "scaling", "fronts")  # fmt: skip
"""The modules that register rows, which run in this order."""
_INTERRUPTED = 130
_BUSY = 0.7
"""The load above which something else runs."""


def measured(row: Row, bench: Bench) -> Iterator[Line]:
    """Measure a row; that it fails does not keep the others from being measured."""
    try:
        yield from row.measure(bench)
    except (MeasuringError, OSError) as error:
        bench.sites.keep()
        last = str(error).strip().splitlines()[-1]
        yield Line(row.number, row.title, "", [], note=f"could not be measured: {last}")


def measure(
    rows: Sequence[Row], options: argparse.Namespace, console: Console
) -> tuple[list[Line], bool]:
    """Measure the rows in turn, and write the file after each.

    Returns:
        The lines, and whether all rows were measured: Ctrl-C ends after the last line.
    """
    about, lines, row_s = results.machine(), list[Line](), dict[str, int]()
    finished = True
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, Sites() as sites:
        task = progress.add_task("", total=len(rows))
        bench = Bench(
            sites, options.rounds, options.seconds,
            lambda text: progress.update(task, description=text),
        )  # fmt: skip
        for row in rows:
            began = time.perf_counter()
            try:
                for line in measured(row, bench):
                    progress.console.print(str(line), markup=False, highlight=False)
                    lines.append(line)
            except KeyboardInterrupt:
                finished = False
            row_s[row.number] = round(time.perf_counter() - began)
            progress.advance(task)
            how = {"rounds": options.rounds, "seconds": options.seconds, "row_s": row_s}
            results.write(options.out, lines, {**about, **how})
            if not finished:
                break
    return lines, finished


def main(console: Console) -> int:
    """Measure, show the table, write the file."""
    options = arguments()
    for topic in TOPICS:
        importlib.import_module(f"benchmarks.{topic}")
    try:
        rows = registry.select(options.rows)
    except UnknownRowError as error:
        console.print(error, style="red", markup=False)
        return 2
    if (busy := os.getloadavg()[0]) > _BUSY:
        console.print(f"The machine is busy (load average {busy:.1f}), so expect a wide spread.")
    began = time.perf_counter()
    lines, finished = measure(rows, options, console)
    console.print(results.table(sorted(lines, key=lambda line: results.position(line.row))))
    if left := ", ".join(row.number for row in registry.rows.values() if row not in rows):
        console.print(
            f"Not selected: {left}. ROW=all runs everything, which takes about half an hour.",
            highlight=False,
        )
    console.print(f"{time.perf_counter() - began:.0f} s; every sample is in {options.out}")
    return 0 if finished else _INTERRUPTED


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", default="", help="such as 3b,4; all: the optional ones, too")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"))
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is measured")
    parser.add_argument("--seconds", type=float, default=1.5, help="how long each time")
    return parser.parse_args()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers of peers end with it, too
    screen = Console()
    sys.exit(main(screen if screen.is_terminal else Console(width=140)))
