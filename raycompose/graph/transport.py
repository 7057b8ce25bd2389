"""How the calls of one method travel between replicas: by gRPC, or through the object store.

Ray Serve's default is the object store. gRPC is about twice as fast for small values, has no
``ObjectRef``s, and refuses requests of more than 4 MiB. So what small plain data a method was seen
to return, it is asked for by gRPC; from the first other result on it is not.
"""

from typing import Any, Literal

from ray import ObjectRef

from raycompose import _serve
from raycompose.flow.references import Ref
from raycompose.flow.weights import Weight, weight
from raycompose.graph.calling import Args, Kwargs

Way = Literal["default", "by reference", "by grpc"]


class Transport:
    """What a replica of the pipeline knows of the results of one method."""

    __slots__ = ("_is_known", "_results")

    def __init__(self) -> None:
        self._results: Weight | None = None
        # Elsewhere a large result that comes by gRPC is lost, and the callee would run again.
        self._is_known = not _serve.receives_any_size()

    def way(self, args: Args, kwargs: Kwargs) -> Way:
        """Return how a call with these arguments travels."""
        if carries_reference(args):
            # Pickled into a message of gRPC, Ray would pin what an ObjectRef refers to for ever.
            return "by reference"
        load = weight((args, kwargs))
        if load == "heavy" or self._results == "heavy":
            return "by reference"
        return "by grpc" if load == self._results == "light" else "default"

    @property
    def is_heavy(self) -> bool:
        """Whether the last result was better left where it is."""
        return self._results == "heavy"

    def learn(self, result: Any) -> None:
        """Look at a result, for the calls that follow."""
        if not self._is_known:
            self._results = weight(result)
            self._is_known = self._results == "unknown"

    def distrust(self) -> None:
        """Keep to Ray's default: gRPC could not bring what the method answered."""
        self._results, self._is_known = "unknown", True


def carries_reference(args: Args) -> bool:
    """Tell whether a call's input is an ``ObjectRef``."""
    first = args[0] if args else None
    if isinstance(first, list) and len(first) == 1:
        first = first[0]
    return isinstance(first, ObjectRef | Ref)
