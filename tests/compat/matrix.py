"""``make compat``: the wheel on every Python, with the oldest and the newest Ray that it allows.

The wheel and the sdist are built, and the sdist unpacked. For each Python that is found here there
are two environments: "newest" has the newest version of everything, "oldest" the oldest version of
each dependency that pyproject.toml allows and that has a wheel for that Python. In each the wheel
is installed, and the unpacked sdist's tests that need no cluster are run, and then smoke.py, which
starts one. What they print is kept in ``.compat/``.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LOGS = ROOT / ".compat"
UV = str(Path(sys.executable).with_name("uv"))
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
AGES = {"oldest": "lowest-direct", "newest": "highest"}
WHEEL_HAS = {"raycompose", "raycompose_cli"}
SDIST_HAS = {"Makefile", "CHANGELOG.md", "docs", "examples", "raycompose", "tests"}
STEP_S = 7200


class Failed(Exception):
    """A step that did not succeed; its last line."""


class Row(NamedTuple):
    """What became of one environment."""

    python: str
    age: str
    ray: str = ""
    tests: str = "not run"
    smoke: str = "not run"
    minutes: str = ""


class Log:
    """Runs commands, and keeps what they print.

    Args:
        name: The file's, in ``.compat/``.
    """

    def __init__(self, name: str) -> None:
        self._path = LOGS / f"{name}.log"
        self._path.write_text("")

    def run(self, *command: object, cwd: Path = ROOT) -> str:
        """Run a command; return the last line that it prints, or raise ``Failed`` with it."""
        theirs = ("PYTHONPATH", "RAY_ADDRESS", "VIRTUAL_ENV")  # of whoever runs this
        environment = {key: value for key, value in os.environ.items() if key not in theirs}
        with self._path.open("a+") as output:
            print("$", *command, file=output, flush=True)
            start = output.tell()
            done = subprocess.run(
                list(map(str, command)),
                cwd=cwd,
                env={**environment, "UV_PYTHON_DOWNLOADS": "never"},
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=STEP_S,
                check=False,
            )
            output.seek(start)
            last = output.read().strip().rpartition("\n")[2]
        if done.returncode:
            raise Failed(last)
        return last


class Dists(NamedTuple):
    """The wheel, and the folder of the unpacked sdist."""

    wheel: Path
    sources: Path


def build(folder: Path) -> Dists:
    """Build both distributions and check what is in them."""
    Log("build").run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    if tops != WHEEL_HAS or "raycompose/py.typed" not in names:
        raise Failed(f"the wheel has {sorted(tops)}, or no py.typed")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    [sources] = (folder / "sdist").iterdir()
    if missing := SDIST_HAS - {path.name for path in sources.iterdir()}:
        raise Failed(f"the sdist lacks {sorted(missing)}")
    return Dists(wheel, sources)


def install(log: Log, home: Path, row: Row, dists: Dists) -> str:
    """Make an environment with the wheel and what its tests need; return its version of Ray."""
    log.run(UV, "venv", "--python", interpreter(row.python), home)
    pins = home / "pins.txt"  # of the wheel's own dependencies; the tests' change none of them
    binary = ("--only-binary", ":all:", "--python", home / "bin/python")
    resolution = ("--resolution", AGES[row.age])
    log.run(
        *(UV, "pip", "compile", *binary, *resolution, dists.sources / "pyproject.toml"),
        *("--no-annotate", "--no-header", "--output-file", pins),
    )
    extras = f"{dists.wheel}[dev,document-search,notebook]"
    log.run(UV, "pip", "install", *binary, "--constraint", pins, extras)
    return next(line[5:] for line in pins.read_text().splitlines() if line.startswith("ray=="))


def attempt(log: Log, *command: object, cwd: Path) -> str:
    """Run a command and return its last line, and whether it failed."""
    try:
        return log.run(*command, cwd=cwd)
    except Failed as failed:
        return f"FAILED: {failed}"


def tried(row: Row, home: Path, dists: Dists) -> Row:
    """Return what becomes of an environment in which everything is tried."""
    began = time.monotonic()
    log = Log(f"{row.python}-{row.age}")
    try:
        row = row._replace(ray=install(log, home, row, dists))
    except Failed as failed:
        return row._replace(ray=f"FAILED: {failed}")
    bin_, where = home / "bin", dists.sources
    tests = attempt(log, bin_ / "pytest", "-q", "-m", "not cluster", cwd=where)
    smoke = attempt(log, bin_ / "python", where / "tests/compat/smoke.py", cwd=where)
    minutes = f"{(time.monotonic() - began) / 60:.0f}"
    return row._replace(tests=tests.strip("= "), smoke=smoke, minutes=minutes)


def interpreter(python: str) -> str | None:
    """Return where a version of Python is on this machine, if it is."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates: list[str | Path] = [f"python{python}"]
    candidates += pyenv.glob(f"versions/{python}.*/bin/python")
    return next(filter(None, map(runnable, candidates)), None)


def runnable(python: str | Path) -> str | None:
    """Return the path of an interpreter that runs: pyenv's shims may be there and not do so."""
    found = shutil.which(python)
    works = found and subprocess.run([found, "-c", ""], capture_output=True, check=False)
    return found if works and works.returncode == 0 else None


def print_table(rows: list[Row]) -> None:
    """Print rows below their names, in columns."""
    table = [Row._fields, *rows]
    widths = [max(len(row[n]) for row in table) for n in range(len(Row._fields))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip(), flush=True)


def main() -> int:
    """Try what the arguments ask for, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", nargs="+", default=PYTHONS)
    parser.add_argument("--age", nargs="+", default=list(AGES), choices=list(AGES))
    asked = parser.parse_args()
    LOGS.mkdir(exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        dists = build(Path(place) / "dist")
        for python in filter(interpreter, asked.python):
            for age in asked.age:
                rows.append(tried(Row(python, age), Path(place) / f"{python}-{age}", dists))
                print_table(rows[-1:])
    print()
    print_table(rows)
    missing = [python for python in asked.python if interpreter(python) is None]
    if missing:
        print("Not on this machine: Python", ", ".join(missing))
    return any("FAILED" in cell for row in rows for cell in row) or not rows


if __name__ == "__main__":
    sys.exit(main())
