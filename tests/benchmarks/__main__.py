"""All benchmarks, as one table: ``python tests/benchmarks [--rounds 5] [--json FILE]``."""

import argparse
from pathlib import Path

import bench_references
import bench_streaming
from harness import report

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rounds", type=int, default=5, help="how often each way is measured")
parser.add_argument("--json", type=Path, default=Path("build/benchmarks.json"))
options = parser.parse_args()
report(
    [*bench_streaming.rows(options.rounds), *bench_references.rows(options.rounds)], options.json
)
