"""Affinity: the session that a stage's calls belong to."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raycompose.errors import HTTPError
from raycompose.flow.arguments import Arguments, single
from raycompose.graph.choices import MISSING, decide
from raycompose.graph.context import Context, raise_named
from raycompose.graph.limits import is_number
from raycompose.graph.wrappers import Wrapping


@dataclass(frozen=True)
class Sticky(Wrapping):
    """A node whose calls have a session id of their own, for Ray Serve's session-aware routers.

    Args:
        by: What gives the id: a function of the value, or a key of it.
    """

    by: Callable[[Any], Any] | str

    async def _run(self, value: Any, ctx: Context) -> Any:
        return await self.body.run(value, await self._in_session(value, ctx))

    async def refer(self, value: Any, ctx: Context) -> Any:
        """Start the body and give a ``Ref`` to its result without waiting for it."""
        return await self.body.refer(value, await self._in_session(value, ctx))

    async def _in_session(self, value: Any, ctx: Context) -> Context:
        name = self.goes_by
        try:
            session_id = await decide(self.by, _whole(value, name), ctx)
            if session_id is MISSING:
                raise HTTPError(422, f"stage {name!r} needs the value's {self.by!r} for affinity=")
            if not isinstance(session_id, str) and not is_number(session_id):
                raise TypeError(
                    f"affinity= of stage {name!r} gave {session_id!r}, which is no session id: "
                    "it must give a str or a number"
                )
        except Exception as error:
            raise_named(error, name, ctx.request_id)
            raise
        return dataclasses.replace(ctx, session_id=str(session_id))


def _whole(value: Any, node: str) -> Any:
    """The value; of keyword arguments, an object that was spread over parameters, the mapping."""
    if type(value) is Arguments and not value.args:
        return dict(value.kwargs)
    return single(value, node)
