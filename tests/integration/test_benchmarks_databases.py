"""The measurements over simulated child runs in a short form: they measure whole jobs, and no clock is asserted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import databases, object_store, postgres_scale
from benchmarks.standing import Standing, standing
from benchmarks.table import markdown
from tests.redis_server import required as redis_required


@pytest.fixture(scope="module")
def on_postgres() -> Iterator[Standing]:
    redis_required()
    with standing(databases.POSTGRES) as where:
        yield where


@pytest.mark.real
@pytest.mark.slow
def test_simulated_child_runs_on_a_real_server_are_measured(on_postgres: Standing) -> None:
    found = databases.measure(on_postgres, at_once=4, children=10, seconds=0.5)
    assert found.busy == 0
    for number in (
        found.rate,
        found.settle,
        found.settle_late,
        found.refill,
        found.server,
        found.databases,
        found.parent,
        found.wall,
    ):
        assert number > 0, found
    rows = databases.compared(4, found, found)
    assert all(row.ratio == 1 for row in rows if row.other), markdown(rows)


@pytest.mark.real
@pytest.mark.slow
def test_no_batch_of_a_large_job_on_postgres_is_lost(on_postgres: Standing) -> None:
    rows = postgres_scale.measure(on_postgres, 80, 8, 2.0, reads=False)
    lost, most = rows[:2]
    assert lost.holds, markdown(rows)
    assert most.holds, markdown(rows)
    assert rows[-1].holds, markdown(rows)


@pytest.mark.slow
def test_a_job_on_an_object_store_is_resumed_and_reported() -> None:
    rows = object_store.rows(60, with_ledgers=10)
    lost, objects, child, _, _, parent = rows[:6]
    assert lost.holds, markdown(rows)
    assert objects.ours > 1, markdown(rows)
    assert child.ours > 2, markdown(rows)
    # At six batches the start of the job still weighs: the larger job must not look dearer.
    assert parent.ratio is not None
    assert parent.ratio < 1.5, markdown(rows)


def test_a_freed_place_is_filled_by_the_next_child_run() -> None:
    def at(second: int) -> str:
        return f"2025-01-01T00:00:{second:02}Z"

    runs = [{"created": at(c), "end_time": at(e)} for c, e in ((0, 10), (1, 12), (13, 20), (14, 30))]
    assert databases.refills(runs, at_once=2) == [3, 2]
