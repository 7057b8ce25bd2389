"""Composition for Ray Serve: deployments, functions and tasks as one pipeline.

Importing it adds ``.then`` and ``|`` to Ray Serve's applications. All else is imported when it is
first asked for, so that a replica pays for what it needs alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raycompose.compose.patch import install
from raycompose.show import install as _show

if TYPE_CHECKING:
    from raycompose.client.client import Client, connect, run
    from raycompose.client.local import local
    from raycompose.compose.applications import app
    from raycompose.compose.choices import fallback, optional, race, split, switch, when
    from raycompose.compose.combinators import (
        assign,
        batched,
        collect,
        each,
        loop,
        parallel,
        passthrough,
        pick,
        shadow,
    )
    from raycompose.compose.pipeline import Pipeline, pipeline, stage
    from raycompose.errors import (
        CompositionError,
        HTTPError,
        LoopError,
        NoMatchError,
        RayComposeError,
        StageError,
        StageTimeoutError,
        failed_stage,
    )
    from raycompose.flow.conversions import (
        by_ref,
        by_ref_sync,
        from_object_ref,
        resolve,
        resolve_sync,
        to_object_ref,
        to_object_ref_gen,
        to_object_ref_gen_sync,
        to_object_ref_sync,
    )
    from raycompose.flow.deadlines import remaining_s
    from raycompose.flow.events import Event
    from raycompose.flow.references import Ref
    from raycompose.flow.request import Request
    from raycompose.flow.streams import Stream
    from raycompose.graph.limits import Hedge, Retry
    from raycompose.http import fastapi as fastapi  # rc.fastapi.install(api)

    __version__: str

install()
_show()
del install, _show

_HOMES: dict[str, tuple[str, ...]] = {
    "raycompose.client.client": ("Client", "connect", "run"),
    "raycompose.client.local": ("local",),
    "raycompose.compose.applications": ("app",),
    "raycompose.compose.choices": ("fallback", "optional", "race", "split", "switch", "when"),
    "raycompose.compose.combinators": (
        "assign",
        "batched",
        "collect",
        "each",
        "loop",
        "parallel",
        "passthrough",
        "pick",
        "shadow",
    ),
    "raycompose.compose.pipeline": ("Pipeline", "pipeline", "stage"),
    "raycompose.errors": (
        "CompositionError",
        "HTTPError",
        "LoopError",
        "NoMatchError",
        "RayComposeError",
        "StageError",
        "StageTimeoutError",
        "failed_stage",
    ),
    "raycompose.flow.conversions": (
        "by_ref",
        "by_ref_sync",
        "from_object_ref",
        "resolve",
        "resolve_sync",
        "to_object_ref",
        "to_object_ref_gen",
        "to_object_ref_gen_sync",
        "to_object_ref_sync",
    ),
    "raycompose.flow.deadlines": ("remaining_s",),
    "raycompose.flow.events": ("Event",),
    "raycompose.flow.references": ("Ref",),
    "raycompose.flow.request": ("Request",),
    "raycompose.flow.streams": ("Stream",),
    "raycompose.graph.limits": ("Hedge", "Retry"),
}
"""Where each public name is defined."""

if not TYPE_CHECKING:  # or type checkers would know every name

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version  # only for who asks

            return version(__name__)
        if name == "fastapi":
            return import_module("raycompose.http.fastapi")
        for home, names in _HOMES.items():
            if name in names:
                globals()[name] = found = getattr(import_module(home), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Client",
    "CompositionError",
    "Event",
    "HTTPError",
    "Hedge",
    "LoopError",
    "NoMatchError",
    "Pipeline",
    "RayComposeError",
    "Ref",
    "Request",
    "Retry",
    "StageError",
    "StageTimeoutError",
    "Stream",
    "__version__",
    "app",
    "assign",
    "batched",
    "by_ref",
    "by_ref_sync",
    "collect",
    "connect",
    "each",
    "failed_stage",
    "fallback",
    "from_object_ref",
    "local",
    "loop",
    "optional",
    "parallel",
    "passthrough",
    "pick",
    "pipeline",
    "race",
    "remaining_s",
    "resolve",
    "resolve_sync",
    "run",
    "shadow",
    "split",
    "stage",
    "switch",
    "to_object_ref",
    "to_object_ref_gen",
    "to_object_ref_gen_sync",
    "to_object_ref_sync",
    "when",
]


def __dir__() -> list[str]:
    return __all__
