"""The tests' workers: copies of one that has imported Ray, and otherwise like Ray's own."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import ray
from support import pickle_by_value
from support.cluster import is_copied
from support.worker_template import CONTEXT, is_plain

pickle_by_value(__name__)
PYTHON = ["/ray/default_worker.py", "--language=PYTHON"]


@pytest.mark.parametrize(
    ("context", "plain"),
    [
        ({}, True),
        ({"py_executable": sys.executable, "env_vars": {}, "command_prefix": []}, True),
        ({"py_executable": "/usr/bin/other"}, False),
        ({"env_vars": {"A": "b"}}, False),
        ({"command_prefix": ["cd", "/folder", "&&"]}, False),
    ],
)
def test_only_workers_in_the_raylet_s_environment_are_copies(
    context: dict[str, Any], plain: bool
) -> None:
    """What has a runtime environment is started as Ray starts it."""
    assert is_plain([*PYTHON, CONTEXT + json.dumps(context)]) == plain
    assert not is_plain(["worker.jar", "--language=JAVA"])


class Worker:
    """Tells what it is, and what comes of what it does."""

    def look(self) -> tuple[int, int, int, str, str]:
        drawn = ray.ObjectID.from_random().hex()
        said = subprocess.run(["echo", "hi"], capture_output=True, text=True, check=True).stdout
        return os.getpid(), os.getpgid(0), os.getppid(), drawn, said


def test_copies_are_workers_like_others(cluster: None) -> None:
    """Each has a group and random numbers of its own, and may start processes."""
    worker: Any = ray.remote(num_cpus=0)(Worker)
    workers = [worker.remote() for _ in range(3)]
    found = ray.get([worker.look.remote() for worker in workers])
    pids, groups, parents, drawn, said = zip(*found, strict=True)
    assert groups == pids
    assert len(set(pids)) == len(set(drawn)) == 3
    assert set(said) == {"hi\n"}
    assert len(set(parents)) == 1 or not is_copied()


def test_a_runtime_environment_is_set_up_by_ray(cluster: None) -> None:
    """A worker with environment variables has them."""
    options: Any = {"num_cpus": 0, "runtime_env": {"env_vars": {"GREETING": "hello"}}}
    greeting: Any = ray.remote(**options)(lambda: os.environ["GREETING"])
    assert ray.get(greeting.remote()) == "hello"
