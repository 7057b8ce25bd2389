"""Three stages, each in replicas of its own."""

# mypy does not see what Ray's decorators add: .bind.
# mypy: disable-error-code="attr-defined"

from collections.abc import Iterator
from functools import partial

from ray import serve

import raycompose as rc
from benchmarks import load
from benchmarks.peers import BENTOML
from benchmarks.registry import registry
from benchmarks.results import Line, Target, at_least
from benchmarks.rounds import Bench, Way, best, rates
from benchmarks.stages import EachAwaited, First, PassedOn, Second, Third

CALLERS = 16
PASSED_ON, BY_GRPC = "passed-on", "by-grpc"


def apps() -> dict[str, serve.Application]:
    """Return every way to do the same, each with deployments of its own."""
    return {
        "ours": rc.pipeline(First.bind(), Second.bind(), Third.bind()),
        PASSED_ON: PassedOn.bind(First.bind(), Second.bind(), Third.bind()),
        BY_GRPC: EachAwaited.bind(First.bind(), Second.bind(), Third.bind(), by_reference=False),
    }


@registry.row("1", "distributed, Ray's defaults, by handle, 16 in flight")
def by_handle(bench: Bench) -> Iterator[Line]:
    """Against the idiomatic chain; the same by gRPC is told beside it."""
    bench.sites.keep(("distributed", "defaults"))
    site = bench.sites.get("distributed")
    ask = partial(site.ask, "calls_per_s", callers=CALLERS, seconds=bench.seconds)
    ways: dict[str, Way] = {way: partial(ask, way) for way in ("ours", PASSED_ON, BY_GRPC)}
    found = bench.alternate(ways)
    what = "three deployments, Ray's defaults, by handle, 16 in flight"
    yield Line("1", what, "/s", found["ours"], found[PASSED_ON], PASSED_ON, at_least(1.8))
    yield Line("1", "the same against the chain by gRPC", "/s", found["ours"], found[BY_GRPC],
               BY_GRPC)  # fmt: skip


@registry.row("1b", "the same over HTTP, 16 clients")
def over_http(bench: Bench) -> Iterator[Line]:
    """Against the idiomatic chain."""
    bench.sites.keep(("distributed", "defaults"))
    urls = bench.sites.get("distributed").urls
    ways: dict[str, Way] = {
        way: partial(load.over_http, urls[way], CALLERS, bench.seconds)
        for way in ("ours", PASSED_ON, BY_GRPC)
    }
    found = bench.alternate(ways)
    what = "three deployments, Ray's defaults, HTTP, 16 clients"
    yield Line("1b", what, "/s", found["ours"], found[PASSED_ON], PASSED_ON, at_least(1.3))
    yield Line("1b", "the same against the chain by gRPC", "/s", found["ours"], found[BY_GRPC],
               BY_GRPC)  # fmt: skip


@registry.row("3", "distributed, fast, HTTP, 16 clients, against (a) defaults (b) fast (c) BentoML")
def fast_over_http(bench: Bench) -> Iterator[Line]:
    """Against the chain at Ray's defaults, the better of two on the same settings, and BentoML."""
    bench.sites.keep(("distributed", "defaults"), ("distributed", "fast"))
    defaults = bench.sites.get("distributed").urls
    fast = bench.sites.get("distributed", "fast").urls
    send = partial(load.over_http, clients=CALLERS, seconds=bench.seconds)
    ways: dict[str, Way] = {
        "ours": partial(send, fast["ours"]),
        "defaults": partial(send, defaults[PASSED_ON]),
        **{way: partial(send, fast[way]) for way in (PASSED_ON, BY_GRPC)},
    }
    with BENTOML.running() as bentoml:
        if bentoml.url:
            body = {"value": load.PAYLOAD}
            ways["bentoml"] = partial(send, bentoml.url, body=body, answer=load.PAYLOAD)
        found = bench.alternate(ways)
    chains = {way: found[way] for way in (PASSED_ON, BY_GRPC)}
    ours, fastest = found["ours"], best(found, *chains)

    what = "three deployments, fast, HTTP, 16 clients"

    def line(part: str, theirs: str, opponent: str, target: Target, *told: str) -> Line:
        note = rates(found, *told)
        return Line(f"3({part})", what, "/s", ours, found[theirs], opponent, target, note, chains)

    yield line("a", "defaults", "Ray's defaults", at_least(4))
    yield line("b", fastest, f"fast, {fastest}", at_least(1.2), *chains)
    if bentoml.url:
        yield line("c", "bentoml", bentoml.version, at_least(1.2), "bentoml")
    else:
        yield Line("3(c)", what, "/s", [], target=at_least(1.2), note=bentoml.reason)


@registry.row("3b", "the same with bodies of 1 MB and 10 MB")
def large_bodies(bench: Bench) -> Iterator[Line]:
    """Against the best on the same settings; by gRPC Ray refuses 4 MB and more."""
    bench.sites.keep(("distributed", "fast"))
    urls = bench.sites.get("distributed", "fast").urls
    for megabytes, clients in ((1, 16), (10, 4)):
        body = {"image": "x" * (megabytes * 1_000_000)}
        send = partial(load.over_http, clients=clients, seconds=bench.seconds, body=body)
        ways = {way: partial(send, urls[way]) for way in ("ours", PASSED_ON, BY_GRPC)}
        found = bench.alternate(ways)
        fastest = best(found, PASSED_ON, BY_GRPC)
        yield Line(
            "3b", f"three deployments, fast, HTTP, {megabytes} MB in and out, {clients} clients",
            "/s", found["ours"], found[fastest], f"fast, {fastest}", at_least(1.0),
            rates(found, *ways), {way: found[way] for way in ways},
        )  # fmt: skip
