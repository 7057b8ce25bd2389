"""Steps one after the other, and what flows between neighbours.

Values; streams that a step maps over or takes whole; references to results that are not there yet.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from raycompose.flow.references import Ref
from raycompose.flow.streams import Stream
from raycompose.graph.context import Context
from raycompose.graph.nodes import Node, Stage, deployments


@dataclass(frozen=True)
class Sequence(Node):
    """Stages one after the other: ``Sequence((f, g)).run(x)`` is ``g(f(x))``.

    Args:
        steps: The stages.
        ends_first: The positions of those that end before the next is called with a reference to
            them, which would otherwise hold a place that they may need.
    """

    steps: tuple[Node, ...]
    ends_first: frozenset[int] = frozenset()

    async def run(self, value: Any, ctx: Context) -> Any:
        """Run the steps in order, each on the result of the one before."""
        if self._passes_values and type(value) is not Stream:
            for step in self.steps:
                value = await step.run(value, ctx)
            return value
        for step, takes_stream, before_reference, before_itself, leaves in self._plan:
            if not takes_stream and isinstance(value, Stream):
                value = value.map(partial(step.run_item, ctx=ctx), portable=step.portable)
            elif before_reference:
                value = await step.refer(value, ctx)
                if before_itself and isinstance(value, Ref):
                    await value.done()
            elif leaves is not None:
                value = await leaves.run(value, ctx, leave=True)
            else:
                value = await step.run(value, ctx)
        return value

    @cached_property
    def _passes_values(self) -> bool:
        """Whether each step waits for the one before, and no stream flows between them."""
        return not any(
            step.streams or before_reference or leaves is not None
            for step, _, before_reference, _, leaves in self._plan
        )

    @cached_property
    def _plan(self) -> tuple[tuple[Node, bool, bool, bool, Stage | None], ...]:
        """Each step, whether it takes a stream, is referred to, and to the end before the next.

        Last the step again, if it may leave its result where it is.

        A step that holds a place of its deployment while it waits for another call of the same
        deployment, which waits for a place, would wait for ever.
        """
        plan = []
        for position, step in enumerate(self.steps):
            after = self.steps[position + 1] if position + 1 < len(self.steps) else None
            before_reference = before_itself = False
            if after is not None and travels_by_reference(step, after):
                before_reference = True
                shared = not deployments(step).isdisjoint(deployments(after))
                before_itself = shared or position in self.ends_first
            leaves = _leaves(step, after)
            plan.append((step, step.takes_stream, before_reference, before_itself, leaves))
        return tuple(plan)

    @cached_property
    def starts_beside(self) -> bool:
        """Whether a step is given a reference, or starts something itself."""
        return (
            any(before_reference for _, _, before_reference, *_ in self._plan)
            or super().starts_beside
        )

    @property
    def children(self) -> tuple[Node, ...]:
        """The steps."""
        return self.steps

    def with_children(self, children: tuple[Node, ...]) -> "Sequence":
        """Return a sequence of other steps."""
        return dataclasses.replace(self, steps=children)

    @property
    def first(self) -> Stage | None:
        """The first stage of the first step."""
        return self.steps[0].first

    @property
    def entries(self) -> tuple[Stage, ...]:
        """The first step's."""
        return self.steps[0].entries

    @property
    def exits(self) -> tuple[Stage, ...]:
        """The last step's."""
        return self.steps[-1].exits

    @cached_property
    def streams(self) -> bool:
        """Whether items may reach the end: a stage that takes a stream whole may end it."""
        return self._ends_in_stream(step.streams for step in self.steps)

    @cached_property
    def only_streams(self) -> bool:
        """Whether items reach the end whatever the input."""
        return self._ends_in_stream(step.only_streams for step in self.steps)

    def _ends_in_stream(self, streams: Iterable[bool]) -> bool:
        streaming = False
        for step, begins in zip(self.steps, streams, strict=True):
            streaming = begins or (streaming and not step.takes_stream)
        return streaming

    @property
    def passes_on(self) -> bool:
        """Whether all steps do."""
        return all(step.passes_on for step in self.steps)

    @property
    def takes_stream(self) -> bool:
        """Whether the first step does."""
        return self.steps[0].takes_stream

    @property
    def takes_reference(self) -> bool:
        """Whether the first step does."""
        return self.steps[0].takes_reference


def _leaves(before: Node, after: Node | None) -> Stage | None:
    """The first of two steps, if what follows has Ray fetch its input where it runs."""
    if not (isinstance(before, Stage) and isinstance(after, Stage)) or before.streams:
        return None
    fetched = after.target.remote and after.signature.takes == "value" and not after.streams
    return before if fetched and before.target.remote else None


def travels_by_reference(before: Node, after: Node) -> bool:
    """Whether the value between two steps travels as a reference."""
    if after.takes_reference:
        return True
    if not (isinstance(before, Stage) and isinstance(after, Stage)) or before.streams:
        return False
    tasks = before.target.takes_object_refs or after.target.takes_object_refs
    return tasks and before.target.remote and after.target.remote
