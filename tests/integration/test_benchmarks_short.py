"""Each measurement of `make bench` in a short form, which runs and whose claim holds roughly; no clock is asserted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks import batch_task, budget, children, items, metering, scale, stopping, units, window
from benchmarks.metering import LOGGED, Meter, bench_stack
from benchmarks.table import Row, markdown
from orchestrator.stack import Stack


@pytest.fixture(scope="module")
def measured_stack() -> Iterator[Stack]:
    with bench_stack() as stack:
        yield stack


def broken(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.holds is False]


def test_the_window_is_kept_full_and_beats_waves() -> None:
    rows = window.rows()
    assert not broken(rows), markdown(rows)
    assert all(row.ratio is not None and row.ratio > 1 for row in rows), markdown(rows)


def test_the_parents_requests_stay_within_what_is_promised() -> None:
    rows = budget.rows()
    assert rows
    assert not broken(rows), markdown(rows)


def test_a_promise_of_requests_that_is_not_kept_is_said() -> None:
    (row,) = broken([budget.row("requests", "a parent that asks too often", 67, attempts=1, seconds=60)])
    assert "| **no** |" in markdown([row])


@pytest.mark.slow
def test_ten_times_the_batches_cost_ten_times_the_processor_and_little_memory() -> None:
    rows = scale.rows((200, 2_000))
    last = [row for row in rows if "2,000" in row.measure]
    # At 200 batches the start of the job still weighs, so that the larger job looks cheaper: it must not look dearer.
    assert last[0].ratio is not None
    assert last[0].ratio < 2, markdown(rows)
    assert last[1].holds, markdown(rows)


@pytest.mark.real
@pytest.mark.slow
def test_child_runs_cost_about_what_a_plain_loop_costs(measured_stack: Stack) -> None:
    rows = children.rows(measured_stack, children=2, at_once=2, rounds=1)
    cpu, requests, mine = rows[1], rows[6], rows[-1]
    assert cpu.ratio is not None
    assert requests.ratio is not None
    assert cpu.ratio < 2, markdown(rows)
    assert requests.ratio < 2, markdown(rows)
    assert requests.ours > 20, "the server's access log was not counted"
    assert mine.holds, markdown(rows)


@pytest.mark.real
@pytest.mark.slow
def test_items_in_one_run_leave_task_map_far_behind(measured_stack: Stack) -> None:
    rate, cpu, _ = items.rows(measured_stack, items=5_000, mapped=40, rounds=1)
    assert rate.ratio is not None
    assert cpu.ratio is not None
    assert rate.ratio > 5, markdown([rate])
    assert cpu.ratio < 0.1, markdown([cpu])


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_an_item_is_decides_what_it_costs(measured_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "FLUSH_SECONDS", 0.0)
    rows = units.rows(measured_stack, units=[("ours", 4_000), ("process", 40), ("task", 40), ("group", 40)], rounds=1)
    call, _, one, four = (row for row in rows if "CPU" in row.measure)
    assert (call.measure[:10], one.ratio) == ("plain call", 1)
    assert call.ours < one.ours / 5, markdown(rows)
    assert one.ours < four.ours, markdown(rows)


def test_theory_says_what_a_window_gains_over_a_barrier() -> None:
    assert batch_task.window_seconds([3, 1, 1, 1], 2) == 3
    assert batch_task.barrier_seconds([3, 1, 1, 1], 2) == 4
    assert batch_task.window_seconds([1, 2, 3], 1) == batch_task.barrier_seconds([1, 2, 3], 1) == 6


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.campaign  # a ratio of times, which a busy machine bends
def test_batch_task_leaves_a_barrier_behind_and_not_task_map(measured_stack: Stack) -> None:
    barrier, loop, mapped = batch_task.time_rows(measured_stack, runs=12, size=4, rounds=1)
    for row in (barrier, loop):
        assert row.ratio is not None
        assert row.ratio > 1.1, markdown([row])
    assert mapped.ratio is not None
    assert mapped.ratio > 0.6, markdown([mapped])
    with measured_stack.activated():
        assert batch_task.remembered("window", 50)["kept"] == 50


@pytest.mark.real
@pytest.mark.slow
def test_a_stop_ends_real_child_runs(measured_stack: Stack) -> None:
    rows = stopping.rows(measured_stack, children=1, repetitions=1)
    assert len(rows) == 6
    assert all(row.ours < 30 for row in rows), markdown(rows)


@pytest.mark.real
def test_what_a_stack_spends_is_seen(measured_stack: Stack) -> None:
    meter = Meter(measured_stack)
    before = meter.read()
    for _ in range(20):
        measured_stack.request("GET", "/health")
    spent = meter.read() - before
    assert spent.requests >= 20
    assert spent.server > 0
    assert LOGGED.items() <= measured_stack.own_settings.items()


def test_an_unknown_measurement_is_refused_with_the_names_there_are() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "widnow"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "window" in done.stderr


def test_the_table_shows_numbers_people_can_read() -> None:
    row = Row("b", "a|b", 12345.6, 0.01234, "other", 0.5, "ratio <= 1", True)
    assert "| b | a\\|b | 12,346 | 0.012 other | 0.500 | ratio <= 1 | yes |" in markdown([row])
