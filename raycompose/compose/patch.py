"""The two things that importing raycompose adds to Ray Serve's ``Application``: then, and |."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.serve import Application
from typing_extensions import Unpack

from raycompose.errors import RayComposeError

if TYPE_CHECKING:  # imported when something is composed
    from raycompose.compose.pipeline import Pipeline
    from raycompose.compose.stages import StageOptions


def then(self: Application, target: Any, **options: "Unpack[StageOptions]") -> "Pipeline[Any, Any]":
    """Return this application followed by ``target``, as one pipeline; see ``Pipeline.then``."""
    from raycompose.compose.pipeline import pipeline, stage

    return pipeline(self, stage(target, **options) if options else target)


def _or(self: Application, target: Any) -> "Pipeline[Any, Any]":
    from raycompose.compose.pipeline import piped

    made: Pipeline[Any, Any] = piped(self, target)
    return made


def _ror(self: Application, target: Any) -> "Pipeline[Any, Any]":
    from raycompose.compose.pipeline import pipeline

    return pipeline(target, self)


ADDED: dict[str, Callable[..., Any]] = {"then": then, "__or__": _or, "__ror__": _ror}
"""A function has no ``|`` of its own: ``function | app`` asks the application's ``__ror__``."""


def install() -> None:
    """Add ``.then`` and ``|`` to ``Application``. Doing it again changes nothing.

    Raises:
        RayComposeError: Ray itself defines one of them, which is never replaced.
    """
    for name, function in ADDED.items():
        # Not getattr: `type` itself has an __or__, which is not Application's.
        present = next((vars(c)[name] for c in Application.__mro__ if name in vars(c)), None)
        if present is None:
            setattr(Application, name, function)
        elif getattr(present, "__module__", None) != __name__:
            raise RayComposeError(
                f"this version of Ray defines Application.{name} itself, and raycompose does not "
                "replace it: use rc.pipeline(...), and a version of raycompose made for this Ray"
            )
