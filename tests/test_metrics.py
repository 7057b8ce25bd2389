"""Metrics: what is collected in a replica reaches Ray, when the replica ends, too."""

import asyncio

import pytest

from raycompose.graph import metrics


def test_calls_that_were_collected_are_reported_while_the_process_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When its threads have ended, the loop itself reports."""
    reported: list[tuple[str, str, float]] = []
    monkeypatch.setattr(metrics._Metrics, "_report", lambda _, calls: reported.extend(calls))
    collected = object.__new__(metrics._Metrics)
    collected._calls = [("Pipeline", "Model", 0.1)]

    async def end() -> None:
        await asyncio.get_running_loop().shutdown_default_executor()
        collected._hand_over()

    asyncio.run(end())
    assert reported == [("Pipeline", "Model", 0.1)]
    assert collected._calls == []
