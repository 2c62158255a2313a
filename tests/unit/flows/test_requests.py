"""What a limit of requests means for a job."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigurationError
from orchestrator.flows.requests import (
    CHILD_REQUESTS,
    PARENT_REQUESTS_PER_CHILD,
    RequestPlan,
    request_plan,
    request_warnings,
)

EACH = CHILD_REQUESTS + PARENT_REQUESTS_PER_CHILD


def planned(per_minute: int = 1000, batch_seconds: float = 60.0, **changes: Any) -> RequestPlan:
    options = {"batches": 100, "window": 8, "news_seconds": 2.0, "budget": None, **changes}
    return request_plan(per_minute, batch_seconds, **options)


def test_children_that_tell_no_news_cost_what_a_child_run_costs():
    found = planned(batch_seconds=5.0)
    assert found.children == 100 * CHILD_REQUESTS
    assert found.wanted == 8 * 12 * EACH + 60


def test_news_of_long_batches_count():
    assert planned(batch_seconds=65.0).children == 100 * (CHILD_REQUESTS + 30)
    assert planned(batch_seconds=65.0, news_seconds=20.0).children == 100 * (CHILD_REQUESTS + 3)


def test_the_parents_own_budget_is_what_is_taken_off_the_limit():
    assert planned(620, budget=20).max_in_flight > planned(620).max_in_flight


def test_a_window_that_fits_is_left_alone_and_the_time_is_that_of_the_batches():
    found = planned(100_000)
    assert found.max_in_flight >= 8
    assert found.minutes == 13.0  # 100 batches, 8 at once, a minute each
    assert request_warnings(found, 8, 200) == []


def test_a_window_that_does_not_fit_is_said_with_the_one_that_does():
    found = planned(250)
    (tight,) = request_warnings(found, 8, 60)
    assert f"max_in_flight={found.max_in_flight}" in tight
    assert "250" in tight


def test_a_limit_too_low_for_one_child_run_at_a_time_asks_for_larger_batches():
    found = planned(30, batch_seconds=10.0)
    assert found.max_in_flight == 0
    assert found.minutes > 100 * EACH / 30
    assert "batch_size" in request_warnings(found, 8, 20)[0]


def test_a_parent_without_a_budget_is_advised_to_have_one():
    assert "max_requests_per_minute=62" in request_warnings(planned(250), 1, None)[-1]
    assert request_warnings(planned(20), 1, None)[-1].endswith("below 20 it can do little but wait")


def test_a_parents_budget_that_is_most_of_the_limit_is_named():
    assert "the parent's own 200 are too many under 250 requests a minute" in request_warnings(planned(250), 1, 200)[-1]


@pytest.mark.parametrize(("per_minute", "seconds", "field"), [(0, 60.0, "requests_per_minute"), (-1, 60.0, "requests"),
                         (100, 0.0, "batch_seconds"), (100, -5.0, "batch"), (100, float("nan"), "batch")])  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(per_minute: int, seconds: float, field: str):
    with pytest.raises(ConfigurationError, match=field):
        planned(per_minute, seconds)


@given(
    per_minute=st.integers(1, 10_000),
    batch_seconds=st.floats(0.1, 7200),
    batches=st.integers(0, 100_000),
    window=st.integers(1, 1000),
    news=st.floats(2, 600),
    budget=st.none() | st.integers(10, 5000),
)
def test_the_window_that_fits_wants_no_more_than_the_limit(
    per_minute: int, batch_seconds: float, batches: int, window: int, news: float, budget: int | None
) -> None:
    def found(at_once: int) -> RequestPlan:
        return request_plan(
            per_minute, batch_seconds, batches=10**9, window=at_once, news_seconds=news, budget=budget
        )  # fmt: skip

    fits = found(window).max_in_flight
    if fits:
        assert found(fits).wanted <= per_minute + 1  # rounded up
    if fits < 1000:
        assert found(fits + 1).wanted > per_minute - 1
    asked = request_plan(
        per_minute, batch_seconds, batches=batches, window=window, news_seconds=news, budget=budget
    )  # fmt: skip
    assert asked.minutes * per_minute >= 0.99 * (asked.children + PARENT_REQUESTS_PER_CHILD * batches) - per_minute
