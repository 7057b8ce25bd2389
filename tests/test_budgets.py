"""Retry budgets: extra calls are a share of the requests."""

from collections.abc import Callable
from typing import Any

import pytest

import raycompose as rc
from raycompose.graph.budgets import Budget


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def spent(budget: Budget, times: int) -> int:
    return sum(budget.spend() for _ in range(times))


def test_a_budget_is_a_share_of_the_requests() -> None:
    """Of a hundred requests twenty may be made once more, and no further one."""
    budget = Budget(0.2, 0, Clock())
    for _ in range(100):
        budget.request()
    assert spent(budget, 100) == 20


def test_a_few_a_second_are_allowed_at_low_load() -> None:
    """A share of few requests would be nothing: so many a second are always allowed."""
    clock = Clock()
    budget = Budget(0.2, 3, clock)
    budget.request()
    assert spent(budget, 10) == 3
    clock.now_s += 1
    assert spent(budget, 10) == 3


def test_a_budget_forgets_after_ten_seconds() -> None:
    """Requests and extra calls count for ten seconds; nothing older is kept."""
    clock = Clock()
    budget = Budget(0.5, 0, clock)
    for _ in range(100):
        clock.now_s += 0.5
        budget.request()
        budget.spend()
    assert len(budget._seconds) <= 10
    clock.now_s += 10
    assert spent(budget, 10) == 0
    budget.request()
    budget.request()
    assert spent(budget, 10) == 1


@pytest.mark.parametrize(("share", "most"), [(0.2, 1.2), (1.0, 2.0)])
def test_an_overload_is_not_multiplied(share: float, most: float) -> None:
    """A stage that refuses seven of eight calls is called little more often than it is asked."""
    calls = 0

    async def overloaded(x: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 8:
            raise ConnectionError("too much")
        return x

    retry = rc.Retry(5, on=(ConnectionError,), initial_s=0.0, budget=share, min_per_s=0)
    client = rc.local(rc.stage(overloaded, retry=retry))
    failed: list[Any] = client.map(range(400), return_exceptions=True)
    errors = [error for error in failed if isinstance(error, ConnectionError)]
    assert 1.05 < calls / 400 <= most
    assert any("the retry budget of 'overloaded' is spent" in note
               for error in errors for note in getattr(error, "__notes__", ()))  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        lambda: rc.Retry(budget=1.5),
        lambda: rc.Retry(budget=-0.1),
        lambda: rc.Retry(budget=True),
        lambda: rc.Retry(min_per_s=-1),
    ],
)
def test_a_budget_that_is_none_is_refused(make: Callable[[], rc.Retry]) -> None:
    """A share outside of 0 to 1, or a negative number a second, is refused where it is written."""
    with pytest.raises(ValueError, match="must be"):
        make()
