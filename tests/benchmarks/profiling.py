"""Where a request's time goes, and how much of it is raycompose's: ``make profile``.

Each path runs under load while py-spy looks at its front replica 200 times a second; what every
process takes of the CPU is counted beside it. The stacks stay beside the text, for a flame graph.
"""

import argparse
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import load
from benchmarks.samples import Sample
from benchmarks.sites import Settings, Site, Sites

PATHS: tuple[tuple[str, Settings, str], ...] = (
    ("distributed", "defaults", "ours"),
    ("distributed", "defaults", "by-grpc"),
    ("distributed", "fast", "ours"),
    ("distributed", "fast", "by-grpc"),
    ("fused", "defaults", "ours"),
    ("fused", "defaults", "theirs"),
    ("fused", "fast", "ours"),
    ("fused", "fast", "theirs"),
)
CLIENTS = 16
RATE = 200
LISTED = 15
OWNERS = (
    ("raycompose", "raycompose"),
    ("benchmarks", "the stages"),
    ("ray/serve", "Ray Serve"),
    ("ray", "Ray"),
    ("starlette", "Starlette and uvicorn"),
    ("uvicorn", "Starlette and uvicorn"),
    ("fastapi", "Starlette and uvicorn"),
    ("grpc", "gRPC"),
)
"""Whose a file is, by how its path begins; any other is its package's."""


@dataclass(frozen=True)
class Stacks:
    """What a process did, each time that it was looked at.

    Args:
        counts: How often each stack was seen: its frames, outermost first.
    """

    counts: Counter[tuple[str, ...]]

    @classmethod
    def read(cls, path: Path) -> "Stacks":
        """Read what py-spy wrote as ``--format raw``."""
        counts: Counter[tuple[str, ...]] = Counter()
        for line in path.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            counts[tuple(stack.split(";"))] += int(count)
        return cls(counts)

    @property
    def total(self) -> int:
        """How often the process was seen at work."""
        return self.counts.total()

    def owners(self) -> Counter[str]:
        """How often each one's code ran, itself or what C code it called."""
        found: Counter[str] = Counter()
        for stack, count in self.counts.items():
            found[owner(stack[-1])] += count
        return found

    def functions(self, of: str) -> Counter[str]:
        """How often each function of an owner's ran itself."""
        found: Counter[str] = Counter()
        for stack, count in self.counts.items():
            if owner(stack[-1]) == of:
                found[function(stack[-1])] += count
        return found

    def under(self, of: str) -> Counter[str]:
        """How often each function of an owner's ran, itself or what it called."""
        found: Counter[str] = Counter()
        for stack, count in self.counts.items():
            for name in {function(frame) for frame in stack if owner(frame) == of}:
                found[name] += count
        return found


def owner(frame: str) -> str:
    """Return whose code a frame is in: ``"run (raycompose/graph/nodes.py:175)"``."""
    path = _path(frame)
    package = path.partition("/")[0].removesuffix(".py") or "unknown"
    return next((name for start, name in OWNERS if path.startswith(f"{start}/")), package)


def function(frame: str) -> str:
    """Return a frame's function and file, without the line."""
    return re.sub(r":\d+\)$", ")", frame)


def _path(frame: str) -> str:
    found = re.search(r"\((.*?)(:\d+)?\)$", frame)
    path = found[1] if found else ""
    for folder in ("site-packages/", "/tests/", "/raycompose/raycompose/"):
        path = path.rpartition(folder)[2]
    return path


def processes(pid: int) -> dict[psutil.Process, str]:
    """Return the processes of a site's Ray, each with what it is."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            title = (process.cmdline() or [process.name()])[0]
        except psutil.Error:  # it has ended
            continue
        kind = title.split(".")[0] if title.startswith("ray::") else process.name()
        found[process] = kind
    return found


def cpu_s(process: psutil.Process) -> float:
    """Return the seconds of CPU that a process has taken; 0 when it has ended."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def front_of(way: str, found: dict[psutil.Process, str]) -> psutil.Process:
    """Return the process of the deployment that answers an application's requests."""
    fronts = ("Pipeline", "EachAwaited", "OneDeployment")
    titles = [f"ray::ServeReplica:{way}:{front}" for front in fronts]
    return next(process for process, title in found.items() if title in titles)


