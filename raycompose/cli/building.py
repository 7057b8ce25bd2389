"""Applications from what a user names: an import path with arguments, or a Serve config file."""

import inspect
import logging
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import pydantic
import yaml
from ray.serve import Application, Deployment
from ray.serve.schema import ServeDeploySchema

from raycompose import CompositionError, Pipeline, _serve

from .loading import Problem, load, their_traceback
from .options import Options, parsed, read


@dataclass(frozen=True)
class Named:
    """An application that is to run under a name, and what a config overrides in it."""

    name: str
    path: str
    app: Application
    overrides: dict[str, Any] = field(default_factory=dict)


def hush_serve() -> None:
    """Have Ray Serve in this process log errors only: who calls it says the rest."""
    # A filter, for Serve sets its logger's level when it starts.
    logging.getLogger("ray.serve").addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def applications(options: Options) -> list[Named]:
    """Return the applications that are going to run.

    Raises:
        Problem: One cannot be built, or the config is none.
    """
    if not options.is_config:
        app = build(options.target, options.arguments, options.app_dir)
        return [Named(options.name, options.target, app)]
    if options.arguments:
        raise Problem("KEY=VALUE arguments go into the config file, under args:", status=2)
    return [
        Named(
            app["name"],
            app["import_path"],
            _called(app["import_path"], app.get("args") or {}, options.app_dir),
            {d["name"]: d for d in app.get("deployments") or ()},
        )
        for app in config(options.target)["applications"]
    ]


def config(path: str) -> dict[str, Any]:
    """Return a Serve config file's content, each application with a name.

    Raises:
        Problem: It is no such file.
    """
    found = parsed(yaml.safe_load, read(path, "the config file"), path)
    apps = found.get("applications") if isinstance(found, dict) else None
    if not isinstance(apps, list) or not apps:
        raise Problem(f"{path} is not a Serve config: it has no list 'applications'", status=2)
    for number, app in enumerate(apps):
        if not isinstance(app, dict) or not isinstance(app.get("import_path"), str):
            raise Problem(f"{path}: application {number + 1} has no import_path", status=2)
        app.setdefault("name", "default")
        deployments = app.get("deployments")
        for deployment in deployments if isinstance(deployments, list) else ():
            if not isinstance(deployment, dict) or "name" not in deployment:
                raise Problem(
                    f"{path}: a deployment of application {app['name']!r} has no name", status=2
                )
    names = [str(app["name"]) for app in apps]
    if len(set(names)) < len(names):
        raise Problem(f"{path}: each application needs a name of its own, got {names}", status=2)
    try:
        ServeDeploySchema.model_validate(found)
    except pydantic.ValidationError as error:
        raise Problem(f"{path}: {_listed(error)}", status=2) from error
    return dict(found)


def build(path: str, arguments: tuple[str, ...], app_dir: str) -> Application:
    """Return the application that an import path names, given its KEY=VALUE arguments.

    Raises:
        Problem: There is none, or it cannot be built.
    """
    return _called(path, dict(map(_pair, arguments)), app_dir)


def graph_of(path: str, app: Application) -> Pipeline[Any, Any]:
    """Return the application as a pipeline.

    Raises:
        Problem: It is none.
    """
    if isinstance(app, Pipeline):
        return app
    deployment = _serve.deployment_of(app).name
    raise Problem(f"{path} is the application of one deployment, {deployment!r}, and no pipeline")


def _called(path: str, arguments: dict[str, Any], app_dir: str) -> Application:
    found = load(path, app_dir)
    if isinstance(found, Deployment):
        raise Problem(f"{path} is a deployment that is not bound: use {path}.bind(), "
                      "or rc.pipeline(...) of it")  # fmt: skip
    if not isinstance(found, Application | FunctionType):
        kind = type(found).__name__
        raise Problem(
            f"{path} is {_short(found)} ({kind}): an application is wanted, what "
            "X.bind() or rc.pipeline(...) gives, or a function that returns one"
        )
    if isinstance(found, FunctionType) and len(inspect.signature(found).parameters) != 1:
        raise Problem(
            f"{path}{inspect.signature(found)} must take one parameter: the dict of the KEY=VALUE "
            f"arguments, or a pydantic model of them{_hint(found)}"
        )
    try:
        app = _serve.call_builder(found, arguments)
        _serve.build(app, "default")
    except pydantic.ValidationError as error:
        raise Problem(f"{path}: {_arguments_wanted(error)}") from error
    except CompositionError as error:
        raise Problem(f"{path}: {error}") from error
    except Exception as error:  # whatever the user's function raises
        if frames := their_traceback(error):
            called = ", called to build an application," if isinstance(found, FunctionType) else ""
            raise Problem(f"{path}{called} failed:\n{frames}") from error
        said = str(error).rstrip(".")
        raise Problem(f"{path}: {said}{_hint(found)}") from error
    return app


def _hint(found: Any) -> str:
    """What a function that builds nothing may have been meant to be."""
    if not isinstance(found, FunctionType):
        return ""
    name = found.__name__
    return (
        f". {name} was called to build an application; to serve {name} itself, name a pipeline of "
        f"it: app = rc.pipeline({name})"
    )


def _arguments_wanted(error: pydantic.ValidationError) -> str:
    return f"arguments are given as KEY=VALUE; {_listed(error)}"


def _listed(error: pydantic.ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def _pair(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not (key and equals and value):
        raise Problem(f"{argument!r} is not KEY=VALUE", status=2)
    return key, value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
