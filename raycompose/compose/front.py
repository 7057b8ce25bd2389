"""The deployment that fronts a pipeline: its options, and what fused stages ask of it."""

import copy
import dataclasses
import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from ray import serve
from ray.serve import Deployment

from raycompose import _serve
from raycompose.errors import CompositionError
from raycompose.graph.hosting import HostedDeployment
from raycompose.graph.nodes import Node
from raycompose.graph.opening import hosted_deployments
from raycompose.http.ingress import Ingress
from raycompose.http.settings import Settings

Options = Mapping[str, Any]

_SETTINGS = {field.name for field in dataclasses.fields(Settings)} - {"pipeline"}
_OPTIONS = {*inspect.signature(Deployment.options).parameters} - {"self"}
_DEFAULTS: dict[str, Any] = {
    "name": "Pipeline",
    "ray_actor_options": {"num_cpus": 0},
    # Ray's default of 5 would throttle the stages: this replica only awaits others.
    "max_ongoing_requests": 1000,
}
_LARGEST = (
    "graceful_shutdown_timeout_s",
    "graceful_shutdown_wait_loop_s",
    "health_check_period_s",
    "health_check_timeout_s",
    "max_constructor_retry_count",
)
"""Options of which the front gets the largest of its fused stages'."""
_SAME = ("gang_scheduling_config", "logging_config", "max_surge_percent", "request_router_config")
"""Options on which the fused stages that set them have to agree."""
_PLACEMENT = (
    "placement_group_bundles",
    "placement_group_strategy",
    "placement_group_bundle_label_selector",
)
"""Options that belong together, and that one fused stage may set."""


def check_options(given: Options) -> None:
    """Refuse options that are neither the front deployment's nor its edge's.

    Raises:
        CompositionError: There is no such option, or Ray refuses its value.
    """
    if unknown := given.keys() - _SETTINGS - _OPTIONS:
        name = min(unknown)
        near = difflib.get_close_matches(name, _SETTINGS | _OPTIONS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CompositionError(f"options of the pipeline: there is no option {name!r}{hint}")
    try:
        settings(given)
        # What fused stages ask for is merged later: it may still be overridden.
        serve.deployment(Ingress).options(**copy.deepcopy(_of_the_deployment(given)))
    except (TypeError, ValueError) as error:
        raise CompositionError(f"options of the pipeline: {error}") from error


def settings(given: Options) -> Settings:
    """Return the settings of the edge that are among the options."""
    edge = {k: v for k, v in given.items() if k in _SETTINGS}
    return Settings(pipeline=given.get("name", _DEFAULTS["name"]), **edge)


def front(root: Node, given: Options) -> Deployment:
    """Return the deployment that fronts a graph.

    Raises:
        CompositionError: What the fused stages ask for cannot be merged and is not given.
    """
    options = _merged(hosted_deployments(root), _of_the_deployment(given))
    try:
        return serve.deployment(Ingress).options(**copy.deepcopy(options))  # Ray changes them
    except (TypeError, ValueError) as error:
        raise CompositionError(
            f"fuse(): the stages' options do not go together: {error}. Set the fused replica's own "
            "with .options(...), or name the stages to fuse"
        ) from error


def _of_the_deployment(given: Options) -> dict[str, Any]:
    return {k: v for k, v in given.items() if k not in _SETTINGS}


def _merged(inside: Mapping[str, HostedDeployment], given: Options) -> dict[str, Any]:
    """The front deployment's options: defaults, then what the fused stages ask for, then given."""
    merged = {**_DEFAULTS, **dict(_asked(inside, given)), **given}
    if inside:
        actor_options = _actor_options(inside, given.get("ray_actor_options") or {})
        merged["ray_actor_options"] = actor_options
    elif "ray_actor_options" in given:
        merged["ray_actor_options"] = {
            **_DEFAULTS["ray_actor_options"],
            **given["ray_actor_options"],
        }
    return merged


def _asked(inside: Mapping[str, HostedDeployment], given: Options) -> Iterator[tuple[str, Any]]:
    deployments = {name: hosted.deployment for name, hosted in inside.items()}
    scaled = {n: c for n, d in deployments.items() if (c := _serve.autoscaling_config(d))}
    if scaled and not {"autoscaling_config", "num_replicas"} & set(given):
        yield "autoscaling_config", _only(scaled, "autoscaling_config")
    elif deployments and not {"autoscaling_config", "num_replicas"} & set(given):
        yield "num_replicas", max(d.num_replicas for d in deployments.values())
    groups = {n: g for n, d in deployments.items() if (g := _serve.chosen(d, *_PLACEMENT))}
    if groups and "placement_group_bundles" not in given:
        yield from _only(groups, "placement_group_bundles").items()
    configs = {n: d.user_config for n, d in deployments.items() if d.user_config is not None}
    if configs:
        yield "user_config", configs
    for option in _LARGEST:
        values = [_serve.setting(d, option) for d in deployments.values()]
        if values:
            yield option, max(values)
    for option in set(_SAME) - set(given):
        if chosen := _each(deployments, option):
            yield option, _only(chosen, option, same=True)
    if per_node := _each(deployments, "max_replicas_per_node"):
        yield "max_replicas_per_node", min(per_node.values())
    actors = _each(deployments, "deployment_actors")
    if actors and "deployment_actors" not in given:
        yield "deployment_actors", _together(actors)


def _each(deployments: Mapping[str, Deployment], option: str) -> dict[str, Any]:
    """The option of each deployment that sets it."""
    chosen = {name: _serve.chosen(d, option) for name, d in deployments.items()}
    return {name: found[option] for name, found in chosen.items() if found}


def _together(actors: Mapping[str, list[Any]]) -> list[Any]:
    """The actors of all fused stages, which find theirs by name."""
    owners: dict[str, str] = {}
    for stage, own in actors.items():
        for actor in own:
            first = owners.setdefault(actor.name, stage)
            if first != stage:
                _only({first: actor, stage: actor}, "deployment_actors")
    return [actor for own in actors.values() for actor in own]


def _actor_options(inside: Mapping[str, HostedDeployment], given: Options) -> dict[str, Any]:
    asked = {n: dict(h.deployment.ray_actor_options or {}) for n, h in inside.items()}
    merged: dict[str, Any] = {"num_cpus": max(o.pop("num_cpus", 1) for o in asked.values())}
    for key in ("num_gpus", "memory"):
        amounts = [amount for o in asked.values() if (amount := o.pop(key, None))]
        if amounts:
            merged[key] = sum(amounts)
    resources: dict[str, float] = {}
    for options in asked.values():
        for resource, amount in (options.pop("resources", None) or {}).items():
            resources[resource] = resources.get(resource, 0) + amount
    if resources:
        merged["resources"] = resources
    for key in {key for options in asked.values() for key in options} - set(given):
        merged[key] = _only({n: o[key] for n, o in asked.items() if o.get(key)}, key, same=True)
    return {**merged, **given}


def _only(values: Mapping[str, Any], option: str, *, same: bool = False) -> Any:
    """The one value that the stages agree on."""
    first, *others = values.values() or (None,)
    if others and not (same and all(other == first for other in others)):
        raise CompositionError(
            f"fuse(): {option} is set on {', '.join(map(repr, values))}, and cannot be merged. "
            f"Set the fused replica's own with .options({_spelled(option)}), "
            "or name the stages to fuse"
        )
    return first


def _spelled(option: str) -> str:
    actor_option = option in ("runtime_env", "accelerator_type", "label_selector")
    return f"ray_actor_options={{{option!r}: ...}}" if actor_option else f"{option}=..."
