"""How the calls of one method travel between replicas: as Ray Serve's default has it, or not.

By default values go through Ray's object store; with Ray's settings for high throughput by gRPC,
which is faster for small values, slower for large ones, and refuses requests of more than 4 MiB.
Large values are kept from it. (Small ones are not sent by it elsewhere: a call by gRPC is no task
of Ray's, so what the callee itself has called by reference would outlive its cancelling.)
"""

from typing import Any, Literal

from ray import ObjectRef

from raycompose import _serve
from raycompose.flow.references import Ref
from raycompose.flow.weights import Weight, weight
from raycompose.graph.calling import Args, Kwargs

Way = Literal["default", "by reference"]


class Transport:
    """What a replica of the pipeline knows of the results of one method."""

    __slots__ = ("_learns", "_results")

    def __init__(self) -> None:
        self._results: Weight | None = None
        self._learns = _serve.receives_any_size()  # in the pipeline's own replica

    def way(self, args: Args, kwargs: Kwargs) -> Way:
        """Return how a call with these arguments travels."""
        if carries_reference(args):
            return "by reference"  # a message of gRPC would pin what an ObjectRef refers to
        heavy = self._results == "heavy" or weight((args, kwargs)) == "heavy"
        return "by reference" if heavy else "default"

    @property
    def is_heavy(self) -> bool:
        """Whether the last result was better left where it is."""
        return self._results == "heavy"

    def learn(self, result: Any) -> None:
        """Look at a result, for the calls that follow."""
        if self._learns:
            self._results = weight(result)


def carries_reference(args: Args) -> bool:
    """Tell whether a call's input is an ``ObjectRef``."""
    first = args[0] if args else None
    if isinstance(first, list) and len(first) == 1:
        first = first[0]
    return isinstance(first, ObjectRef | Ref)