@dataclass(frozen=True)
class Profile:
    """What was seen of an application under load.

    Args:
        sample: Its rate.
        stacks: Those of its front.
        spent_ms: Milliseconds of CPU time that a request took of each process.
        front: Which of them is the front.
    """

    sample: Sample
    stacks: Stacks
    spent_ms: dict[str, float]
    front: str

    def shares(self, counts: Counter[str]) -> Iterator[str]:
        """Yield lines of the microseconds of a request, and the share of the front's time."""
        for name, count in counts.most_common(LISTED):
            share = count / self.stacks.total
            yield f"  {1000 * share * self.spent_ms[self.front]:7.1f} µs {share:7.1%}  {name}"


def watched(site: Site, way: str, seconds: float, raw: Path) -> Profile:
    """Load an application, and look at it; ``raw`` is where the stacks are kept."""
    load.over_http(site.urls[way], CLIENTS, 1)
    found = processes(site.pid)
    front = front_of(way, found)
    with ThreadPoolExecutor(1) as threads:
        before = {process: cpu_s(process) for process in found}
        loaded = threads.submit(load.over_http, site.urls[way], CLIENTS, seconds)
        record(front.pid, max(1, int(seconds) - 1), raw)
        sample = loaded.result()
    spent_ms = dict.fromkeys(found.values(), 0.0)
    requests = max(1, sample.details["requests"])
    for process, kind in found.items():
        spent_ms[kind] += 1000 * (cpu_s(process) - before[process]) / requests
    return Profile(sample, Stacks.read(raw), spent_ms, found[front])


def record(pid: int, seconds: int, raw: Path) -> None:
    """Have py-spy write the stacks of a process.

    Raises:
        SystemExit: It cannot; it says why.
    """
    py_spy = Path(sys.executable).with_name("py-spy")  # Ray brings it along
    ran = subprocess.run(
        [py_spy, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(RATE),
         "--gil", "--format", "raw", "--output", raw],  # other threads wait
        capture_output=True, text=True,
    )  # fmt: skip
    if ran.returncode:
        raise SystemExit(f"py-spy could not look at process {pid}: {ran.stderr.strip()}")


def summary(path: str, seen: Profile) -> Iterator[str]:
    """Yield the lines that say where the time went."""
    yield f"== {path}, HTTP, {CLIENTS} clients: {seen.sample.value:.0f} requests a second"
    yield "\nCPU time of a request by process (py-spy disturbs the front a little):"
    for name, took_ms in sorted(seen.spent_ms.items(), key=lambda item: -item[1])[:8]:
        yield f"  {took_ms:7.3f} ms  {name}"
    stacks = seen.stacks
    for title, counts in (
        ("The front's time of a request, by whose code ran", stacks.owners()),
        ("raycompose's functions, themselves", stacks.functions("raycompose")),
        ("raycompose's functions, with all that they call", stacks.under("raycompose")),
        ("Ray Serve's functions, themselves", stacks.functions("Ray Serve")),
    ):
        if counts:
            yield f"\n{title}:"
            yield from seen.shares(counts)
    yield ""


def main(out: Path, seconds: float, only: str) -> None:
    """Profile every path, and write the text."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w") as text, Sites() as sites:
        for topic, settings, way in PATHS:
            path = f"{topic}, {settings}, {way}"
            if only not in path:
                continue
            sites.keep((topic, settings))
            raw = out.with_name(f"{path.replace(', ', '-')}.stacks")
            for line in summary(path, watched(sites.get(topic, settings), way, seconds, raw)):
                print(line)
                print(line, file=text)
    print(f"written to {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/profile.txt"))
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each path is watched")
    parser.add_argument("--only", default="", help="such as 'fused, fast': what a path contains")
    given = parser.parse_args()
    main(given.out, given.seconds, given.only)
