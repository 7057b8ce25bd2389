"""Stages merged into the pipeline's own replica, and what that replica then asks for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ray.serve import Deployment

from raycompose import _serve
from raycompose.errors import CompositionError
from raycompose.hosting import Host
from raycompose.nodes import Node, Stage, stages, transform
from raycompose.targets import Deployed, Hosted, Inline, Target, Task

_LONGEST = (
    "graceful_shutdown_timeout_s",
    "graceful_shutdown_wait_loop_s",
    "health_check_period_s",
    "health_check_timeout_s",
)


def fuse(root: Node, names: tuple[str, ...]) -> Node:
    """Return the graph with the named stages' deployments (all, with no names) hosted in-process.

    Raises:
        CompositionError: There is no stage of that name, or it is not a deployment.
    """
    deployed = {s.name: s.target.app for s in stages(root) if isinstance(s.target, Deployed)}
    unknown = [name for name in names if name not in deployed]
    if unknown:
        raise CompositionError(
            f"fuse({', '.join(map(repr, unknown))}): there is no such deployment stage in this "
            f"pipeline; it has {', '.join(map(repr, deployed)) or 'none'}"
        )
    # A deployment used in several stages is one deployment, and becomes one host.
    made = {id(deployed[n]): Host(_serve.deployment_of(deployed[n])) for n in names or deployed}

    def change(target: Target) -> Target:
        if isinstance(target, Deployed) and id(target.app) in made:
            return Hosted(made[id(target.app)], target.method)
        return target

    return _retarget(root, change)


def localised(root: Node, app_name: str) -> Node:
    """Return the graph with every stage run in this process, for the local engine."""
    made: dict[int, Host] = {}

    def host(key: object, deployment: Deployment) -> Host:
        if id(key) not in made:
            made[id(key)] = Host(deployment)
            made[id(key)].arguments = _serve.with_local_handles(made[id(key)].arguments, app_name)
        return made[id(key)]

    def change(target: Target) -> Target:
        if isinstance(target, Deployed):
            return Hosted(host(target.app, _serve.deployment_of(target.app)), target.method)
        if isinstance(target, Hosted):
            return Hosted(host(target.host, target.host.deployment), target.method)
        if isinstance(target, Task) and (function := _serve.task_function(target.function)):
            return Inline(function)
        return target

    return _retarget(root, change)


def _retarget(root: Node, change: Callable[[Target], Target]) -> Node:
    changed = transform(
        root, lambda n: replace(n, target=change(n.target)) if isinstance(n, Stage) else n
    )
    hosted = [s.target.host for s in stages(changed) if isinstance(s.target, Hosted)]
    for host in hosted:
        host.shared = sum(other is host for other in hosted) > 1
    return changed


def hosts(root: Node) -> dict[str, Host]:
    """Return the deployments that run inside the pipeline's replica, by stage name."""
    found: dict[int, tuple[str, Host]] = {}
    for stage in stages(root):
        if isinstance(stage.target, Hosted):
            found.setdefault(id(stage.target.host), (stage.name, stage.target.host))
    return dict(found.values())


def front_options(
    root: Node, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of the front deployment: defaults, then the hosts' merged, then given.

    Raises:
        CompositionError: The hosts' options cannot be merged and are not given.
    """
    inside = hosts(root)
    merged = {**defaults, **dict(_merged(inside, given)), **given}
    if inside:
        actor_options = _actor_options(inside, given.get("ray_actor_options") or {})
        merged["ray_actor_options"] = actor_options
    elif "ray_actor_options" in given:
        merged["ray_actor_options"] = {
            **defaults["ray_actor_options"],
            **given["ray_actor_options"],
        }
    return merged


def _merged(inside: Mapping[str, Host], given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    deployments = {name: host.deployment for name, host in inside.items()}
    scaled = {n: c for n, d in deployments.items() if (c := _serve.autoscaling_config(d))}
    if scaled and not {"autoscaling_config", "num_replicas"} & set(given):
        yield "autoscaling_config", _only(scaled, "autoscaling_config")
    elif deployments and not {"autoscaling_config", "num_replicas"} & set(given):
        yield "num_replicas", max(d.num_replicas for d in deployments.values())
    groups = {n: g for n, d in deployments.items() if (g := _serve.placement_group(d))}
    if groups and "placement_group_bundles" not in given:
        yield from _only(groups, "placement_group_bundles").items()
    configs = {n: d.user_config for n, d in deployments.items() if d.user_config is not None}
    if configs:
        yield "user_config", configs
    for option in _LONGEST:
        values = [_serve.setting(d, option) for d in deployments.values()]
        if values:
            yield option, max(values)


def _actor_options(inside: Mapping[str, Host], given: Mapping[str, Any]) -> dict[str, Any]:
    asked = {name: dict(host.deployment.ray_actor_options or {}) for name, host in inside.items()}
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
