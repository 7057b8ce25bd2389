"""Applications that run on their own, deployed by somebody else, as what a stage calls."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar

from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from typing_extensions import override

from raycompose import _serve
from raycompose.errors import ApplicationUnavailableError, RayComposeError
from raycompose.graph.calling import Args, Kwargs
from raycompose.graph.context import Context
from raycompose.graph.engines import Engine
from raycompose.graph.targets import Deployed, Target

_END = object()


@dataclass(frozen=True)
class Elsewhere(Target):
    """A deployment of another application, found by name while the pipeline runs.

    Stands on ``serve.get_app_handle`` and ``serve.get_deployment_handle``. Ray Serve refuses calls
    of an application that was deleted at once; it is looked up again then, as its ingress may have
    another name now.

    Args:
        app: The application's name.
        name: The deployment's; ``None`` for the application's ingress.
        method: The method's name.
    """

    remote: ClassVar[bool] = True
    starts: ClassVar[bool] = True
    app: str
    name: str | None
    method: str

    @property
    @override
    def deployment(self) -> Any:
        return self.app, self.name

    @override
    async def call(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        return await self._tried(Deployed.call, args, kwargs, ctx)

    @override
    async def start(self, args: Args, kwargs: Kwargs, ctx: Context) -> Any:
        return await self._tried(Deployed.start, args, kwargs, ctx)

    async def _tried(
        self, way: Callable[..., Awaitable[Any]], args: Args, kwargs: Kwargs, ctx: Context
    ) -> Any:
        found = await self.find(ctx.engine)
        try:
            return await way(found, args, kwargs, ctx)
        except DeploymentUnavailableError as error:
            found = await self._find_again(found, error, ctx.engine)
        return await way(found, args, kwargs, ctx)

    @override
    async def stream(self, args: Args, kwargs: Kwargs, ctx: Context) -> AsyncGenerator[Any, None]:
        found = await self.find(ctx.engine)
        items = found.stream(args, kwargs, ctx)
        try:
            first = await anext(items, _END)
        except DeploymentUnavailableError as error:
            found = await self._find_again(found, error, ctx.engine)
            items = found.stream(args, kwargs, ctx)
            first = await anext(items, _END)
        async with aclosing(items):
            if first is _END:
                return
            yield first
            async for item in items:
                yield item

    async def find(self, engine: Engine) -> Deployed:
        """Return the deployment, which is looked up once.

        Raises:
            ApplicationUnavailableError: There is no such application.
            RayComposeError: It is the one that calls.
        """
        known = self._known(engine)
        if not known:
            known.append(await asyncio.to_thread(self._look_up))
        return known[0]

    async def _find_again(
        self, refused: Deployed, error: DeploymentUnavailableError, engine: Engine
    ) -> Deployed:
        """The deployment that is there now, after a call that never ran."""
        if not _serve.is_refusal_of(error, refused.app):
            raise error  # of something that it called itself
        found = await asyncio.to_thread(self._look_up)
        if found.deployment == refused.deployment:
            raise ApplicationUnavailableError(self.app, self.name) from None
        self._known(engine)[:] = [found]
        return found

    def _known(self, engine: Engine) -> list[Deployed]:
        found: list[Deployed] = engine.state(repr(self), list)
        return found

    def _look_up(self) -> Deployed:
        app, own = _serve.own_deployment()
        if app == self.app and self.name in (None, own):
            raise RayComposeError(
                f"rc.app({self.app!r}) is the very application that it is a stage of: it would "
                "call itself. Deploy it under another name, or name another deployment of it"
            )
        try:
            if self.name is None:
                return Deployed(serve.get_app_handle(self.app), self.method)
            return Deployed(serve.get_deployment_handle(self.name, self.app), self.method)
        except (RayServeException, KeyError):
            raise ApplicationUnavailableError(self.app, self.name) from None
