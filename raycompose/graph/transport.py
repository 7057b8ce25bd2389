"""How the calls of one method travel between replicas: by gRPC, or through the object store.

Ray Serve's default is the object store, and gRPC with its settings for high throughput. gRPC is
about twice as fast for small values, has no ``ObjectRef``s, and refuses requests of more than 4
MiB. A call by gRPC is no task of Ray's: when it is cancelled, what its callee has called in turn by
Ray's default runs on (seen in 2.60). So the small plain data that a method was seen to return, it
is asked for by gRPC if it calls nobody, and what is large is kept from it.
"""

from typing import Any, Literal

from ray import ObjectRef

from raycompose import _serve
from raycompose.flow.references import Ref
from raycompose.flow.weights import Weight, weight
from raycompose.graph.calling import Args, Kwargs

Way = Literal["default", "by reference", "by grpc"]

_OF_RAY_S = "context"
"""A parameter of Ray's own handlers of gRPC, so that no argument of a call can have its name."""


class Transport:
    """What a replica of the pipeline knows of the results of one method.

    Args:
        may_call: Whether the method may call others.
    """

    __slots__ = ("_learns", "_results", "_when_light")

    def __init__(self, may_call: bool) -> None:
        self._results: Weight | None = None
        self._learns = _serve.receives_any_size()  # in the pipeline's own replica
        self._when_light: Way = "default" if may_call else "by grpc"

    def way(self, args: Args, kwargs: Kwargs) -> Way:
        """Return how a call with these arguments travels."""
        if carries_reference(args) or _OF_RAY_S in kwargs:
            return "by reference"
        load = weight((args, kwargs))
        if load == "heavy" or self._results == "heavy":
            return "by reference"
        return self._when_light if load == self._results == "light" else "default"

    @property
    def is_heavy(self) -> bool:
        """Whether the last result was better left where it is."""
        return self._results == "heavy"

    def learn(self, result: Any) -> None:
        """Look at a result, for the calls that follow."""
        if self._learns:
            self._results = weight(result)
            if self._results == "unknown":  # a message would pin what an ObjectRef refers to
                self.distrust()

    def distrust(self) -> None:
        """Keep to Ray's default for what the method returns."""
        self._when_light = "default"


def carries_reference(args: Args) -> bool:
    """Tell whether a call's input is an ``ObjectRef``."""
    first = args[0] if args else None
    if isinstance(first, list) and len(first) == 1:
        first = first[0]
    return isinstance(first, ObjectRef | Ref)
