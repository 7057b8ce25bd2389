"""Conversions between responses, Ray's ``ObjectRef``s and values, alone or inside containers."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

import ray
from ray import ObjectRef
from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator

from raycompose import _serve
from raycompose.flow import background
from raycompose.flow.failures import users_error
from raycompose.flow.promises import promise
from raycompose.flow.references import Ref
from raycompose.flow.structures import is_container, leaves, rebuilt

T = TypeVar("T")


class ObjectRefResponse(Generic[T]):
    """An ``ObjectRef`` with the interface of a ``DeploymentResponse``; by ``from_object_ref``.

    Args:
        ref: The reference.
    """

    def __init__(self, ref: "ObjectRef[T]") -> None:
        self.object_ref = ref

    def __await__(self) -> Generator[Any, None, T]:
        return Ref(self.object_ref).__await__()

    def result(self, *, timeout_s: float | None = None) -> T:
        """Block until the result is there, as ``DeploymentResponse.result`` does.

        Args:
            timeout_s: Seconds to wait at most; ``None``: as long as it takes.
        """
        value: T = Ref(self.object_ref).get(timeout_s)
        return value

    def cancel(self) -> None:
        """Cancel the task or actor call that produces the result; see ``ray.cancel``."""
        ray.cancel(self.object_ref)


async def by_ref(structure: Any) -> Any:
    """Return the same structure with every ``DeploymentResponse`` in it as an ``ObjectRef``.

    Restores what Ray Serve removed, responses inside containers: ``handle.remote([response])``
    raises, ``handle.remote(await rc.by_ref([response]))`` works, and the callee starts before the
    response is there. In plain Ray Serve: ``[await response._to_object_ref()]``, which raises on
    the gRPC transport and in local testing mode.

    Returns as soon as the calls are assigned to replicas, not when they finish. In local testing
    mode, without Ray, references are ``rc.Ref``s: ``await`` them just the same.

    Args:
        structure: A response, or lists, tuples, named tuples, dicts, sets and dataclass instances
            with responses in them at any depth. Anything else in it is left alone.

    Raises:
        TypeError: A streaming response is in it, or it is no structure at all.
    """
    return await _converted(structure, "by_ref", _reference, DeploymentResponse)


async def resolve(structure: Any) -> Any:
    """Return the same structure with the value of every reference or response in it.

    Fetches concurrently. In plain Ray: ``await asyncio.gather(*refs)``, and code of your own for
    the structure.

    Args:
        structure: As for ``by_ref``, with ``ObjectRef``s, ``rc.Ref``s and responses in it.

    Raises:
        TypeError: A streaming response is in it.
        Exception: What the stage behind a reference raised; ``ObjectLostError`` when the node
            that held the result is gone.
    """
    return await _converted(structure, "resolve", _value, *_REFERENCES)


async def to_object_ref(response: Any) -> Any:
    """Return the ``ObjectRef`` of a response: for a Ray task or actor, say.

    Uses ``DeploymentResponse._to_object_ref``, and works on the gRPC transport as well. Where
    no Ray runs (``rc.local``) it is a ``Ref``, which ``rc.resolve`` takes; ``task.remote(...)`` of
    it would start one: compose the task instead, ``app.then(task)``.

    Args:
        response: A ``DeploymentResponse``, or what ``from_object_ref`` returns.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(response, ObjectRefResponse | Ref):
        return response.object_ref
    if isinstance(response, ObjectRef):
        return response
    if not isinstance(response, DeploymentResponse):
        raise _refused(response, "to_object_ref")
    return await _reference(response)


async def to_object_ref_gen(response: Any) -> Any:
    """Return the ``ObjectRefGenerator`` of a streaming response, which yields ``ObjectRef``s.

    Uses ``DeploymentResponseGenerator._to_object_ref_gen``. On the gRPC transport and in
    local testing mode, which have none, an object with the same two ways to iterate.

    Args:
        response: A ``DeploymentResponseGenerator``.

    Raises:
        TypeError: It is not a streaming response.
    """
    if not isinstance(response, DeploymentResponseGenerator):
        raise TypeError(
            f"to_object_ref_gen takes a streaming response, got {type(response).__name__}: "
            "make the call with handle.options(stream=True), or use rc.to_object_ref"
        )
    found = await _serve.object_ref_gen(response)
    return _Items(response) if found is None else found


