"""A node whose result is its own next input."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from raycompose.errors import LoopError, mark
from raycompose.flow.arguments import single
from raycompose.flow.references import awaited
from raycompose.graph.choices import Decider, decide
from raycompose.graph.context import Context
from raycompose.graph.nodes import Node, Stage


@dataclass(frozen=True)
class Loop(Node):
    """Runs its body on its own result until a predicate holds of it.

    Args:
        body: What runs.
        until: What decides that the result is the loop's.
        max_iterations: How often the body runs at most.
    """

    body: Node
    until: Decider
    max_iterations: int

    async def run(self, value: Any, ctx: Context) -> Any:
        """Give the first result of which the predicate holds.

        Raises:
            LoopError: It held of none.
        """
        value = single(value, self.name)
        value = await awaited(value)
        for number in range(self.max_iterations):
            value = await self.body_of(number).run_item(value, ctx)
            if await decide(self.until, value, ctx):
                return value
        raise mark(LoopError(self.name, self.max_iterations), self.name, ctx.request_id)

    def body_of(self, number: int) -> Node:
        """Return what runs in an iteration; they are numbered from 0."""
        return self.body

    @property
    def children(self) -> tuple[Node, ...]:
        """The body, and the graph that decides."""
        return (self.body, self.until) if isinstance(self.until, Node) else (self.body,)

    def with_children(self, children: tuple[Node, ...]) -> "Loop":
        """Return the loop around another body."""
        until = children[1] if len(children) > 1 else self.until
        return dataclasses.replace(self, body=children[0], until=until)

    @property
    def entries(self) -> tuple[Stage, ...]:
        """The body's."""
        return self.body.entries

    @property
    def exits(self) -> tuple[Stage, ...]:
        """The body's."""
        return self.body.exits
