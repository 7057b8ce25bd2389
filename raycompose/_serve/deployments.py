"""What a deployment says of itself."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ray.serve import Application, Deployment
from ray.serve._private.http_util import ASGIAppReplicaWrapper


def deployment_of(app: Application) -> Deployment:
    """Return the deployment that an application binds."""
    return app._bound_deployment


def autoscaling_config(deployment: Deployment) -> Any:
    """Return the deployment's ``AutoscalingConfig``, or ``None`` for a fixed number of replicas."""
    return deployment._deployment_config.autoscaling_config


def without_arguments(deployment: Deployment) -> Deployment:
    """Return the deployment with no constructor arguments bound, in which Ray would look."""
    return deployment.options(_init_args=(), _init_kwargs={}, _internal=True)


def chosen(deployment: Deployment, *options: str) -> dict[str, Any]:
    """Return those of the options that the deployment sets, as ``options()`` takes them.

    Args:
        deployment: The deployment.
        options: Names of options of ``Deployment.options``.
    """
    config, replica = deployment._deployment_config, deployment._replica_config
    given = config.user_configured_option_names
    values = {o: getattr(config if hasattr(config, o) else replica, o) for o in options}
    return {o: value for o, value in values.items() if o in given and value is not None}


def is_fastapi_ingress(deployment: Deployment) -> bool:
    """Tell whether the deployment is wrapped by ``@serve.ingress``."""
    target = deployment.func_or_class
    return inspect.isclass(target) and issubclass(target, ASGIAppReplicaWrapper)


def routes_of(deployment: Deployment) -> list[tuple[str, str]]:
    """Return the methods and paths of a FastAPI ingress; none of any other deployment."""
    if not is_fastapi_ingress(deployment):
        return []
    held = inspect.getclosurevars(deployment.func_or_class.__init__).nonlocals
    schema = getattr(held.get("frozen_app_or_func"), "openapi", None)
    paths = schema()["paths"] if schema else {}
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def is_batched(method: Callable[..., Any]) -> bool:
    """Tell whether ``method`` is wrapped by ``@serve.batch``: callers then pass single items."""
    return inspect.isroutine(method) and hasattr(method, "set_max_batch_size")


def methods_of(ingress: type) -> list[str]:
    """Return the public methods that a FastAPI ingress has beside Ray's."""
    ours = set(dir(ASGIAppReplicaWrapper))
    public = [name for name in dir(ingress) if name[0] != "_" and name not in ours]
    return [name for name in public if callable(getattr(ingress, name))]


def constructor(definition: type) -> Any:
    """Return the constructor that the user has written, of a FastAPI ingress, too."""
    if issubclass(definition, ASGIAppReplicaWrapper):  # Ray's wrapper takes anything and passes it
        definition = next(c for c in definition.__mro__ if "frozen_app_or_func" not in _closure(c))
    return definition.__init__  # type: ignore[misc]  # the class's own, to be looked at


def _closure(definition: Any) -> Mapping[str, Any]:
    written = vars(definition).get("__init__")
    return inspect.getclosurevars(written).nonlocals if inspect.isfunction(written) else {}


def setting(deployment: Deployment, name: str) -> Any:
    """Return a setting of the deployment that has no public property."""
    return getattr(deployment._deployment_config, name)
