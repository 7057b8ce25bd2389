"""What `import raycompose` takes, and `raycompose --help`."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.registry import registry
from benchmarks.results import Line, at_most
from benchmarks.rounds import Bench
from benchmarks.samples import Sample

_IMPORT = """
import ray.serve, time
began = time.perf_counter()
import raycompose
print(1000 * (time.perf_counter() - began))
"""


def import_ms() -> Sample:
    """Milliseconds of the import in a process that has imported Ray Serve."""
    ran = subprocess.run(
        [sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True
    )
    return Sample(float(ran.stdout.split()[-1]))


def help_s() -> Sample:
    """Seconds of ``raycompose --help``, from starting the process to its end."""
    command = Path(sys.executable).with_name("raycompose")
    began = time.perf_counter()
    subprocess.run([command, "--help"], capture_output=True, check=True)
    return Sample(time.perf_counter() - began)


@registry.row("9", "import raycompose, beyond import ray.serve; raycompose --help")
def imports(bench: Bench) -> Iterator[Line]:
    """Each in new processes."""
    bench.sites.keep()
    found = bench.alternate({"import": import_ms, "--help": help_s})
    yield Line("9", "import raycompose, beyond import ray.serve", "ms", found["import"],
               target=at_most(50))  # fmt: skip
    yield Line("9", "raycompose --help", "s", found["--help"], target=at_most(0.4))
