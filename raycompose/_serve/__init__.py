"""The seam to Ray: the only package that touches Ray's private names.

Each name used here is pinned by a test in tests/test_serve_seam.py, so that a Ray release that
changes one is noticed.
"""

import copyreg
import dataclasses

from raycompose._serve.answers import (
    answers_http_alone,
    did_not_stream,
    did_stream,
    encode_body,
    has_no_method,
    jsonable,
    text_of_unsendable,
    unwrap,
)
from raycompose._serve.batching import end_batches
from raycompose._serve.building import LazyApplication, build, call_builder, found, replaced
from raycompose._serve.cluster import (
    ApplicationState,
    DeploymentState,
    Running,
    applications,
    ask_cluster,
    cluster_address,
    deploy_config,
    hush_worker_logs,
    running,
    settings_in_force,
    show_worker_logs,
)
from raycompose._serve.deployments import (
    autoscaling_config,
    chosen,
    constructor,
    deployment_of,
    is_batched,
    is_fastapi_ingress,
    methods_of,
    routes_of,
    setting,
    without_arguments,
)
from raycompose._serve.handles import (
    Callee,
    HandleHere,
    assigned,
    by_grpc,
    by_reference,
    cancel,
    handle_to,
    is_own_deployment,
    is_refusal_of,
    object_ref,
    object_ref_gen,
    on_this_loop,
    options_of,
    ready,
    size,
)
from raycompose._serve.hosting import Replica, asgi_of, hosted_definition, with_own_app
from raycompose._serve.replica import (
    app_name,
    in_replica,
    is_hosted,
    own_deployment,
    own_user_config,
    rank,
)
from raycompose._serve.requests import (
    CallGroup,
    RequestContext,
    detached,
    receive_request,
    request_context,
)
from raycompose._serve.tasks import MethodOfActor, actor_class_name, method_of_actor, task_function
from raycompose._serve.transport import (
    is_too_large,
    lost_answer,
    receive_any_size,
    receives_any_size,
    sent_error,
)

# Ray pickles what scripts and notebooks define by value, with cloudpickle, which copies the
# sentinel dataclasses.MISSING as it did others (cloudpipe/cloudpickle#513): pydantic then refuses
# every dataclass that arrives. Process-wide: the sentinel is pickled by its name from here on.
copyreg.pickle(type(dataclasses.MISSING), lambda _: "MISSING")

__all__ = [
    "ApplicationState",
    "CallGroup",
    "Callee",
    "DeploymentState",
    "HandleHere",
    "LazyApplication",
    "MethodOfActor",
    "Replica",
    "RequestContext",
    "Running",
    "actor_class_name",
    "answers_http_alone",
    "app_name",
    "applications",
    "asgi_of",
    "ask_cluster",
    "assigned",
    "autoscaling_config",
    "build",
    "by_grpc",
    "by_reference",
    "call_builder",
    "cancel",
    "chosen",
    "cluster_address",
    "constructor",
    "deploy_config",
    "deployment_of",
    "detached",
    "did_not_stream",
    "did_stream",
    "encode_body",
    "end_batches",
    "found",
    "handle_to",
    "has_no_method",
    "hosted_definition",
    "hush_worker_logs",
    "in_replica",
    "is_batched",
    "is_fastapi_ingress",
    "is_hosted",
    "is_own_deployment",
    "is_refusal_of",
    "is_too_large",
    "jsonable",
    "lost_answer",
    "method_of_actor",
    "methods_of",
    "object_ref",
    "object_ref_gen",
    "on_this_loop",
    "options_of",
    "own_deployment",
    "own_user_config",
    "rank",
    "ready",
    "receive_any_size",
    "receive_request",
    "receives_any_size",
    "replaced",
    "request_context",
    "routes_of",
    "running",
    "sent_error",
    "setting",
    "settings_in_force",
    "show_worker_logs",
    "size",
    "task_function",
    "text_of_unsendable",
    "unwrap",
    "with_own_app",
    "without_arguments",
]
