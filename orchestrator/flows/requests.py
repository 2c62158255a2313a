"""What a job costs where requests are counted: its parent's, its child runs', and which window a limit allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.engine.pace import LEAST_BUDGET
from orchestrator.errors import ConfigurationError

CHILD_REQUESTS = 31
"""HTTP requests and websockets of a no-op child run, and of its worker for it; the worker's polling comes on top.

Source: counted by a proxy, Prefect 3.8.8 (`tests/e2e/test_request_limits.py`).
"""
NEWS_AFTER_SECONDS = 5.0
"""A child run tells no news before that age."""
PARENT_REQUESTS_PER_CHILD = 6
PARENT_REQUESTS_PER_MINUTE = 60
"""The most that a parent needs to watch; fewer are enough for it."""
PARENT_SHARE = 4
"""Of a limit, the part that is left to the parent where the job says nothing."""
BATCH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """A job under a limit of requests per minute.

    Args:
        per_minute: The limit, of everybody who shares it.
        batch_seconds: How long a batch is taken to run.
        parent, children: Requests of the whole job.
        wanted: Requests a minute with the window that was asked for.
        minutes: The least that the job takes under the limit.
        max_in_flight: The largest window that fits; 0 when the limit is too low for one child run at a time.
    """

    per_minute: int
    batch_seconds: float
    parent: int
    children: int
    wanted: int
    minutes: float
    max_in_flight: int


def check_limit(per_minute: int | None, batch_seconds: float) -> None:
    """Refuse what no limit and no time can be.

    Raises:
        ConfigurationError: the limit is below 1, or the time not above 0.
    """
    if per_minute is not None and per_minute < 1:
        raise ConfigurationError(f"must be at least 1, got {per_minute}", field="requests_per_minute")
    if not 0 < batch_seconds < math.inf:
        raise ConfigurationError(f"must be above 0, got {batch_seconds:g}", field="batch_seconds")


def request_plan(
    per_minute: int, batch_seconds: float, *, batches: int, window: int, news_seconds: float, budget: int | None
) -> RequestPlan:
    """What the limit means for a job of so many batches.

    Args:
        window: Most child runs at once.
        news_seconds: Least seconds between two pieces of news of a child run.
        budget: The parent's own, per minute; None without one.

    Raises:
        ConfigurationError: the limit or the time is not above 0.
    """
    check_limit(per_minute, batch_seconds)
    per_child = CHILD_REQUESTS + math.ceil(max(0.0, batch_seconds - NEWS_AFTER_SECONDS) / news_seconds)
    parent_most = min(PARENT_REQUESTS_PER_MINUTE, budget or PARENT_REQUESTS_PER_MINUTE, per_minute // PARENT_SHARE)
    each = per_child + PARENT_REQUESTS_PER_CHILD
    left = per_minute - parent_most
    fits = math.floor(left * batch_seconds / 60 / each)
    at_once = min(window, max(1, fits), max(1, batches))
    minutes = max(math.ceil(batches / at_once) * batch_seconds / 60, batches * each / left)
    return RequestPlan(
        per_minute=per_minute,
        batch_seconds=batch_seconds,
        parent=math.ceil(PARENT_REQUESTS_PER_CHILD * batches + parent_most * minutes),
        children=per_child * batches,
        wanted=math.ceil(min(window, max(1, batches)) * 60 / batch_seconds * each + parent_most),
        minutes=round(minutes, 1),
        max_in_flight=min(fits, 1000),
    )


def request_warnings(found: RequestPlan, window: int, budget: int | None) -> list[str]:
    """What is wrong or tight under the limit, one line each, with the remedy."""
    said = []
    limit, seconds = f"{found.per_minute:,} requests a minute", f"{found.batch_seconds:g} s"
    if found.max_in_flight < 1:
        said.append(
            f"{limit} are too few for one child run of {seconds} after another: a larger batch_size makes fewer of them"
        )
    elif found.max_in_flight < window:
        said.append(
            f"{window} child runs at once, each of {seconds}, want about {found.wanted:,} requests a minute, and the "
            f"limit is {found.per_minute:,}: max_in_flight={found.max_in_flight} fits, or a larger batch_size"
        )
    if budget is None or budget > found.per_minute // 2:
        fair = found.per_minute // PARENT_SHARE
        own = "the parent has no budget of its own" if budget is None else f"the parent's own {budget:,} are too many"
        said.append(
            f"{own} under {limit}: max_requests_per_minute={fair} leaves the rest to its child runs"
            if fair >= LEAST_BUDGET
            else f"{own} under {limit}, and below {LEAST_BUDGET} it can do little but wait"
        )
    return said
