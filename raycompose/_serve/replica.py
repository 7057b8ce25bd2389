"""What this process knows of the replica that it is, or that it stands for."""

import contextvars
import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.serve import Deployment, context
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.context import ReplicaContext, _get_internal_replica_context
from ray.serve.schema import ReplicaRank


def in_replica() -> bool:
    """Tell whether this process is a Serve replica."""
    found = _get_internal_replica_context()
    return found is not None and type(found) is not _LocalContext


@dataclasses.dataclass
class _LocalContext(ReplicaContext):  # type: ignore[misc]  # Ray's types are not followed
    """The context of a replica that is none, for what asks for one."""


_context_lock = threading.RLock()


@contextmanager
def replica_context(deployment: Deployment, instance: Any = None) -> Iterator[None]:
    """Have ``serve.get_replica_context()`` succeed inside, which must not wait for anything."""
    with _context_lock:
        before = context._INTERNAL_REPLICA_CONTEXT
        context._INTERNAL_REPLICA_CONTEXT = before or _LocalContext(
            replica_id=ReplicaID("local", DeploymentID(deployment.name, LOCAL)),
            servable_object=instance,
            _deployment_config=deployment._deployment_config,
            rank=rank(),
            world_size=1,
        )
        try:
            yield
        finally:
            context._INTERNAL_REPLICA_CONTEXT = before


hosted: contextvars.ContextVar[bool] = contextvars.ContextVar("raycompose_hosted", default=False)


def is_hosted() -> bool:
    """Tell whether the code that is constructed now is hosted, rather than a replica's own."""
    return hosted.get()


def own_user_config() -> Any:
    """Return this replica's ``user_config``; ``None`` outside of one, and for what it hosts."""
    if not in_replica() or is_hosted():
        return None
    return _get_internal_replica_context()._deployment_config.user_config


def rank() -> ReplicaRank:
    """Return this replica's rank; outside of one that of the only replica."""
    return _get_internal_replica_context().rank if in_replica() else _FIRST


_FIRST = ReplicaRank(rank=0, node_rank=0, local_rank=0)

LOCAL = "local"
"""The application's name outside of a replica."""


def own_deployment() -> tuple[str, str]:
    """Return the names of this replica's application and deployment; outside of one, empty."""
    if not in_replica():
        return "", ""
    replica = _get_internal_replica_context()
    return replica.app_name, replica.deployment


def app_name() -> str:
    """Return the name of the application that this replica is part of."""
    name: str = _get_internal_replica_context().app_name if in_replica() else LOCAL
    return name
