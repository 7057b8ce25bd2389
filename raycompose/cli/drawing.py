"""``raycompose draw``: a graph in the terminal, or in a file."""

import json
from collections.abc import Callable
from pathlib import Path

import typer

from raycompose.compose.picture import Graph

from .building import build, graph_of, hush_serve
from .loading import Problem
from .options import write

_ENDINGS: dict[str, Callable[[Graph], str]] = {
    ".svg": Graph.svg,
    ".mmd": Graph.mermaid,
    ".txt": lambda graph: f"{graph}\n",
    ".json": lambda graph: json.dumps(graph.to_dict(), indent=2, ensure_ascii=False) + "\n",
}


def draw(path: str, arguments: tuple[str, ...], app_dir: str, output: str | None) -> None:
    """Print a pipeline's graph, or write it into a file, as its ending says.

    Raises:
        Problem: It is no pipeline, the ending is unknown, or the file cannot be written.
    """
    if output is not None and Path(output).suffix not in _ENDINGS:
        raise Problem(f"{output}: the ending is one of {', '.join(_ENDINGS)}", status=2)
    hush_serve()
    graph = graph_of(path, build(path, arguments, app_dir)).graph
    if output is None:
        typer.echo(str(graph))
        return
    write(output, _ENDINGS[Path(output).suffix](graph))
    typer.echo(f"{output} is written.")