def from_object_ref(ref: "ObjectRef[T]") -> ObjectRefResponse[T]:
    """Return an ``ObjectRef`` as something that is used as a ``DeploymentResponse`` is.

    Args:
        ref: The reference, of a Ray task or an actor call, say.

    Raises:
        TypeError: It is not an ``ObjectRef``.
    """
    if not isinstance(ref, ObjectRef):
        raise TypeError(
            f"from_object_ref takes a ray.ObjectRef, got {type(ref).__name__}; "
            "a response is turned into one by rc.to_object_ref"
        )
    return ObjectRefResponse(ref)


def by_ref_sync(structure: Any) -> Any:
    """``by_ref`` for code without an event loop: blocks until the calls are assigned."""
    return _blocking(by_ref, structure)


def resolve_sync(structure: Any) -> Any:
    """``resolve`` for code without an event loop: blocks until all values are there."""
    return _blocking(resolve, structure)


def to_object_ref_sync(response: Any) -> Any:
    """``to_object_ref`` for code without an event loop: blocks until the call is assigned."""
    return _blocking(to_object_ref, response)


def to_object_ref_gen_sync(response: Any) -> Any:
    """``to_object_ref_gen`` for code without an event loop: blocks until the call is assigned."""
    return _blocking(to_object_ref_gen, response)


_REFERENCES = (ObjectRef, Ref, DeploymentResponse, ObjectRefResponse)


async def _converted(structure: Any, call: str, convert: Callable[[Any], Any], *kinds: type) -> Any:
    found = leaves(structure, (*kinds, DeploymentResponseGenerator))
    for leaf in found:
        if not isinstance(leaf, kinds):
            raise _refused(leaf, call)
    if not found and not is_container(structure):
        raise _refused(structure, call)
    results = await asyncio.gather(*(convert(leaf) for leaf in found))
    return rebuilt(structure, dict(zip(map(id, found), results, strict=True)))


async def _value(reference: Any) -> Any:
    try:
        return await reference
    except Exception as error:
        cause = users_error(error)
        if cause is error:
            raise
        raise cause from error


async def _reference(response: Any) -> Any:
    """A response's ``ObjectRef``, the same one each time; a ``Ref`` in local testing mode."""
    known = _known.get(response)
    if known is None:
        known = await _serve.object_ref(response)
        if known is None:
            # A replica's router may live on its own loop; elsewhere the caller's may end first.
            begin = background.start if _serve.in_replica() else background.submit
            pending = begin(_value(response))
            known = promise(pending) if ray.is_initialized() else Ref(pending)
        _known[response] = known
    return known


_known: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()
"""What responses were converted to: a response by gRPC gives its result once."""


class _Items:
    """The references to a stream's items, for transports that have none: each as it comes."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        item = await anext(self._response)
        return ray.put(item) if ray.is_initialized() else Ref.to(item)

    def __iter__(self) -> Iterator[Any]:
        for item in self._response:
            yield ray.put(item) if ray.is_initialized() else Ref.to(item)


def _refused(value: Any, call: str) -> TypeError:
    if isinstance(value, DeploymentResponseGenerator):
        advice = "a streaming response is iterated, or converted with rc.to_object_ref_gen"
    else:
        advice = (
            "give it the response itself, before it is awaited, or a list, tuple, dict, set or "
            "dataclass instance with responses in it"
        )
    return TypeError(f"rc.{call} got {type(value).__name__}: {advice}")


def _blocking(function: Callable[[Any], Any], argument: Any) -> Any:
    name = function.__name__
    background.refuse_on_loop(f"rc.{name}_sync()", f"'await rc.{name}(...)'")
    return background.wait(function(argument))
