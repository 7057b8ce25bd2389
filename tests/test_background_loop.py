"""The loop in the background: one in a process, which waits for nobody that waits for it."""

# mypy does not see what Ray's decorators add: .bind, .remote.
# mypy: disable-error-code="attr-defined, untyped-decorator, no-untyped-call"

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import pickle_by_value
from support.waiting import PATIENCE_S

import raycompose as rc

pickle_by_value(__name__)


# Threads, loops, processes


def test_the_background_loop_is_made_once() -> None:
    """Threads that need it first at the same time share it."""
    program = """
import threading
from raycompose.flow import background, promises
barrier, loops = threading.Barrier(16), []
def first():
    barrier.wait()
    loops.append(background.loop())
threads = [threading.Thread(target=first) for _ in range(16)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(set(map(id, loops))), sum(t.name == "raycompose-loop" for t in threading.enumerate()))
"""
    assert _output(program) == "1 1"


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    """After ``os.fork`` a call works in the child, where the parent's thread is not."""
    program = """
import os, sys
import raycompose as rc
client = rc.local(rc.stage(lambda x: x + 1))
assert client.call(1) == 2
sys.stdout.flush()
child = os.fork()
if child == 0:
    print(rc.local(rc.stage(lambda x: x + 1)).call(2, timeout_s=20), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status)
"""
    assert _output(program) == "3 0"


MODULE = """
from contextlib import asynccontextmanager
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
import raycompose as rc

@asynccontextmanager
async def lifespan(app):
    yield
    print("shut down", flush=True)

api = FastAPI(lifespan=lifespan)

class Draft(BaseModel):
    text: str

@serve.deployment
class Model:
    @serve.batch(max_batch_size=2)
    async def __call__(self, drafts: list[Draft]) -> list[str]:
        return [draft.text.upper() for draft in drafts]

@serve.deployment
@serve.ingress(api)
class Api:
    def __init__(self, pipeline):
        self.pipeline = pipeline

    @api.post("/")
    async def shout(self, draft: Draft) -> str:
        return await self.pipeline(draft)

client = rc.local(Api.bind(rc.pipeline(Model.bind()).fuse().embed()))
batched = rc.local(rc.pipeline(Model.bind()))
"""


def test_a_module_may_open_clients_while_it_is_imported(tmp_path: Path) -> None:
    """What Ray pickles then may wait for the import: that is done by the thread that imports.

    And what is left open is shut down at the end of the process.
    """
    (tmp_path / "opening.py").write_text(MODULE)
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import opening
from starlette.testclient import TestClient
print(TestClient(opening.client.asgi).post("/", json={{"text": "hi"}}).json())
print(opening.batched.call(opening.Draft(text="ho")))
"""
    assert _output(program) == "HI HO shut down"


def _output(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return " ".join(done.stdout.split())


def test_a_blocking_call_on_the_loop_it_waits_for_is_refused() -> None:
    """A stage that blocks on its own event loop is told what to do, rather than hang."""
    inner = rc.local(rc.stage(lambda x: x + 1))

    async def outer(x: int) -> Any:
        return inner.call(x)

    with pytest.raises(rc.RayComposeError, match="await the asynchronous form"):
        rc.local(rc.stage(outer)).call(1, timeout_s=PATIENCE_S)
