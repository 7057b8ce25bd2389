"""The notebook among the examples, executed by a real kernel."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
import ray
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def outputs(cell: Any) -> str:
    """All the text of a cell's outputs."""
    return json.dumps(cell.outputs)


@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")  # of the kernel's client, in this process
def test_the_notebook_runs_from_top_to_bottom(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures, blocking calls, a class redefined in a cell, a bar; and no cell is flooded."""
    # On a cluster that runs: tests of the command line start one of their own.
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": "/tmp"}}
    )
    client.execute()
    first, tree, local, ran, again, mapped, drawn, _ = [
        cell for cell in notebook.cells if cell.cell_type == "code"
    ]
    for picture in (first, drawn):
        data = picture.outputs[-1]["data"]
        assert "<svg" in data["image/svg+xml"]
        assert "flowchart" in data["text/vnd.mermaid"]
        assert data["text/plain"].startswith("Pipeline(")
    assert "Model  deployment \u00b7 2 replicas" in outputs(tree).encode().decode("unicode_escape")
    assert "hello: short" in outputs(local)
    assert "hello from a deployment: long" in outputs(ran)
    assert "olleh: short" in outputs(again)
    assert "40/40" in outputs(mapped)
    assert "0 txet: short" in outputs(mapped)
    for cell in (ran, again, mapped):
        assert outputs(cell).count("\\n") < 12, outputs(cell)
