"""Three deployments fused into one replica, against one that calls the same three functions."""

# mypy does not see what Ray's decorators add: .bind.
# mypy: disable-error-code="attr-defined"

from collections.abc import Iterator
from functools import partial
from typing import Any

from ray import serve
from starlette.requests import Request

import raycompose as rc
from benchmarks import load
from benchmarks.peers import LITSERVE
from benchmarks.registry import registry
from benchmarks.results import Line, at_least
from benchmarks.rounds import Bench, Way
from benchmarks.sites import Settings
from benchmarks.stages import OPTIONS, First, Second, Third

CALLERS = 16


async def same(value: Any) -> Any:
    """Return the input, as the deployed stages do."""
    return value


@serve.deployment(**OPTIONS)
class OneDeployment:
    """What is written where no stage needs replicas of its own."""

    async def __call__(self, value: Any) -> Any:
        if isinstance(value, Request):
            value = await value.json()
        return await same(await same(await same(value)))


def apps() -> dict[str, serve.Application]:
    """Return both ways to do the same."""
    ours = rc.pipeline(First.bind(), Second.bind(), Third.bind()).fuse()
    return {"ours": ours, "theirs": OneDeployment.bind()}


@registry.row("4", "fuse() against one hand-written deployment: HTTP, defaults and fast; by handle")
def one_deployment(bench: Bench) -> Iterator[Line]:
    """Over HTTP at both settings, and by handle at Ray's defaults."""
    bench.sites.keep(("fused", "defaults"))
    site = bench.sites.get("fused")
    call = partial(site.ask, "calls_per_s", callers=CALLERS, seconds=bench.seconds)
    found = bench.alternate({way: partial(call, way) for way in site.urls})
    yield Line("4", "fuse(), Ray's defaults, by handle, 16 in flight", "/s", found["ours"],
               found["theirs"], "one deployment", at_least(0.95))  # fmt: skip
    settings: tuple[Settings, ...] = ("defaults", "fast")
    for setting in settings:
        bench.sites.keep(("fused", setting))
        urls = bench.sites.get("fused", setting).urls
        ways: dict[str, Way] = {
            way: partial(load.over_http, url, CALLERS, bench.seconds) for way, url in urls.items()
        }
        found = bench.alternate(ways)
        yield Line("4", f"fuse(), {setting}, HTTP, 16 clients", "/s", found["ours"],
                   found["theirs"], "one deployment", at_least(0.95))  # fmt: skip


@registry.row("5", "fuse(), fast, HTTP, 16 clients, against LitServe")
def litserve(bench: Bench) -> Iterator[Line]:
    """Against one API of LitServe with the same work in it."""
    bench.sites.keep(("fused", "fast"))
    ours = bench.sites.get("fused", "fast").urls["ours"]
    what, target = "fuse(), fast, HTTP, 16 clients", at_least(1.4)
    with LITSERVE.running() as theirs:
        if not theirs.url:
            yield Line("5", what, "/s", [], target=target, note=theirs.reason)
            return
        send = partial(load.over_http, clients=CALLERS, seconds=bench.seconds)
        found = bench.alternate({"ours": partial(send, ours), "theirs": partial(send, theirs.url)})
    yield Line("5", what, "/s", found["ours"], found["theirs"], theirs.version, target)
