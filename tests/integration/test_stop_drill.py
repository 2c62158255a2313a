"""The stop drill of the benchmarks once for each way to stop that no other test goes, with a child in every phase."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import drill
from benchmarks.drill import POOLS, Ground
from orchestrator.stack import Stack
from tests.integration.job_support import MARKS

pytestmark = [*MARKS, pytest.mark.slow]


@pytest.fixture(scope="module")
def ground(session_stack: Stack) -> Iterator[Ground]:
    with session_stack.activated():
        ground = Ground(session_stack)
        yield ground
        ground.close()


@pytest.mark.parametrize("trigger", ["stop", "cancel"])
def test_a_stop_ends_a_child_in_every_phase_in_time_and_starts_no_item_after_one_look(
    ground: Ground, trigger: str
) -> None:
    """Trips are drilled by test_job_stops."""
    seen = ground.once(trigger)
    assert seen.settled.keys() == POOLS.keys()
    assert all(s is not None and s <= drill.DEADLINE_SECONDS for s in seen.settled.values()), seen
    assert seen.reported <= drill.DEADLINE_SECONDS + 5, seen
    # One look at the job folder, the item that was about to start, and what a busy machine adds.
    assert seen.last_start <= drill.FENCE_SECONDS + drill.ITEM_SECONDS + 1.0, seen
